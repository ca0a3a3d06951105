"""A bf16 decoder in this process: the raw logits of its steps, on kernels of the caller's choice."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rayline.cluster.parallel import Parallel
from rayline.kernels.backend import Kernels
from rayline.workers.cache import KvCache
from rayline.workers.collectives import Alone
from rayline.workers.models.config import ModelConfig
from rayline.workers.models.decoder import Decoder
from rayline.workers.weights import Weights

CPU = torch.device("cpu")
Slice = tuple[int, int, int]
"""Sequence, first token, number of tokens."""


class Logits:
    """All layers of a model, and the logits of every token it computes."""

    def __init__(self, path: Path, kernels: Kernels) -> None:
        self._config = ModelConfig.load(path)
        layers = range(self._config.layers)
        with Weights.open(path) as weights:
            self._decoder = Decoder(self._config, layers, weights, Parallel(), Alone(), kernels, torch.bfloat16, CPU)

    @torch.inference_mode()
    def of(self, texts: Sequence[Tensor], steps: Sequence[Sequence[Slice]], pages: Any) -> list[Tensor]:
        """Fill an empty cache with `texts` step by step: fp32 [tokens, vocabulary] of each text."""
        config = self._config
        cache = KvCache(
            config.layers, pages.blocks, pages.block_tokens, config.kv_heads, config.head_dim, torch.bfloat16, CPU
        )
        found = [torch.full((len(text), config.vocab_size), torch.nan) for text in texts]
        for slices in steps:
            ids = torch.cat([texts[text][start : start + count] for text, start, count in slices])
            logits = self._decoder.forward(ids, cache, pages.context(slices))
            row = 0
            for text, start, count in slices:
                found[text][start : start + count] = logits[row : row + count]
                row += count
        return found


def same_bits(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one.view(torch.int32), other.view(torch.int32))
