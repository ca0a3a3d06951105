"""The decoders that are measured: well-known shapes with random weights, made on the device."""

import zlib
from dataclasses import dataclass

import torch
from torch import Tensor

from rayline.workers.bench.gpu.machine import Machine
from rayline.workers.models.config import ModelConfig, Rope

WEIGHT_STD = 0.02
CONTEXT_TOKENS = 8192  # the rope tables end there


def llama(
    layers: int, hidden: int, intermediate: int, heads: int, kv_heads: int, dim: int, *, tied: bool
) -> ModelConfig:
    return _config("llama", layers, hidden, intermediate, heads, kv_heads, dim, 128256, tied)


def qwen3(layers: int, hidden: int, intermediate: int, heads: int, kv_heads: int, dim: int) -> ModelConfig:
    return _config("qwen3", layers, hidden, intermediate, heads, kv_heads, dim, 151936, True)


def _config(
    family: str,
    layers: int,
    hidden: int,
    intermediate: int,
    heads: int,
    kv_heads: int,
    dim: int,
    vocab: int,
    tied: bool,
) -> ModelConfig:
    return ModelConfig(
        model_type="qwen3" if family == "qwen3" else "llama",
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=intermediate,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=dim,
        rms_norm_eps=1e-5,
        max_model_len=CONTEXT_TOKENS,
        tie_word_embeddings=tied,
        attention_bias=False,
        output_bias=False,
        mlp_bias=False,
        qk_norm=family == "qwen3",
        sliding_windows=(None,) * layers,
        rope=Rope(500000.0),
        dtype="bfloat16",
        eos_token_ids=(0,),
        bos_token_id=None,
    )


MODELS = {
    "llama-8b": llama(32, 4096, 14336, 32, 8, 128, tied=False),
    "qwen3-0.6b": qwen3(28, 1024, 3072, 16, 8, 128),
    "llama-1b": llama(16, 2048, 8192, 32, 8, 64, tied=True),
}


@dataclass(slots=True)
class RandomWeights:
    """Weights that no file holds: drawn when they are asked for, by name, so that two decoders get the same."""

    machine: Machine

    def unread(self, prefix: str) -> list[str]:
        return []

    def read(
        self, name: str, *, shape: tuple[int, ...], rows: range | None = None, cols: range | None = None
    ) -> Tensor:
        """Norms near 1, all else small."""
        whole = self.machine.randn(*shape, seed=zlib.crc32(name.encode())).mul_(WEIGHT_STD)
        if len(shape) == 1 and "norm" in name:
            whole.add_(1.0)
        parts = tuple(slice(None) if part is None else slice(part.start, part.stop) for part in (rows, cols))
        return whole[parts[: len(shape)]]


def weight_bytes(config: ModelConfig, itemsize: int) -> int:
    """Of all weights, to see whether there is room before anything is made."""
    dim = config.head_dim
    layer = config.hidden_size * (2 * config.heads + 2 * config.kv_heads) * dim
    layer += 3 * config.hidden_size * config.intermediate_size
    tables = 1 if config.tie_word_embeddings else 2
    return itemsize * (config.layers * layer + tables * config.vocab_size * config.hidden_size)


def seeded_tokens(count: int, vocab_size: int, device: torch.device) -> Tensor:
    """Token ids that repeat late: int64 [count]."""
    return torch.arange(count, device=device) * 7919 % vocab_size
