"""Decode steps on GPUs through torch.compile: what lies between Rayline's own operations is fused by the compiler.

    in a graph                                         computed by
    norms, gate, sums, embedding, rounding to 8 bits   torch's operations, which the compiler fuses
    products of 16 bits                                cuBLAS, or what the compiler takes for it
    rope and cache write, attention, products of       Rayline's, which the compiler does not look into
    rounded weights

Steps are captured (kernels/graphs.py): Python, operators and guards run while a bucket is captured and never again. One
graph serves every bucket, its rows being a number that is not known to the compiler, and one more the bucket of 1.
"""

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from rayline.kernels import rowwise
from rayline.kernels.backend import AttentionShape, KvLayer, RopeTables, Weight
from rayline.kernels.compiled_kernels import compiled
from rayline.kernels.context import ForwardContext
from rayline.kernels.graphs import DecodeLimits, Function, Recorder
from rayline.kernels.library_attention import Library
from rayline.kernels.native_quant import Quantisation
from rayline.kernels.opaque_operations import OpaqueOperations
from rayline.kernels.rowwise import RoundedRows, RowWeight, Rowwise
from rayline.kernels.torch_kernels import TorchKernels
from rayline.kernels.triton_kernels import TritonKernels
from rayline.kernels.triton_quant import QuantisedWeight

log = logging.getLogger(__name__)

Compile = Callable[[Callable[[Tensor], Tensor], Tensor], Callable[[Tensor], Tensor]]
"""A function and some rows -> it, compiled for any number of rows; for one where it is given one."""


class CompiledTritonKernels(TritonKernels):
    """The ordinary class: a prompt's steps are launched as they are, decode steps compiled and captured."""

    def __init__(
        self,
        name: str,
        quantisation: Quantisation | None,
        units: int,
        recorder: Recorder | None = None,
        libraries: Sequence[Library] = (),
        rounding: Rowwise | None = None,
    ) -> None:
        """As `TritonKernels`."""
        super().__init__(name, False, quantisation, units, recorder, libraries, rounding)
        self._opaque = OpaqueOperations(self._attention, units)
        self._compile: Compile = compiled_rows

    def linear(self, x: Tensor, weight: Weight, bias: Tensor | None = None) -> Tensor:
        if torch.compiler.is_compiling():
            return self._linear(x, weight, bias, False)
        return super().linear(x, weight, bias)

    def linear_fp32(self, x: Tensor, weight: Weight) -> Tensor:
        if torch.compiler.is_compiling():
            return self._linear(x, weight, None, True)
        return super().linear_fp32(x, weight)

    def _linear(self, x: Tensor, weight: Weight, bias: Tensor | None, is_wide: bool) -> Tensor:
        if isinstance(weight, QuantisedWeight):
            return self._opaque.group_product(x, weight, bias, is_wide)
        if isinstance(weight, RowWeight):
            return self._opaque.row_product(_rounded(x, weight), weight, bias, is_wide)
        return super().linear_fp32(x, weight) if is_wide else super().linear(x, weight, bias)

    def embedding(self, ids: Tensor, weight: Weight, first: int = 0) -> Tensor:
        if not torch.compiler.is_compiling():
            return super().embedding(ids, weight, first)
        if isinstance(weight, QuantisedWeight):
            return self._opaque.group_rows(ids, weight, first)
        return TorchKernels.embedding(self, ids, weight, first)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        if torch.compiler.is_compiling():
            return TorchKernels.rms_norm(self, x, weight, eps)
        return super().rms_norm(x, weight, eps)

    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        if torch.compiler.is_compiling():
            return TorchKernels.add_rms_norm(self, x, residual, weight, eps)
        return super().add_rms_norm(x, residual, weight, eps)

    def silu_gate(self, gate_up: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            return TorchKernels.silu_gate(self, gate_up)
        return super().silu_gate(gate_up)

    def rounded_rms_norm(self, x: Tensor, weight: Tensor, eps: float, target: RowWeight) -> RoundedRows:
        if torch.compiler.is_compiling():
            return _rounded(self.rms_norm(x, weight, eps), target)
        return super().rounded_rms_norm(x, weight, eps, target)

    def rounded_add_rms_norm(
        self, x: Tensor, residual: Tensor, weight: Tensor, eps: float, target: RowWeight
    ) -> tuple[RoundedRows, Tensor]:
        if torch.compiler.is_compiling():
            normed, total = self.add_rms_norm(x, residual, weight, eps)
            return _rounded(normed, target), total
        return super().rounded_add_rms_norm(x, residual, weight, eps, target)

    def rounded_silu_gate(self, gate_up: Tensor, target: RowWeight) -> RoundedRows:
        if torch.compiler.is_compiling():
            return _rounded(self.silu_gate(gate_up), target)
        return super().rounded_silu_gate(gate_up, target)

    def rounded_linear(self, x: RoundedRows, weight: RowWeight, bias: Tensor | None, is_wide: bool) -> Tensor:
        if torch.compiler.is_compiling():
            return self._opaque.row_product(x, weight, bias, is_wide)
        return super().rounded_linear(x, weight, bias, is_wide)

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
        if torch.compiler.is_compiling():
            return self._opaque.write_kv(qkv, shape, rope, qk_norm, eps, layer)
        return super().write_kv(qkv, shape, rope, qk_norm, eps, layer, context)

    def attend(
        self, q: Tensor, shape: AttentionShape, layer: KvLayer, context: ForwardContext, sinks: Tensor | None = None
    ) -> Tensor:
        if torch.compiler.is_compiling():
            return self._opaque.attend(q, shape, layer, sinks)
        return super().attend(q, shape, layer, context, sinks)

    def replay(self, function: Function, limits: DecodeLimits | None = None) -> Function:
        """Nothing is compiled where nothing may be captured."""
        if limits is None:
            return function
        return self._graphs_for(limits).steps(function, CompiledStep(function, self._opaque, self._compile))


class CompiledStep:
    """A function of one token of each sequence, compiled when it is first called: for one row, and for more."""

    def __init__(self, function: Function, operations: OpaqueOperations, compile_rows: Compile) -> None:
        self._function = function
        self._operations = operations
        self._compile = compile_rows
        self._one: Callable[[Tensor], Tensor] | None = None
        self._many: Callable[[Tensor], Tensor] | None = None

    def __call__(self, x: Tensor, context: ForwardContext) -> Tensor:
        self._operations.begin(context)
        if x.shape[0] == 1:
            self._one = self._one or self._compiled(x, context)
            return self._one(x)
        self._many = self._many or self._compiled(x, context)
        return self._many(x)

    def _compiled(self, x: Tensor, context: ForwardContext) -> Callable[[Tensor], Tensor]:
        function, began_s = self._function, time.perf_counter()
        graph = self._compile(lambda rows: function(rows, context), x)
        rows = "one row" if x.shape[0] == 1 else "any number of rows"
        log.info("compiled a part of decode steps for %s in %.1f s", rows, time.perf_counter() - began_s)
        return graph


def compiled_rows(
    function: Callable[[Tensor], Tensor], x: Tensor, backend: str | Callable[..., Any] = "inductor"
) -> Callable[[Tensor], Tensor]:
    """`function` as one graph for any number of rows from 2 on, or for one. Raises torch's errors for no graph."""
    example = torch.empty_like(x)
    if x.shape[0] > 1:
        torch._dynamo.mark_dynamic(example, 0)
    return compiled(function, example, backend=backend)


def _rounded(x: Tensor, target: RowWeight) -> RoundedRows:
    numbers, steps = rowwise.round_rows(x, target.kind)
    return RoundedRows(numbers, steps, x.dtype)
