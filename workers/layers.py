"""The layers of a decoder: each knows which part of its weight is its rank's, reads that and computes with it.

Tensor parallelism after Megatron-LM (Shoeybi et al. 2019): a column-parallel product (split outputs), then a
row-parallel one (split inputs) whose partial sums are the only thing the ranks exchange.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rayline.cluster.parallel import Parallel, divide
from rayline.kernels.backend import Kernels, Weight
from rayline.kernels.rowwise import RoundedRows, RoundingKernels, RowWeight
from rayline.kernels.vocabulary import vocab_share
from rayline.workers.collectives import Collective
from rayline.workers.weights import WeightSource

Activation = Tensor | RoundedRows
"""What a product takes: rounded where the launch that made it could do so."""

SEGMENTS = 8  # leaves of the tree that sums a row-parallel product, so that tp 1, 2, 4 and 8 add in one order


@dataclass(slots=True)
class Loader:
    """What every layer is built from: the files, this rank's place, and where and how its tensors live.

    `allocated_bytes` counts what the layers took.
    """

    weights: WeightSource
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

    def read(
        self, name: str, *, shape: tuple[int, ...], rows: range | None = None, cols: range | None = None
    ) -> Tensor:
        """A part of a tensor in the model's dtype; as it lies in the mapped file where that is the file's dtype."""
        return self.weights.read(name, shape=shape, rows=rows, cols=cols).to(self.device, self.dtype)

    def vector(self, *names: str, sizes: Sequence[int], parts: Sequence[range | None] | None = None) -> Tensor:
        """Vectors, or parts of them, one behind the other."""
        ranges = parts or [None] * len(names)
        read = [self.read(n, shape=(size,), rows=part) for n, size, part in zip(names, sizes, ranges, strict=True)]
        joined = torch.cat(read)
        self.allocated_bytes += joined.nbytes
        return joined

    def keep(self, weight: Weight) -> Weight:
        self.allocated_bytes += weight.bytes
        return weight


def tree_segments(depth: int, tp_size: int) -> int:
    """Leaves of the summation tree that a rank computes of a row-parallel product over `depth` inputs in all.

    The whole tree has SEGMENTS of equal, even length; where these or tp do not fit, each rank's share is one
    leaf, and bits depend on tp.
    """
    return SEGMENTS // tp_size if tree_fits(depth, tp_size, 2) else 1


def tree_fits(depth: int, tp_size: int, unit: int) -> bool:
    """Whether `depth` inputs make SEGMENTS leaves of whole units, a whole number of them on each rank."""
    return depth % (unit * SEGMENTS) == 0 and SEGMENTS % tp_size == 0


@dataclass(frozen=True, slots=True)
class Rows:
    """This rank's rows `mine` of a projection `name` that has `size` output features."""

    name: str
    size: int
    mine: range


@dataclass(frozen=True, slots=True)
class Rounding:
    """How activations are rounded for products with `target`."""

    kernels: RoundingKernels
    target: RowWeight

    @classmethod
    def of(cls, kernels: Kernels, target: Weight) -> "Rounding | None":
        """None where the product takes them as they are, or rounds them itself."""
        if isinstance(target, RowWeight) and isinstance(kernels, RoundingKernels):
            return cls(kernels, target)
        return None

    def product(self, x: RoundedRows, bias: Tensor | None, is_wide: bool) -> Tensor:
        return self.kernels.rounded_linear(x, self.target, bias, is_wide)


class ColumnLinear:
    """Output features split over the ranks: [T, in_features] -> [T, sum of this rank's rows].

    Several projections of one input (q, k and v; gate and up) are stacked into one product.
    """

    def __init__(self, loader: Loader, parts: Sequence[Rows], in_features: int, *, bias: bool) -> None:
        self.kernels = loader.kernels
        blocks = [loader.read(f"{part.name}.weight", shape=(part.size, in_features), rows=part.mine) for part in parts]
        self.weight = loader.keep(loader.kernels.pack(blocks))
        self.bias: Tensor | None = None
        if bias:
            names = [f"{part.name}.bias" for part in parts]
            sizes, mine = [part.size for part in parts], [part.mine for part in parts]
            self.bias = loader.vector(*names, sizes=sizes, parts=mine)
        self.rounding = Rounding.of(self.kernels, self.weight)

    def __call__(self, x: Activation) -> Tensor:
        if isinstance(x, Tensor):
            return self.kernels.linear(x, self.weight, self.bias)
        assert self.rounding is not None
        return self.rounding.product(x, self.bias, False)


class RowLinear:
    """Input features split over the ranks: [T, this rank's columns] -> [T, out_features] on every rank.

    Each rank's product is an fp32 partial sum; the bias is added once, to the whole.
    """

    def __init__(self, loader: Loader, name: str, in_features: int, out_features: int, *, bias: bool) -> None:
        self.collective, self.kernels = loader.collective, loader.kernels
        mine = loader.share(f"{name} inputs", in_features)
        columns = loader.read(f"{name}.weight", shape=(out_features, in_features), cols=mine)
        segments = tree_segments(in_features, loader.parallel.tp_size)
        self.weight = loader.keep(loader.kernels.pack([columns], segments))
        self.bias = loader.vector(f"{name}.bias", sizes=[out_features]) if bias else None
        self.rounding = Rounding.of(self.kernels, self.weight)

    def __call__(self, x: Activation) -> Tensor:
        is_partial = self.collective.tp_size > 1
        bias = None if is_partial else self.bias
        if not isinstance(x, Tensor):
            assert self.rounding is not None
            product = self.rounding.product(x, bias, is_partial)
        elif is_partial:
            product = self.kernels.linear_fp32(x, self.weight)
        else:
            product = self.kernels.linear(x, self.weight, bias)
        return self.collective.sum_tree(product, self.bias, x.dtype) if is_partial else product


class VocabEmbedding:
    """Rows of the vocabulary split over the ranks: token ids int64 [T] -> [T, hidden] on every rank."""

    def __init__(self, loader: Loader, weight: Weight) -> None:
        """`weight`: this rank's rows as `vocab_shard` pads them."""
        self.collective, self.kernels = loader.collective, loader.kernels
        self.dtype = loader.dtype
        self.weight = weight
        self.first = loader.parallel.tp_rank * weight.columns

    def __call__(self, token_ids: Tensor) -> Tensor:
        rows = self.kernels.embedding(token_ids, self.weight, self.first)
        if self.collective.tp_size == 1:
            return rows
        return self.collective.sum_tree(self.kernels.widen(rows), None, self.dtype)


class VocabHead:
    """Rows of the output matrix split over the ranks: [N, hidden] -> fp32 logits [N, this rank's share]."""

    def __init__(self, loader: Loader, weight: Weight) -> None:
        """`weight`: this rank's rows as `vocab_shard` pads them."""
        self.kernels = loader.kernels
        self.weight = weight

    def __call__(self, x: Activation) -> Tensor:
        assert isinstance(x, Tensor), "the vocabulary's matrices stay in 16 bits"
        return self.kernels.linear_fp32(x, self.weight)


def vocab_shard(loader: Loader, name: str, vocab_size: int, hidden_size: int) -> Tensor:
    """This rank's rows of a [vocabulary, hidden] matrix, equally many on each rank, zeros behind the last."""
    each = vocab_share(vocab_size, loader.parallel.tp_size)
    first = min(loader.parallel.tp_rank * each, vocab_size)
    mine = range(first, min(first + each, vocab_size))
    rows = loader.read(name, shape=(vocab_size, hidden_size), rows=mine)
    if len(mine) == each:
        return rows
    return torch.cat((rows, rows.new_zeros(each - len(mine), hidden_size)))


class RmsNorm:
    """RMS normalisation of the residual stream; every rank holds the whole weight."""

    def __init__(self, loader: Loader, name: str, size: int, eps: float, target: Weight) -> None:
        """target: the weight of the one product that takes the result."""
        self.kernels = loader.kernels
        self.weight = loader.vector(name, sizes=[size])
        self.eps = eps
        self.rounding = Rounding.of(loader.kernels, target)

    def __call__(self, x: Tensor) -> Activation:
        if (rounding := self.rounding) is not None:
            return rounding.kernels.rounded_rms_norm(x, self.weight, self.eps, rounding.target)
        return self.kernels.rms_norm(x, self.weight, self.eps)

    def add(self, x: Tensor, residual: Tensor) -> tuple[Activation, Tensor]:
        """s = x + residual -> (norm(s), s)."""
        if (rounding := self.rounding) is not None:
            return rounding.kernels.rounded_add_rms_norm(x, residual, self.weight, self.eps, rounding.target)
        return self.kernels.add_rms_norm(x, residual, self.weight, self.eps)


class SiluGate:
    """silu(gate) * up of SwiGLU (Shazeer 2020)."""

    def __init__(self, loader: Loader, target: Weight) -> None:
        """target: the weight of the one product that takes the result."""
        self.kernels = loader.kernels
        self.rounding = Rounding.of(loader.kernels, target)

    def __call__(self, gate_up: Tensor) -> Activation:
        if (rounding := self.rounding) is not None:
            return rounding.kernels.rounded_silu_gate(gate_up, rounding.target)
        return self.kernels.silu_gate(gate_up)
