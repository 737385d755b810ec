"""A perceptron of three layers over k-mer profiles, with probabilities out."""

import torch


class KmerMLP(torch.nn.Sequential):
    """(batch, 4^k) → (batch, classes), a softmax at the end. Dropout keeps the places that trained weights expect."""

    def __init__(self, inputs: int, hidden: list[int], classes: int) -> None:
        super().__init__(
            torch.nn.Linear(inputs, hidden[0]),
            torch.nn.Dropout(),
            torch.nn.ReLU(),
            torch.nn.Linear(hidden[0], hidden[1]),
            torch.nn.ReLU(),
            torch.nn.Dropout(),
            torch.nn.Linear(hidden[1], classes),
            torch.nn.Softmax(1),
        )
