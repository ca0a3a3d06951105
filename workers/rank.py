"""The process of one rank: connect to the leader, join the group, load, then follow plans until told to stop.

Started by a launcher (`python -m rayline.workers.rank ADDRESS RANK`, or a Ray actor). End-of-file on
the leader's socket ends the process: no rank outlives its leader.
"""

import os
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]  # public, but not in its __all__

from rayline.cluster.machine import interface_towards
from rayline.cluster.parallel import Parallel
from rayline.kernels.backend import Kernels
from rayline.kernels.graphs import CudaRecorder, Recorder
from rayline.kernels.native_kernels import NativeKernels
from rayline.protos import internal_pb2 as pb
from rayline.protos.errors import InternalError, RaylineError, Unavailable
from rayline.protos.plan import Plan
from rayline.protos.plan_wire import plan_of, result_to_pb
from rayline.workers.agreement import sums_are_captured
from rayline.workers.channel import Channel, connect
from rayline.workers.collectives import Alone, Collective, SharedMemoryGroup, TensorParallelGroup
from rayline.workers.devices import COLLECTIVE_LIMIT, Staging, agree_on_backend, set_up_nccl, take_gpu
from rayline.workers.lines import Line
from rayline.workers.rank_wire import loaded_to_pb, spec_of, stats_to_pb
from rayline.workers.spec import RankSpec
from rayline.workers.stages import Lines, StageLinks
from rayline.workers.symmetric_group import TorchMeeting, fastest_group
from rayline.workers.worker import Worker, kernels_of, torch_dtype

SECRET_VARIABLE = "RAYLINE_SECRET"
CONNECT_TIMEOUT_S = 30.0
PROGRESS_PERIOD_S = 0.1
POLL_S = 50e-6  # between two looks at a step that runs and at the leader


def serve_rank(addresses: Sequence[str], rank: int, secret: str) -> bool:
    """Live as rank `rank` of a group until told to stop; False when the leader was lost instead.

    `addresses`: where its leader listens; a Unix socket counts only if it is on this node.
    """
    address = next(a for a in addresses if not a.startswith("unix:") or Path(a.removeprefix("unix:")).exists())
    channel = connect(address, CONNECT_TIMEOUT_S)
    channel.send(pb.WorkerFrame(hello=pb.Hello(secret=secret, rank=rank)))
    try:
        orders = Orders(channel, _start(channel))
        while orders.follow():
            pass
        return True
    except Unavailable:
        return False  # the leader is gone, and with it the group
    except RaylineError as error:
        _report(channel, error)
        return True
    except Exception as error:
        _report(channel, InternalError(f"rank {rank}: {type(error).__name__}: {error}"))
        raise
    finally:
        channel.close()


def _start(channel: Channel) -> Worker:
    """The loading dialogue: orders, weights, size of the KV cache."""
    spec = spec_of(channel.receive_leader_frame().load)
    gpu = take_gpu(spec.parallel.rank) if spec.device == "cuda" else ""
    kernels = kernels_of(spec)
    collective, stages = join(spec, kernels, gpu)
    spec = with_graphs(spec, collective)
    worker, reporter = Worker(spec, kernels, collective, stages), _Reporter(channel)
    loaded = worker.load(reporter)
    channel.send(pb.WorkerFrame(loaded=loaded_to_pb(loaded)))
    worker.allocate(channel.receive_leader_frame().allocate.blocks, reporter)
    channel.send(pb.WorkerFrame(ready=pb.Ready()))
    return worker


class Orders:
    """What the leader says, followed in its order. A rank that may launches the next plan while a step runs."""

    def __init__(self, channel: Channel, worker: Worker):
        self._channel = channel
        self._worker = worker
        self._steps = worker.steps
        self._window = worker.launch_window
        self._waiting: deque[Plan | pb.LeaderFrame] = deque()

    def follow(self) -> bool:
        """Do one thing; False when the leader says stop."""
        while self._channel.has_frame() or not (self._waiting or self._steps.in_flight):
            self._receive()
        if self._steps.in_flight and not (self._has_room and self._await_plan()):
            self._finish()
            return True
        order = self._waiting.popleft()
        if isinstance(order, Plan):
            self._steps.begin(order)
            return True
        if order.HasField("stats"):
            self._channel.send(pb.WorkerFrame(stats=stats_to_pb(self._worker.stats())))
        return not order.HasField("stop")

    @property
    def _has_room(self) -> bool:
        return self._steps.in_flight < self._window

    def _await_plan(self) -> bool:
        """Launch the running step's sampling and look out for a plan until the step is over: whether one is next. Other
        orders wait for the end of steps."""
        if not self._waiting:
            self._steps.sample()
        while not self._waiting and not self._steps.is_over:
            if self._channel.has_frame(POLL_S):
                self._receive()
        return bool(self._waiting) and isinstance(self._waiting[0], Plan)

    def _finish(self) -> None:
        result = self._steps.finish()
        if result is not None:
            self._channel.send(pb.WorkerFrame(result=result_to_pb(result)))

    def _receive(self) -> None:
        """A frame as it is, or the plan in it, which the worker is told of ahead of its turn."""
        frame = self._channel.receive_leader_frame()
        if not frame.HasField("plan"):
            self._waiting.append(frame)
            return
        plan, epoch = plan_of(frame.plan), self._worker.spec.epoch
        if plan.epoch != epoch:
            raise InternalError(f"plan of epoch {plan.epoch} came to epoch {epoch}")
        self._steps.foresee(plan)
        self._waiting.append(plan)


def join(spec: RankSpec, kernels: Kernels, gpu: str = "") -> tuple[Collective, StageLinks | None]:
    """This rank's links to the others. All ranks make the same groups in the same order. gpu: its id, "" for a CPU."""
    parallel = spec.parallel
    if parallel.world_size == 1:
        return Alone(), None
    # gloo would ask the resolver for this host's address, which often names another interface.
    if "GLOO_SOCKET_IFNAME" not in os.environ and (interface := interface_towards(spec.store_host)):
        os.environ["GLOO_SOCKET_IFNAME"] = interface
    store = TCPStore(spec.store_host, spec.store_port, is_master=False)
    backend = agree_on_backend(store, parallel.rank, parallel.world_size, gpu)
    set_up_nccl()
    dist.init_process_group(
        backend, timeout=COLLECTIVE_LIMIT, store=store, rank=parallel.rank, world_size=parallel.world_size
    )
    staging = Staging(torch.device(spec.device), is_on=backend == "gloo" and spec.device == "cuda")
    collective: Collective = Alone()
    if parallel.tp_size > 1 and isinstance(kernels, NativeKernels):
        stage_store = PrefixStore(f"stage {parallel.stage}", store)
        collective = SharedMemoryGroup.join(kernels.operations, stage_store, parallel.tp_size, parallel.tp_rank)
    elif parallel.tp_size > 1:
        firsts = range(0, parallel.world_size, parallel.tp_size)
        groups = [dist.new_group(list(range(first, first + parallel.tp_size))) for first in firsts]
        group = groups[parallel.stage]
        gathered = TensorParallelGroup(group, parallel.tp_size, staging)
        meeting = TorchMeeting(group, parallel.tp_rank)
        dtype = torch_dtype(spec.dtype)
        collective = fastest_group(gathered, kernels, spec.kernels.all_reduce, meeting, dtype, staging.device)
    if parallel.pp_size == 1:
        return collective, None
    return collective, StageLinks(_lines(parallel, staging))


def _lines(parallel: Parallel, staging: Staging) -> Lines:
    """A group for each two ranks of which one sends to the other: all ranks make all of them, in one order."""

    def line(source: Parallel, target: Parallel) -> Line | None:
        group = dist.new_group(sorted((source.rank, target.rank)))
        if parallel in (source, target):
            return Line(group, target.rank if parallel == source else source.rank, staging)
        return None

    found: list[Lines] = []
    for tp_rank in range(parallel.tp_size):
        places = [replace(parallel, tp_rank=tp_rank, stage=stage) for stage in range(parallel.pp_size)]
        hidden = [None, *(line(*neighbours) for neighbours in pairwise(places)), None]
        tokens = line(places[-1], places[0])
        found.append(Lines(hidden[parallel.stage], hidden[parallel.stage + 1], tokens))
    return found[parallel.tp_rank]


def with_graphs(spec: RankSpec, collective: Collective, recorder: Recorder | None = None) -> RankSpec:
    """The orders without decode graphs where sums between ranks cannot be captured. recorder: CUDA graphs."""
    if not spec.graph_rows or collective.tp_size == 1:
        return spec
    dtype, device = torch_dtype(spec.dtype), torch.device(spec.device)
    can = sums_are_captured(collective, recorder or CudaRecorder(), dtype, device)
    return spec if can else replace(spec, graph_rows=0)


class _Reporter:
    """Tells the leader how far a phase is, a few times a second."""

    def __init__(self, channel: Channel):
        self._channel = channel
        self._last_s = 0.0

    def __call__(self, phase: str, done: int, total: int) -> None:
        now = time.monotonic()
        if done < total and now - self._last_s < PROGRESS_PERIOD_S:
            return
        self._last_s = now
        self._channel.send(pb.WorkerFrame(progress=pb.Progress(phase=phase, done=done, total=total)))


def _report(channel: Channel, error: RaylineError) -> None:
    try:
        channel.send(pb.WorkerFrame(failed=pb.RankFailed(kind=error.kind, message=error.message)))
    except Unavailable:
        return


if __name__ == "__main__":
    serve_rank([sys.argv[1]], int(sys.argv[2]), os.environ.pop(SECRET_VARIABLE))
