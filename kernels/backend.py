"""What a decoder asks of its kernels: the operations, with the same signatures for every implementation."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

from rayline.kernels.context import ForwardContext
from rayline.kernels.graphs import DecodeLimits, Function

Format = Literal["plain", "packed", "int8", "int4", "fp8", "w8a8"]


@dataclass(frozen=True, slots=True)
class Weight:
    """A matrix [columns, depth] as its kernels laid it out; only they can read `data`.

    columns: output features, padding not counted. depth: input features.
    segments: leaves of the tree that sums along the depth (kernels/tree.py).
    group: inputs that share a scale of a quantised weight; its scales lie in `data`.
    """

    data: Tensor
    columns: int
    depth: int
    segments: int = 1
    format: Format = "plain"
    group: int = 0

    @property
    def bytes(self) -> int:
        return self.data.nbytes


@dataclass(frozen=True, slots=True)
class RopeTables:
    """cos and sin of every position: fp32 [positions, head_dim / 2]."""

    cos: Tensor
    sin: Tensor


@dataclass(frozen=True, slots=True)
class KvLayer:
    """The paged keys and values of one layer on one rank.

    keys, values: [blocks, block_tokens * kv_heads * head_dim]; each implementation has its own order inside a block.
    """

    keys: Tensor
    values: Tensor
    block_tokens: int
    kv_heads: int
    head_dim: int


@dataclass(frozen=True, slots=True)
class AttentionShape:
    """What an attention layer's arithmetic depends on besides its inputs.

    heads, kv_heads: of this rank; query head h reads KV head h * kv_heads // heads.
    window: newest tokens a query sees, itself included; None for all.
    soft_cap: scores become soft_cap * tanh(score / soft_cap); None for none (Gemma 2).
    """

    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    window: int | None = None
    soft_cap: float | None = None


class Kernels(Protocol):
    """One implementation of all operations. Tensors in and out are in the model's dtype unless said otherwise.

    name: part of the numerics class. exact: whether a row's bits depend on that row alone.
    """

    @property
    def name(self) -> str: ...

    @property
    def exact(self) -> bool: ...

    def pack(self, parts: Sequence[Tensor], segments: int = 1) -> Weight:
        """Lay out the rows [N, K] of one or more blocks, in order, for products."""
        ...

    def table(self, rows: Tensor) -> Weight:
        """Lay out rows [N, K] for `embedding`."""
        ...

    def head(self, rows: Tensor) -> Weight:
        """Lay out the vocabulary's rows [N, K] for the product that gives logits."""
        ...

    def tied(self, rows: Tensor) -> Weight:
        """Lay out rows [N, K] once for both `embedding` and products."""
        ...

    def linear(self, x: Tensor, weight: Weight, bias: Tensor | None = None) -> Tensor:
        """x W^T + b, accumulated in fp32. x [T, K], bias [N] -> [T, N]."""
        ...

    def linear_fp32(self, x: Tensor, weight: Weight) -> Tensor:
        """x W^T for a sum that goes on in fp32: -> fp32 [T, N]."""
        ...

    def embedding(self, ids: Tensor, weight: Weight, first: int = 0) -> Tensor:
        """Rows of a table that holds the ids from `first` on; zeros for an id outside. ids int64 [T] -> [T, K]."""
        ...

    def widen(self, x: Tensor) -> Tensor:
        """The same numbers in fp32."""
        ...

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """x / rms(x) * weight over the last axis (Zhang and Sennrich 2019)."""
        ...

    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """s = x + residual -> (rms_norm(s), s)."""
        ...

    def add(self, x: Tensor, y: Tensor) -> Tensor: ...

    def silu_gate(self, gate_up: Tensor) -> Tensor:
        """SwiGLU (Shazeer 2020): silu(gate) * up. [T, 2 I], gate first -> [T, I]."""
        ...

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
        """Norm and turn queries and keys, put keys and values into the cache, return the queries.

        qkv [T, (heads + 2 kv_heads) * head_dim]; qk_norm: weights [head_dim] of queries and of keys (Qwen3).
        Returns [T, heads * head_dim].
        """
        ...

    def attend(
        self, q: Tensor, shape: AttentionShape, layer: KvLayer, context: ForwardContext, sinks: Tensor | None = None
    ) -> Tensor:
        """softmax(q k^T scale) v of each query over the keys at its own and earlier positions in the cache.

        sinks fp32 [heads]: a logit a head that takes part in the softmax and carries no value. Returns q's shape.
        """
        ...

    def replay(self, function: Function, limits: DecodeLimits | None = None) -> Function:
        """`function`, made of these operations only, in the form that runs with the least overhead.

        limits: of decode steps that may be captured; None where they may not. The result may be a view that the next
        call writes over.
        """
        ...
