"""The operations in torch: the oracle in tests, and what computes on GPUs, in fp32 and fp16, and without a compiler.

Not exact: torch's products change a row's bits with the number of rows.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from rayline.kernels import linear, onednn, rowwise
from rayline.kernels.activation import silu_gate
from rayline.kernels.attention import PagedKv, paged_attention
from rayline.kernels.backend import AttentionShape, KvLayer, RopeTables, Weight
from rayline.kernels.cache import write_cache
from rayline.kernels.context import ForwardContext
from rayline.kernels.graphs import DecodeLimits, Function
from rayline.kernels.norm import add_rms_norm, rms_norm
from rayline.kernels.rope import rotate
from rayline.kernels.rowwise import RowWeight, Rowwise


@dataclass(frozen=True, slots=True)
class Products:
    """Implementations of the matrix product that belong together. `pack` lays out a weight [N, K] for them."""

    name: str
    pack: Callable[[Tensor], Tensor]
    linear: Callable[[Tensor, Tensor, Tensor | None], Tensor]
    linear_fp32: Callable[[Tensor, Tensor], Tensor]


PLAIN = Products("torch", lambda weight: weight, linear.linear, linear.linear_fp32)
ONEDNN = Products("onednn", onednn.pack, onednn.linear, onednn.linear_fp32)


class TorchKernels:
    """Any device and floating-point dtype."""

    exact = False

    def __init__(self, products: Products = PLAIN) -> None:
        self.name = products.name
        self._packed = products

    def pack(self, parts: Sequence[Tensor], segments: int = 1) -> Weight:
        """`segments` is kept but torch sums in its own order."""
        whole = parts[0] if len(parts) == 1 else torch.cat(tuple(parts))
        columns, depth = whole.shape
        return Weight(self._packed.pack(whole.contiguous()), columns, depth, segments, "packed")

    def table(self, rows: Tensor) -> Weight:
        columns, depth = rows.shape
        return Weight(rows.contiguous(), columns, depth)

    def head(self, rows: Tensor) -> Weight:
        return self.pack([rows])

    def tied(self, rows: Tensor) -> Weight:
        """Plain rows, which an embedding can read too."""
        return self.table(rows)

    def linear(self, x: Tensor, weight: Weight, bias: Tensor | None = None) -> Tensor:
        return self._products(weight).linear(x, weight.data, bias)

    def linear_fp32(self, x: Tensor, weight: Weight) -> Tensor:
        return self._products(weight).linear_fp32(x, weight.data)

    def _products(self, weight: Weight) -> Products:
        return self._packed if weight.format == "packed" else PLAIN

    def embedding(self, ids: Tensor, weight: Weight, first: int = 0) -> Tensor:
        local = ids - first
        is_inside = (local >= 0) & (local < weight.columns)
        rows = functional.embedding(local.where(is_inside, 0), weight.data)
        return rows.where(is_inside[:, None], 0.0)

    def widen(self, x: Tensor) -> Tensor:
        return x.float()

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return rms_norm(x, weight, eps)

    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        return add_rms_norm(x, residual, weight, eps)

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y

    def silu_gate(self, gate_up: Tensor) -> Tensor:
        return silu_gate(gate_up)

    def write_kv(
        self,
        qkv: Tensor,
        shape: AttentionShape,
        rope: RopeTables,
        qk_norm: tuple[Tensor, Tensor] | None,
        eps: float,
        layer: KvLayer,
        context: ForwardContext,
    ) -> Tensor:
        sizes = (shape.heads, shape.kv_heads, shape.kv_heads)
        q, k, v = qkv.view(len(qkv), sum(sizes), shape.head_dim).split_with_sizes(sizes, dim=1)
        if qk_norm is not None:
            q, k = rms_norm(q, qk_norm[0], eps), rms_norm(k, qk_norm[1], eps)
        cos, sin = rope.cos[context.positions], rope.sin[context.positions]
        cache = paged(layer)
        write_cache(cache.keys, cache.values, context.slots, rotate(k, cos, sin), v)
        return rotate(q, cos, sin).flatten(1)

    def attend(
        self, q: Tensor, shape: AttentionShape, layer: KvLayer, context: ForwardContext, sinks: Tensor | None = None
    ) -> Tensor:
        heads = q.view(len(q), shape.heads, shape.head_dim)
        return paged_attention(heads, paged(layer), context, shape, sinks).flatten(1)

    def replay(self, function: Function, limits: DecodeLimits | None = None) -> Function:
        return function


class RowwiseTorchKernels(TorchKernels):
    """Layers in 8 bits, weights and activations (kernels/rowwise.py); the vocabulary's matrices as they are."""

    def __init__(self, kind: Rowwise) -> None:
        super().__init__()
        self.name = f"{PLAIN.name}-{kind}"
        self._kind: Rowwise = kind

    def pack(self, parts: Sequence[Tensor], segments: int = 1) -> Weight:
        return rowwise.pack(parts, self._kind)

    def head(self, rows: Tensor) -> Weight:
        return self.table(rows)

    def linear(self, x: Tensor, weight: Weight, bias: Tensor | None = None) -> Tensor:
        if isinstance(weight, RowWeight):
            return rowwise.linear(x, weight, bias, False)
        return super().linear(x, weight, bias)

    def linear_fp32(self, x: Tensor, weight: Weight) -> Tensor:
        if isinstance(weight, RowWeight):
            return rowwise.linear(x, weight, None, True)
        return super().linear_fp32(x, weight)


def paged(layer: KvLayer) -> PagedKv:
    """A layer's keys and values in the order these kernels give them."""
    shape = (len(layer.keys), layer.block_tokens, layer.kv_heads, layer.head_dim)
    return PagedKv(layer.keys.view(shape), layer.values.view(shape))
