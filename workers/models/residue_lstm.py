"""A bidirectional LSTM over a sequence, a linear layer on each residue."""

import torch
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence


class ResidueLSTM(torch.nn.Module):
    """(batch, length, letters) and lengths → (batch, length, classes).

    Sequences are packed, so that padding never reaches the backward direction.
    """

    def __init__(self, letters: int, hidden: int, layers: int, classes: int) -> None:
        super().__init__()
        self.lstm = torch.nn.LSTM(letters, hidden, layers, batch_first=True, bidirectional=True)
        self.fc = torch.nn.Linear(2 * hidden, classes)

    def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Logits of each residue."""
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        hidden, _ = pad_packed_sequence(self.lstm(packed)[0], batch_first=True)
        return self.fc(hidden)
