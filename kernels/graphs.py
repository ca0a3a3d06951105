"""Decode steps that are captured once and replayed, so that a step costs one launch: CUDA graphs over the paged cache.

    step                                                  computed by
    one token of each sequence, as many as a bucket       the graph of the smallest bucket that holds them
    anything with a piece of a prompt                     the kernels as they are

A graph reads its step from memory that stays: what is behind the last row is a token that only fills the batch (slot
-1, length 1). All graphs of a function share that memory, one result, and one pool for what lies between.
"""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from rayline.kernels.context import ForwardContext, StaticContext

Function = Callable[[Tensor, ForwardContext], Tensor]

FINE, MEDIUM = 16, 128  # rows up to which buckets are powers of two, then multiples of 16, then of 32
MOST_ROWS = 512  # more rows keep the device busy while they are launched


class Recorder(Protocol):
    """Captures what a function launches."""

    def record(self, function: Callable[[], None]) -> Callable[[], None]:
        """Run `function`, capture it, and return what runs the captured launches again, on the same memory."""
        ...


class CudaRecorder:
    """CUDA graphs in one memory pool: they are replayed one after the other, and nothing outlives its graph there."""

    def __init__(self) -> None:
        self._pool: Any = None  # known once there is a graph

    def record(self, function: Callable[[], None]) -> Callable[[], None]:
        function()  # what is compiled or allocated at the first call may not be while capturing
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        # NCCL's watchdog is another thread, and what it does meanwhile is no part of the capture.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            function()
        self._pool = graph.pool()
        replay: Callable[[], None] = graph.replay
        return replay


@dataclass(frozen=True, slots=True)
class DecodeLimits:
    """The largest decode step there can be. rows: sequences; 0 captures nothing. width: blocks of a table."""

    rows: int
    width: int
    block_tokens: int

    @property
    def buckets(self) -> tuple[int, ...]:
        """Rows that have a graph, ascending."""
        return decode_buckets(self.rows)


def decode_buckets(rows: int) -> tuple[int, ...]:
    """Up to `rows` sequences, and to MOST_ROWS: few sizes for few rows, where a padded row costs as much as another."""
    most = min(rows, MOST_ROWS)
    small = [1 << power for power in range(FINE.bit_length())]
    sizes = [*small, *range(2 * FINE, MEDIUM + 1, 16), *range(MEDIUM + 32, MOST_ROWS + 1, 32)]
    return () if most < 1 else (*(size for size in sizes if size < most), most)


@dataclass(frozen=True, slots=True)
class StepInputs:
    """Where graphs read a step; a graph of fewer rows reads the first ones.

    positions, slots int64 [R], starts int32 [R + 1], lens int32 [R], tables int32 [R, width].
    """

    positions: Tensor
    slots: Tensor
    starts: Tensor
    lens: Tensor
    tables: Tensor

    @staticmethod
    def of(limits: DecodeLimits, rows: int, device: torch.device) -> "StepInputs":
        nothing = torch.zeros(rows, dtype=torch.int64, device=device)
        return StepInputs(
            positions=nothing,
            slots=torch.full_like(nothing, -1),
            starts=torch.arange(rows + 1, dtype=torch.int32, device=device),
            lens=torch.ones(rows, dtype=torch.int32, device=device),
            tables=torch.zeros((rows, limits.width), dtype=torch.int32, device=device),
        )

    def context(self, rows: int, limits: DecodeLimits) -> StaticContext:
        """The first `rows` rows as the layers see them: any length that the tables can hold."""
        return StaticContext(
            positions=self.positions[:rows],
            slots=self.slots[:rows],
            starts=tuple(range(rows + 1)),
            lens=(limits.width * limits.block_tokens,) * rows,
            tables=self.tables[:rows],
            wanted=self.starts[:rows].long(),
            device_starts=self.starts[: rows + 1],
            device_lens=self.lens[:rows],
        )

    def fill(self, context: ForwardContext, bucket: int) -> None:
        """Take in a step; the rows behind it, up to the bucket, become padding. Old entries of a table stay behind
        its new end, where nobody looks."""
        rows, width = context.tables.shape
        self.positions[:rows].copy_(context.positions)
        self.slots[:rows].copy_(context.slots)
        self.tables[:rows, :width].copy_(context.tables)
        if rows < bucket:
            self.positions[rows:bucket].zero_()
            self.slots[rows:bucket].fill_(-1)
            self.tables[rows:bucket, 0].zero_()
        torch.add(self.positions[:bucket], 1, out=self.lens[:bucket])


class DecodeGraphs:
    """The graphs of one rank. What `steps` wraps reads the same inputs, which are filled once a step."""

    def __init__(self, recorder: Recorder, limits: DecodeLimits) -> None:
        self.recorder = recorder
        self.limits = limits
        self.buckets = limits.buckets
        self._inputs: StepInputs | None = None
        self._contexts: dict[int, StaticContext] = {}
        self._filled: ForwardContext | None = None

    def steps(self, function: Function, captured: Function | None = None) -> "GraphedSteps":
        """captured: what is captured in place of `function`, called for nothing else."""
        return GraphedSteps(self, function, captured or function)

    def bucket_of(self, x: Tensor, context: ForwardContext) -> int:
        """Rows of the graph that computes this step; 0 when none does."""
        rows = len(x)
        if isinstance(context, StaticContext) or not self.buckets or rows > self.buckets[-1]:
            return 0
        is_decode = rows == len(context.lens) == context.starts[-1] and _are_single(context.starts)
        return bucket_of(rows, self.buckets) if is_decode and context.tables.shape[1] <= self.limits.width else 0

    def context(self, step: ForwardContext, bucket: int) -> StaticContext:
        """What the graph of a bucket reads, with this step's numbers in it."""
        if self._inputs is None:
            self._inputs = StepInputs.of(self.limits, self.buckets[-1], step.positions.device)
        if self._filled is not step:
            self._inputs.fill(step, bucket)
            self._filled = step
        if bucket not in self._contexts:
            self._contexts[bucket] = self._inputs.context(bucket, self.limits)
        return self._contexts[bucket]


class GraphedSteps:
    """`plain`, with decode steps going through graphs: one for each bucket, captured when first met.

    To be met largest first, so that the smaller graphs find their memory in the pool.
    """

    def __init__(self, graphs: DecodeGraphs, plain: Function, to_capture: Function) -> None:
        self._graphs = graphs
        self._plain = plain
        self._to_capture = to_capture
        self._replays: dict[int, Callable[[], None]] = {}
        self._x = self._out = torch.empty(0)

    def __call__(self, x: Tensor, context: ForwardContext) -> Tensor:
        """The next call may write over the result."""
        bucket = self._graphs.bucket_of(x, context)
        if not bucket:
            return self._plain(x, context)
        static, rows = self._graphs.context(context, bucket), len(x)
        if not len(self._x):
            self._x = x.new_zeros((self._graphs.buckets[-1], *x.shape[1:]))
        self._x[:rows].copy_(x)
        if rows < bucket:
            self._x[rows:bucket].zero_()
        if bucket not in self._replays:
            self._replays[bucket] = self._captured(bucket, static)
        self._replays[bucket]()
        return self._out[:rows]

    @property
    def captured(self) -> tuple[int, ...]:
        """Buckets that have a graph."""
        return tuple(sorted(self._replays))

    def _captured(self, bucket: int, context: StaticContext) -> Callable[[], None]:
        x = self._x[:bucket]
        if not len(self._out):
            like = self._plain(x, context)
            self._out = like.new_zeros((self._graphs.buckets[-1], *like.shape[1:]))
        out = self._out[:bucket]
        return self._graphs.recorder.record(lambda: _into(out, self._to_capture(x, context)))


def bucket_of(rows: int, buckets: Sequence[int]) -> int:
    """The smallest bucket that holds `rows` rows; there must be one."""
    return buckets[bisect_left(buckets, rows)]


def _are_single(starts: tuple[int, ...]) -> bool:
    """Whether each sequence has one token: as many tokens as sequences, and none without."""
    return all(starts[at] == at for at in range(len(starts)))


def _into(out: Tensor, result: Tensor) -> None:
    out.copy_(result)
