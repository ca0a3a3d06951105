"""The operations on NVIDIA GPUs: Triton for what torch does in many launches or not at all, cuBLAS for plain products.

Two classes. The ordinary one takes the form of each operation that suits the batch, so a row's bits may change with it.
The exact one takes a single form for all batches, so that a row's bits are its own, as on CPUs.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from rayline.kernels import (
    rowwise,
    triton_elementwise,
    triton_product,
    triton_quant,
    triton_reduce,
    triton_rounding,
    triton_rows,
    triton_rowwise,
)
from rayline.kernels.backend import AttentionShape, KvLayer, RopeTables, Weight
from rayline.kernels.context import ForwardContext
from rayline.kernels.graphs import CudaRecorder, DecodeGraphs, DecodeLimits, Function, Recorder
from rayline.kernels.library_attention import Attention, ChosenAttention, Library
from rayline.kernels.native_quant import Quantisation
from rayline.kernels.peer_memory import FOR_EVER, PeerMemory
from rayline.kernels.rowwise import RoundedRows, RowWeight, Rowwise
from rayline.kernels.sampling import Candidate, RowLogprobs, SampledRows, SamplingRows
from rayline.kernels.torch_kernels import TorchKernels
from rayline.kernels.triton_attention import EXACT, ORDINARY, PagedAttention
from rayline.kernels.triton_quant import QuantisedWeight

UNCUT = 0  # segments of a product whose depth no rank cuts


class TritonKernels(TorchKernels):
    """bf16 and fp16 on GPUs; a layer's order is [blocks, block_tokens, kv_heads, head_dim], as torch's is."""

    def __init__(
        self,
        name: str,
        is_exact: bool,
        quantisation: Quantisation | None,
        units: int,
        recorder: Recorder | None = None,
        libraries: Sequence[Library] = (),
        rounding: Rowwise | None = None,
    ) -> None:
        """name: of the class (kernels/gpu.py). units: processors of the device, which few rows are spread over.
        recorder: of decode steps; CUDA graphs. libraries: asked for attention before Triton, in this order.
        rounding: of weights and activations of all layers to 8 bits."""
        super().__init__()
        self.name = name
        self.exact = is_exact
        self.quantisation = quantisation
        self._rounding: Rowwise | None = rounding
        self._units = units
        self._recorder = recorder or CudaRecorder()
        self._graphs: DecodeGraphs | None = None
        own = PagedAttention(EXACT if is_exact else ORDINARY, units)
        self._attention: Attention = ChosenAttention(libraries, own) if libraries else own

    def pack(self, parts: Sequence[Tensor], segments: int = UNCUT) -> Weight:
        """segments: leaves that a rank holds of a product cut over ranks. Exact and UNCUT: what the depth allows."""
        if self._rounding is not None:
            return rowwise.pack(parts, self._rounding)
        if self.quantisation is not None:
            return triton_quant.pack(parts, self.quantisation.weights, segments)
        whole = parts[0] if len(parts) == 1 else torch.cat(tuple(parts))
        columns, depth = whole.shape
        return Weight(whole.contiguous(), columns, depth, segments or triton_product.leaves_of(depth))

    def table(self, rows: Tensor) -> Weight:
        columns, depth = rows.shape
        return Weight(rows.contiguous(), columns, depth, triton_product.leaves_of(depth))

    def head(self, rows: Tensor) -> Weight:
        """In 8 bits where weights are quantised, in 4 bits too."""
        return self.table(rows) if self.quantisation is None else triton_quant.pack([rows], "int8", UNCUT)

    def tied(self, rows: Tensor) -> Weight:
        return self.head(rows)

    def linear(self, x: Tensor, weight: Weight, bias: Tensor | None = None) -> Tensor:
        if isinstance(weight, QuantisedWeight):
            return triton_quant.linear(x, weight, bias, False, self.exact, self._units)
        if isinstance(weight, RowWeight):
            return triton_rowwise.linear(x, weight, bias, False, self.exact, self._units)
        if self.exact:
            return triton_product.product(x, weight, bias, False, self._units)
        return super().linear(x, weight, bias)

    def linear_fp32(self, x: Tensor, weight: Weight) -> Tensor:
        if isinstance(weight, QuantisedWeight):
            return triton_quant.linear(x, weight, None, True, self.exact, self._units)
        if isinstance(weight, RowWeight):
            return triton_rowwise.linear(x, weight, None, True, self.exact, self._units)
        if self.exact:
            return triton_product.product(x, weight, None, True, self._units)
        return super().linear_fp32(x, weight)

    def embedding(self, ids: Tensor, weight: Weight, first: int = 0) -> Tensor:
        if isinstance(weight, QuantisedWeight):
            return triton_quant.embedding(ids, weight, first)
        return triton_elementwise.embedding(ids, weight.data, first)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return triton_elementwise.rms_norm(x, weight, eps)

    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        return triton_elementwise.add_rms_norm(x, residual, weight, eps)

    def silu_gate(self, gate_up: Tensor) -> Tensor:
        return triton_elementwise.silu_gate(gate_up)

    def rounded_rms_norm(self, x: Tensor, weight: Tensor, eps: float, target: RowWeight) -> RoundedRows:
        """`RoundingKernels` of kernels/rowwise.py, with the three that follow."""
        return triton_rounding.rms_norm(x, weight, eps, target.kind)

    def rounded_add_rms_norm(
        self, x: Tensor, residual: Tensor, weight: Tensor, eps: float, target: RowWeight
    ) -> tuple[RoundedRows, Tensor]:
        return triton_rounding.add_rms_norm(x, residual, weight, eps, target.kind)

    def rounded_silu_gate(self, gate_up: Tensor, target: RowWeight) -> RoundedRows:
        return triton_rounding.silu_gate(gate_up, target.kind)

    def rounded_linear(self, x: RoundedRows, weight: RowWeight, bias: Tensor | None, is_wide: bool) -> Tensor:
        return triton_rowwise.linear(x, weight, bias, is_wide, self.exact, self._units)

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
        return triton_elementwise.write_kv(qkv, shape, rope, qk_norm, eps, layer, context)

    def attend(
        self, q: Tensor, shape: AttentionShape, layer: KvLayer, context: ForwardContext, sinks: Tensor | None = None
    ) -> Tensor:
        return self._attention.attend(q, shape, layer, context, sinks)

    def draw(self, logits: Tensor, rows: SamplingRows) -> SampledRows:
        """`DrawingKernels.draw` of workers/token_sampler.py, as the two that follow."""
        return triton_rows.sample(logits, rows, self._units)

    def score(self, logits: Tensor, token_ids: Sequence[int], tops: Sequence[int]) -> Sequence[RowLogprobs]:
        return triton_rows.score(logits, token_ids, tops, self._units)

    def candidates(self, logits: Tensor, rows: SamplingRows, most: Sequence[int]) -> Sequence[tuple[Candidate, ...]]:
        return triton_rows.best_candidates(logits, rows, most, self._units)

    def can_sum(self, ranks: int) -> bool:
        """`SummingKernels` of workers/symmetric_group.py, as what follows."""
        return ranks in triton_reduce.RANKS

    def sum_ranks(
        self, partial: Tensor, bias: Tensor | None, dtype: torch.dtype, memory: PeerMemory, polls: int = FOR_EVER
    ) -> Tensor:
        return triton_reduce.sum_ranks(partial, bias, dtype, memory, polls)

    def replay(self, function: Function, limits: DecodeLimits | None = None) -> Function:
        return function if limits is None else self._graphs_for(limits).steps(function)

    def _graphs_for(self, limits: DecodeLimits) -> DecodeGraphs:
        """One for all functions of a step, which read the same inputs."""
        if self._graphs is None or self._graphs.limits != limits:
            self._graphs = DecodeGraphs(self._recorder, limits)
        return self._graphs
