"""Well-known architectures as transformers defines them, with random weights from a seed.

For measuring: how long a batch takes does not depend on what the weights are. ``weights`` names a state dict
with transformers' key names where answers matter.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn
from transformers.models.bert import BertConfig, BertModel
from transformers.models.efficientnet import EfficientNetConfig, EfficientNetForImageClassification
from transformers.models.vit import ViTConfig, ViTForImageClassification

from worker.zoo.weights import fill, load_state

_CLASSES: Final[dict[str, Any]] = {"num_labels": 1000}


class ImageClassifier(nn.Module):
    """``image`` [n, 3, 224, 224] → ``logits`` [n, 1000]."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.network(pixel_values=image).logits
        return logits


class TextEncoder(nn.Module):
    """``input_ids`` [n, length] int64 → ``pooled`` [n, hidden]: the mean over the tokens."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, input_ids: Tensor) -> Tensor:
        hidden: Tensor = self.network(input_ids=input_ids).last_hidden_state
        return hidden.mean(dim=1)


def _made(make: Callable[[], nn.Module], seed: int, weights: str | None, device: torch.device) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = make()
    if weights is not None:
        fill(module, load_state(Path(weights)), weights)
    return module.to(device).eval()


def vit_b16(device: torch.device, *, seed: int = 0, weights: str | None = None) -> nn.Module:
    """ViT-B/16 at 224 × 224 (Dosovitskiy et al., arXiv 2010.11929): 86.6 M parameters.

    Raises:
        WeightsError: the file is missing, unreadable or of another network.
    """
    return ImageClassifier(
        _made(lambda: ViTForImageClassification(ViTConfig(**_CLASSES)), seed, weights, device)
    )


def efficientnet_b0(device: torch.device, *, seed: int = 0, weights: str | None = None) -> nn.Module:
    """EfficientNet-B0 at 224 × 224 (Tan and Le, arXiv 1905.11946): 5.3 M parameters.

    Raises:
        WeightsError: the file is missing, unreadable or of another network.
    """
    config = EfficientNetConfig(
        image_size=224,
        width_coefficient=1.0,
        depth_coefficient=1.0,
        dropout_rate=0.2,
        hidden_dim=1280,
        **_CLASSES,
    )
    return ImageClassifier(_made(lambda: EfficientNetForImageClassification(config), seed, weights, device))


def bert_base(device: torch.device, *, seed: int = 0, weights: str | None = None) -> nn.Module:
    """BERT-base (Devlin et al., arXiv 1810.04805) without its pooler: 108.9 M parameters.

    Raises:
        WeightsError: the file is missing, unreadable or of another network.
    """
    return TextEncoder(_made(lambda: BertModel(BertConfig(), add_pooling_layer=False), seed, weights, device))
