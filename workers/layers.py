"""The layers of a decoder: each knows which part of its weight is its rank's, reads that and computes with it.

Tensor parallelism after Megatron-LM (Shoeybi et al. 2019): a column-parallel product (split outputs), then a
row-parallel one (split inputs) whose partial sums are the only thing the ranks exchange.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from rayline.cluster.parallel import Parallel, divide
from rayline.kernels.choice import Kernels
from rayline.kernels.norm import add_rms_norm, rms_norm
from rayline.workers.collectives import Collective
from rayline.workers.weights import Weights


@dataclass(slots=True)
class Loader:
    """What every layer is built from: the files, this rank's place, and where and how its tensors live.

    `allocated_bytes` counts what the layers took.
    """

    weights: Weights
    parallel: Parallel
    collective: Collective
    kernels: Kernels
    dtype: torch.dtype
    device: torch.device
    allocated_bytes: int = 0

    def share(self, what: str, size: int) -> range:
        """This rank's equal share of `size`. Raises ConfigError naming `what` when tp does not divide it."""
        each = divide(what, size, self.parallel.tp_size)
        return range(self.parallel.tp_rank * each, (self.parallel.tp_rank + 1) * each)

    def zeros(self, *shape: int) -> Tensor:
        tensor = torch.zeros(shape, dtype=self.dtype, device=self.device)
        self.allocated_bytes += tensor.nbytes
        return tensor

    def vector(self, name: str, size: int) -> Tensor:
        """A whole vector, as every rank holds it."""
        return self.zeros(size).copy_(self.weights.read(name, shape=(size,)))


@dataclass(frozen=True, slots=True)
class Rows:
    """This rank's rows `mine` of a projection `name` that has `size` output features."""

    name: str
    size: int
    mine: range


class ColumnLinear:
    """Output features split over the ranks: [T, in_features] -> [T, sum of this rank's rows].

    Several projections of one input (q, k and v; gate and up) are stacked into one product.
    """

    def __init__(self, loader: Loader, parts: Sequence[Rows], in_features: int, *, bias: bool) -> None:
        sizes = [len(part.mine) for part in parts]
        weight = loader.zeros(sum(sizes), in_features)
        self.bias = loader.zeros(sum(sizes)) if bias else None
        for part, into in zip(parts, torch.split(weight, sizes), strict=True):
            shape = (part.size, in_features)
            into.copy_(loader.weights.read(f"{part.name}.weight", shape=shape, rows=part.mine))
        if self.bias is not None:
            for part, into in zip(parts, torch.split(self.bias, sizes), strict=True):
                into.copy_(loader.weights.read(f"{part.name}.bias", shape=(part.size,), rows=part.mine))
        self.kernels = loader.kernels
        self.weight = loader.kernels.pack(weight)

    def __call__(self, x: Tensor) -> Tensor:
        return self.kernels.linear(x, self.weight, self.bias)


class RowLinear:
    """Input features split over the ranks: [T, this rank's columns] -> [T, out_features] on every rank.

    Each rank's product is an fp32 partial sum; the bias is added once, to the whole.
    """

    def __init__(self, loader: Loader, name: str, in_features: int, out_features: int, *, bias: bool) -> None:
        mine = loader.share(f"{name} inputs", in_features)
        self.collective, self.kernels = loader.collective, loader.kernels
        weight = loader.zeros(out_features, len(mine))
        weight.copy_(loader.weights.read(f"{name}.weight", shape=(out_features, in_features), cols=mine))
        self.weight = loader.kernels.pack(weight)
        self.bias = loader.vector(f"{name}.bias", out_features) if bias else None

    def __call__(self, x: Tensor) -> Tensor:
        if self.collective.tp_size == 1:
            return self.kernels.linear(x, self.weight, self.bias)
        total = self.collective.sum_tree(self.kernels.linear_fp32(x, self.weight))
        return (total if self.bias is None else total + self.bias).to(x.dtype)


class VocabEmbedding:
    """Rows of the vocabulary split over the ranks: token ids int64 [T] -> [T, hidden] on every rank.

    The last shards are padded with zero rows when tp does not divide the vocabulary.
    """

    def __init__(self, loader: Loader, name: str, vocab_size: int, hidden_size: int) -> None:
        self.collective = loader.collective
        self.weight = vocab_shard(loader, name, vocab_size, hidden_size)
        self.first = loader.parallel.tp_rank * len(self.weight)

    def __call__(self, token_ids: Tensor) -> Tensor:
        if self.collective.tp_size == 1:
            return functional.embedding(token_ids, self.weight)
        local = token_ids - self.first
        is_mine = (local >= 0) & (local < len(self.weight))
        rows = functional.embedding(local.where(is_mine, 0), self.weight)
        return self.collective.sum_tree(rows.float().where(is_mine[:, None], 0.0)).to(self.weight.dtype)


class VocabHead:
    """Rows of the output matrix split over the ranks: [N, hidden] -> fp32 logits [N, vocabulary] on every rank."""

    def __init__(self, collective: Collective, kernels: Kernels, weight: Tensor, vocab_size: int) -> None:
        """`weight`: this rank's rows as `vocab_shard` pads and `kernels` packs them."""
        self.collective = collective
        self.kernels = kernels
        self.weight = weight
        self.vocab_size = vocab_size

    def __call__(self, x: Tensor) -> Tensor:
        return self.collective.gather_columns(self.kernels.linear_fp32(x, self.weight))[:, : self.vocab_size]


def vocab_shard(loader: Loader, name: str, vocab_size: int, hidden_size: int) -> Tensor:
    """This rank's rows of a [vocabulary, hidden] matrix, equally many on each rank, zeros behind the last."""
    each = -(-vocab_size // loader.parallel.tp_size)
    first = min(loader.parallel.tp_rank * each, vocab_size)
    mine = range(first, min(first + each, vocab_size))
    shard = loader.zeros(each, hidden_size)
    shard[: len(mine)].copy_(loader.weights.read(name, shape=(vocab_size, hidden_size), rows=mine))
    return shard


class RmsNorm:
    """RMS normalisation of the residual stream; every rank holds the whole weight."""

    def __init__(self, loader: Loader, name: str, size: int, eps: float) -> None:
        self.weight = loader.vector(name, size)
        self.eps = eps

    def __call__(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)

    def add(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """s = x + residual -> (norm(s), s)."""
        return add_rms_norm(x, residual, self.weight, self.eps)
