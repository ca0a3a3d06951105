"""Decode steps through torch.compile (Ansel et al. 2024), for a cache whose blocks are whole contexts.

    step                                   computed by
    one token of each sequence             a graph compiled for a bucket of 1, 2, 4, 8 .. rows
    anything with a piece of a prompt      the kernels as they are

A graph is compiled ahead of time for one bucket and called without guards: nothing is left that could compile again.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from rayline.kernels.attention import attend_tokens
from rayline.kernels.backend import AttentionShape, KvLayer
from rayline.kernels.context import ForwardContext
from rayline.kernels.graphs import DecodeLimits, Function
from rayline.kernels.native_kernels import NativeKernels
from rayline.kernels.native_quant import Quantisation
from rayline.kernels.operators import OperatorOperations
from rayline.kernels.torch_kernels import PLAIN, TorchKernels, paged

SUFFIX = "-compiled"  # of a numerics class whose sums the compiler may order anew


class Graph(Protocol):
    """A function compiled for a number of rows."""

    def __call__(self, x: Tensor, context: ForwardContext) -> Tensor:
        """At most that many rows; the next call may write over the result."""
        ...


class CompiledTorchKernels(TorchKernels):
    """The operations in torch, fused by the compiler where it can: other bits than theirs."""

    def __init__(self) -> None:
        super().__init__(PLAIN)
        self.name = PLAIN.name + SUFFIX

    def attend(
        self, q: Tensor, shape: AttentionShape, layer: KvLayer, context: ForwardContext, sinks: Tensor | None = None
    ) -> Tensor:
        if not torch.compiler.is_compiling():
            return super().attend(q, shape, layer, context, sinks)
        heads = q.view(len(q), shape.heads, shape.head_dim)
        whole = layer.block_tokens  # the graph knows no lengths: it reads whole slots, and positions mask the rest
        return attend_tokens(heads, paged(layer), context.tables, whole, context.positions, shape, sinks).flatten(1)

    def replay(self, function: Function, limits: DecodeLimits | None = None) -> Function:
        return CompiledSteps(function, lambda x, _: TorchGraph(function, x))


class CompiledNativeKernels(NativeKernels):
    """The operations in C++, called from a compiled graph: their bits."""

    def __init__(self, operations: OperatorOperations, quantisation: Quantisation | None = None) -> None:
        super().__init__(operations, quantisation)
        self._operators = operations

    def replay(self, function: Function, limits: DecodeLimits | None = None) -> Function:  # type: ignore[override]
        plain = super().replay(function)
        return CompiledSteps(plain, lambda x, context: NativeGraph(self._operators, function, x, context))


class CompiledSteps:
    """`plain`, with steps of one token a sequence going through graphs: one for each bucket, made when first met."""

    def __init__(self, plain: Function, compile_graph: Callable[[Tensor, ForwardContext], Graph]) -> None:
        self._plain = plain
        self._compile_graph = compile_graph
        self._graphs: dict[int, Graph] = {}

    def __call__(self, x: Tensor, context: ForwardContext) -> Tensor:
        rows = len(x)
        is_decode = context.starts[-1] == len(context.lens) == rows and context.tables.shape[1] == 1
        if not is_decode:
            return self._plain(x, context)
        bucket = bucket_of(rows)
        graph = self._graphs.get(bucket)
        if graph is None:
            example = x.new_empty((bucket, *x.shape[1:]))
            graph = self._graphs[bucket] = self._compile_graph(example, context)
        return graph(x, context)


def bucket_of(rows: int) -> int:
    """The smallest power of two that holds `rows` rows."""
    return 1 << (rows - 1).bit_length()


@dataclass(frozen=True, slots=True)
class Inputs:
    """Where a graph reads a step: positions and slots int64 [bucket], tables int32 [bucket, 1]."""

    x: Tensor
    positions: Tensor
    slots: Tensor
    tables: Tensor

    def fill(self, x: Tensor, context: ForwardContext) -> None:
        """Rows behind the last one repeat the first: they write its key and value again, where it does."""
        rows = len(x)
        sources = (x, context.positions, context.slots, context.tables)
        for place, source in zip((self.x, self.positions, self.slots, self.tables), sources, strict=True):
            place[:rows].copy_(source)
            place[rows:].copy_(source[:1].expand_as(place[rows:]))


class TorchGraph:
    """A function of torch operations for as many rows as `x` has."""

    def __init__(self, function: Function, x: Tensor) -> None:
        rows = len(x)
        index = torch.zeros(rows, dtype=torch.int64, device=x.device)
        self._inputs = Inputs(x, index, index.clone(), index.to(torch.int32)[:, None].clone())

        def step(x: Tensor, positions: Tensor, slots: Tensor, tables: Tensor) -> Tensor:
            context = ForwardContext(positions, slots, tuple(range(rows + 1)), (1,) * rows, tables, positions)
            return function(x, context)

        inputs = self._inputs
        x.zero_()
        self._graph = compiled(step, inputs.x, inputs.positions, inputs.slots, inputs.tables)

    def __call__(self, x: Tensor, context: ForwardContext) -> Tensor:
        inputs = self._inputs
        inputs.fill(x, context)
        return self._graph(inputs.x, inputs.positions, inputs.slots, inputs.tables)[: len(x)]


class NativeGraph:
    """A function of C++ operations. They are told the rows of each step, so that none computes padding."""

    def __init__(self, operations: OperatorOperations, function: Function, x: Tensor, context: ForwardContext) -> None:
        self._operations = operations
        self._x = x.zero_()
        self._graph = compiled(lambda x: function(x, context), self._x)

    def __call__(self, x: Tensor, context: ForwardContext) -> Tensor:
        rows = len(x)
        self._x[:rows].copy_(x)
        self._operations.begin(rows, context)
        return self._graph(self._x)[:rows]


def missing_compiler() -> str:
    """Why torch.compile cannot build kernels for this machine's CPU; empty when it can."""
    from torch._inductor import cpp_builder, exc  # takes a second to import: only for those who compile

    try:
        cpp_builder.get_cpp_compiler()
    except exc.InvalidCxxCompiler:
        return "torch.compile found no C++ compiler (g++ or clang++, or the one the variable CXX names)"
    return ""


def compiled(
    function: Callable[..., Tensor], *inputs: Tensor, backend: str | Callable[..., Any] = "inductor"
) -> Callable[..., Tensor]:
    """`function` as one graph for inputs of these shapes, sizes that torch was told are dynamic being any. Raises
    torch's errors for what cannot be one graph. backend: torch.compile's."""
    # A bucket's inputs never change their form: there is nothing to guard.
    options: dict[str, str | int | bool | Callable[..., Any]] = {
        "guard_filter_fn": torch.compiler.skip_all_guards_unsafe
    }
    whole: Any = torch.compile(function, backend=backend, fullgraph=True, dynamic=False, options=options)
    with torch._dynamo.config.patch(automatic_dynamic_shapes=False):  # sizes of functions met before mean nothing here
        graph = whole.aot_compile((inputs, {}))
    graph.disable_guard_check()
    run: Callable[..., Tensor] = graph
    return run
