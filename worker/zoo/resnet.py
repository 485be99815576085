"""ResNet-50 v1.5 (He et al., arXiv 1512.03385; stride in the 3×3 convolution), torchvision's key names."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from worker.zoo.weights import fill, load_state


class Bottleneck(nn.Module):
    """1×1, 3×3, 1×1 convolutions beside a shortcut; four times as many channels come out."""

    def __init__(self, channels_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or channels_in != 4 * width:
            shortcut = nn.Conv2d(channels_in, 4 * width, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(4 * width))

    def forward(self, x: Tensor) -> Tensor:
        y = nnf.relu(self.bn1(self.conv1(x)))
        y = nnf.relu(self.bn2(self.conv2(y)))
        return nnf.relu(self.bn3(self.conv3(y)) + self.downsample(x))


def _stage(channels_in: int, width: int, blocks: int, stride: int) -> nn.Sequential:
    rest = (Bottleneck(4 * width, width, 1) for _ in range(blocks - 1))
    return nn.Sequential(Bottleneck(channels_in, width, stride), *rest)


class ResNet50(nn.Module):
    """``image`` [n, 3, 224, 224] float → logits [n, 1000]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = _stage(64, 64, 3, 1)
        self.layer2 = _stage(256, 128, 4, 2)
        self.layer3 = _stage(512, 256, 6, 2)
        self.layer4 = _stage(1024, 512, 3, 2)
        self.fc = nn.Linear(2048, 1000)

    def forward(self, image: Tensor) -> Tensor:
        x = nnf.max_pool2d(nnf.relu(self.bn1(self.conv1(image))), 3, 2, padding=1)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        logits: Tensor = self.fc(x.mean(dim=(2, 3)))
        return logits


def load(device: torch.device, *, seed: int = 0, weights: str | None = None) -> nn.Module:
    """The network; random weights from ``seed``, or those of the file ``weights``.

    Raises:
        WeightsError: the file is missing, unreadable or of another network.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ResNet50()
    if weights is not None:
        fill(model, load_state(Path(weights)), weights)
    return model.to(device).eval()
