"""The networks of the image workloads: written here, with random weights by seed, as TorchScript."""

from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn

CLASSES = 10


class SmallCNN(nn.Module):
    """(n, 1, 64, 64) → (n, 10) logits: three strided convolutions, about 1.25 million multiplications per image."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs in ((1, 8), (8, 32), (32, 32)):
            layers += [nn.Conv2d(inputs, outputs, 3, 2, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
        self.features = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.fc = nn.Linear(32, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x))


class Block(nn.Module):
    """Two 3×3 convolutions beside a shortcut, as in He et al., Deep Residual Learning, CVPR 2016."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs))
        self.second = nn.Sequential(nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs))
        self.short: nn.Module = nn.Identity()
        if inputs != outputs or stride != 1:
            self.short = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.second(torch.relu(self.first(x))) + self.short(x))


class ResNet18(nn.Module):
    """(n, 3, 224, 224) → (n, 10) logits, of the size of ResNet-18: 11.2 million weights."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)
        )
        widths, blocks = (64, 64, 128, 256, 512), []
        for inputs, outputs in pairwise(widths):
            blocks += [Block(inputs, outputs, 1 if outputs == 64 else 2), Block(outputs, outputs, 1)]
        self.body = nn.Sequential(*blocks)
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.fc = nn.Linear(512, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.pool(self.body(self.stem(x))))


def save(network: type[SmallCNN] | type[ResNet18], sample: Tensor, path: Path) -> None:
    """Seeded weights and the statistics of a sample, as TorchScript.

    The last layer is scaled so that each logit has mean 0 and deviation 1 over the sample: a network whose answer is much
    the same for every image would hide that somebody computes something else.
    """
    torch.manual_seed(0)
    made = network()
    with torch.no_grad():
        for _ in range(20):  # each moves BatchNorm's statistics by a tenth
            made(sample)
        logits = made.eval()(sample)
        scale = 1 / logits.std(0)
        made.fc.weight.mul_(scale[:, None])
        made.fc.bias.sub_(logits.mean(0)).mul_(scale)
    torch.jit.trace(made, sample[:2]).save(str(path))
