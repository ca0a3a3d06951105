"""The operations in C++: exact, the same bits on every CPU, for any batch, chunk, number of threads and tp."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from rayline.kernels import native_attention, native_quant
from rayline.kernels.backend import AttentionShape, KvLayer, RopeTables, Weight
from rayline.kernels.context import ForwardContext
from rayline.kernels.graphs import DecodeLimits, Function
from rayline.kernels.library import Library
from rayline.kernels.native_attention import BLOCK_MULTIPLE_TOKENS
from rayline.kernels.native_quant import Quantisation
from rayline.kernels.pages import are_at_hand
from rayline.kernels.program import Operations, Program

LANES = 16
PANEL = 64  # columns that lie together in a packed weight, as native/gemm.h has them
SEGMENTS = (1, 2, 4, 8)  # leaves of a tree that native/gemm.h sums


def native_misfit(head_dim: int, depths: Sequence[int], block_tokens: int) -> str:
    """Why the kernels cannot lay out such a model, "" when they can. `depths`: inputs of its products."""
    for name, value, step in (
        ("head_dim", head_dim, LANES),
        ("block_tokens", block_tokens, BLOCK_MULTIPLE_TOKENS),
        *(("a product's depth", depth, 2) for depth in depths),
    ):
        if value % step:
            return f"the C++ kernels need multiples of {step}: {name} = {value} is none"
    return ""


def native_name(library: Library, quantisation: Quantisation | None) -> str:
    """The kernels' part of the numerics class. Quantised products are made of fma on every CPU."""
    return f"fma-{quantisation.name}" if quantisation else library.numerics


class NativeKernels:
    """bf16 on CPUs. Each method allocates its result, or notes the operation while a program is recorded."""

    exact = True

    def __init__(self, operations: Operations, quantisation: Quantisation | None = None) -> None:
        """quantisation: of the weights that products read; None keeps them in bf16."""
        self.operations = operations
        self.quantisation = quantisation
        self.name = native_name(operations.library, quantisation)

    def pack(self, parts: Sequence[Tensor], segments: int = 1) -> Weight:
        """parts bf16 [N_i, K] with K even; rows may be apart. Raises ValueError for what the products cannot read.

        segments: 1, 2, 4 or 8. Column slices of K / tp, where K is a multiple of 16, packed with 8 / tp segments
        give partial sums that join (kernels/tree.py) to the bits of the whole with 8.
        """
        columns, depth = sum(len(part) for part in parts), parts[0].shape[1]
        if segments not in SEGMENTS:
            raise ValueError(f"segments must be one of {SEGMENTS}, not {segments}")
        if self.quantisation is not None:
            weights = self.quantisation.weights
            return native_quant.pack(self.operations, parts, weights, self.quantisation.group_of(weights), segments)
        if depth % 2 or any(part.shape[1] != depth for part in parts):
            raise ValueError(f"the depth must be even and that of all parts, not {[part.shape[1] for part in parts]}")
        panels = -(-columns // PANEL)
        data = torch.empty(panels * PANEL * depth, dtype=torch.bfloat16)
        is_at_hand = are_at_hand(data.nbytes)
        if is_at_hand:
            self.operations.library.advise_huge_pages(data.data_ptr(), data.nbytes)
        if columns % PANEL:
            data[(panels - 1) * PANEL * depth :].zero_()
        first = 0
        for part in parts:
            self._pack_into(data, part, first)
            first += len(part)
        if not is_at_hand:  # Linux joins the pages in the background
            self.operations.library.advise_huge_pages(data.data_ptr(), data.nbytes)
        return Weight(data, columns, depth, segments, "packed")

    def table(self, rows: Tensor) -> Weight:
        columns, depth = rows.shape
        return Weight(rows.contiguous(), columns, depth)

    def head(self, rows: Tensor) -> Weight:
        """In 8 bits where weights are quantised, in 4 bits too."""
        if self.quantisation is None:
            return self.pack([rows])
        return native_quant.pack(self.operations, [rows], "int8", self.quantisation.group_of("int8"))

    def tied(self, rows: Tensor) -> Weight:
        return self.head(rows)

    def embedding(self, ids: Tensor, weight: Weight, first: int = 0) -> Tensor:
        if weight.format in native_quant.BITS:
            return native_quant.embedding(self.operations, ids, weight, first)
        out = torch.empty((len(ids), weight.depth), dtype=weight.data.dtype, device=ids.device)
        self.operations.call(
            "Embedding",
            len(ids),
            ids=ids,
            table=weight.data,
            out=out,
            dim=weight.depth,
            first=first,
            size=weight.columns,
            packed=int(weight.format == "packed"),
        )
        return out

    def widen(self, x: Tensor) -> Tensor:
        out = torch.empty_like(x, dtype=torch.float32)
        self.operations.call("Widen", len(x), x=x, out=out, dim=x.shape[-1])
        return out

    def linear(self, x: Tensor, weight: Weight, bias: Tensor | None = None) -> Tensor:
        out = x.new_empty(len(x), weight.columns)
        self._linear(x, weight, bias, out, None)
        return out

    def linear_fp32(self, x: Tensor, weight: Weight) -> Tensor:
        out = x.new_empty((len(x), weight.columns), dtype=torch.float32)
        self._linear(x, weight, None, None, out)
        return out

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        out = torch.empty_like(x)
        dim = x.shape[-1]
        self.operations.call("RmsNorm", len(x), x=x, residual=None, weight=weight, out=out, sum=None, dim=dim, eps=eps)
        return out

    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        out, total = torch.empty_like(x), torch.empty_like(x)
        dim = x.shape[-1]
        self.operations.call(
            "RmsNorm", len(x), x=x, residual=residual, weight=weight, out=out, sum=total, dim=dim, eps=eps
        )
        return out, total

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        out = torch.empty_like(x)
        self.operations.call("Add", len(x), x=x, y=y, out=out, dim=x.shape[-1])
        return out

    def silu_gate(self, gate_up: Tensor) -> Tensor:
        dim = gate_up.shape[-1] // 2
        out = gate_up.new_empty(len(gate_up), dim)
        self.operations.call("SiluGate", len(gate_up), gate_up=gate_up, out=out, dim=dim)
        return out

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
        return native_attention.write_kv(self.operations, qkv, shape, rope, qk_norm, eps, layer, context)

    def attend(
        self, q: Tensor, shape: AttentionShape, layer: KvLayer, context: ForwardContext, sinks: Tensor | None = None
    ) -> Tensor:
        return native_attention.attend(self.operations, q, shape, layer, context, sinks)

    def replay(self, function: Function, limits: DecodeLimits | None = None) -> "Replay":
        return Replay(self.operations, function)

    def _pack_into(self, data: Tensor, weight: Tensor, first: int) -> None:
        columns, depth = weight.shape
        if weight.dtype != data.dtype or weight.stride(1) != 1:
            raise ValueError(
                f"parts must be bf16, each row in one piece, not {weight.dtype} of strides {weight.stride()}"
            )
        stride = weight.stride(0)
        start = weight.as_strided((1,), (1,))
        self.operations.call(
            "PackLinear", 1, source=start, packed=data, columns=columns, depth=depth, stride=stride, first=first
        )

    def _linear(self, x: Tensor, weight: Weight, bias: Tensor | None, out: Tensor | None, wide: Tensor | None) -> None:
        if self.quantisation is not None and weight.format in native_quant.BITS:
            target = wide if out is None else out
            assert target is not None
            native_quant.linear(self.operations, x, weight, bias, target, self.quantisation.activations)
            return
        self.operations.call(
            "Linear",
            len(x),
            x=x,
            weight=weight.data,
            bias=bias,
            out=out,
            out_fp32=wide,
            columns=weight.columns,
            depth=weight.depth,
            segments=weight.segments,
        )


class Replay:
    """A function of [rows, ...] that is recorded at its first call, and again when more rows come than ever."""

    def __init__(self, operations: Operations, function: Callable[[Tensor, ForwardContext], Tensor]) -> None:
        self._operations = operations
        self._function = function
        self._program: Program | None = None

    def __call__(self, x: Tensor, context: ForwardContext) -> Tensor:
        """The result is a view that the next call writes over."""
        rows = len(x)
        if self._program is None or self._program.capacity < rows:
            capacity = 1 << (rows - 1).bit_length()
            example = torch.empty((capacity, *x.shape[1:]), dtype=x.dtype, device="meta")
            self._program = self._operations.record(lambda inputs: self._function(inputs, context), example)
        self._program.inputs[0][:rows].copy_(x)
        return self._program.run(rows, context)
