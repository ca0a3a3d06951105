"""The engine over a decoder of random weights: its steps as a leader plans them, and what lies between."""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch

from rayline.cluster.parallel import Parallel
from rayline.kernels.backend import Kernels
from rayline.kernels.graphs import decode_buckets
from rayline.protos.events import Finished
from rayline.protos.plan import Plan, Refused, Sampled
from rayline.protos.types import EngineRequest, SamplingParams
from rayline.workers.batch import idle_tokens
from rayline.workers.bench.gpu.machine import Machine
from rayline.workers.bench.gpu.model_run import ModelRun
from rayline.workers.collectives import Alone
from rayline.workers.engine import Engine
from rayline.workers.in_process import InProcess
from rayline.workers.last_stage import LastStage
from rayline.workers.marks import marks_of
from rayline.workers.mask import ANYTHING, Mask
from rayline.workers.models.config import ModelConfig
from rayline.workers.pipeline import RankStats
from rayline.workers.resident import Residents
from rayline.workers.scheduling.blocks import BlockPool
from rayline.workers.scheduling.scheduler import Scheduler, SchedulerLimits
from rayline.workers.step_clock import StepClock
from rayline.workers.steps import Stage, Steps
from rayline.workers.token_feed import TokenFeed
from rayline.workers.token_sampler import token_sampler

STEP_TOKENS = 2048  # of prompts at once


class NoGrammars:
    """Every token may come: the library that follows grammars is not needed here."""

    def follow(self, plan: Plan) -> None:
        """No plan speaks of any."""

    def mask(self, number: int) -> Mask:
        return ANYTHING

    def accept(self, sampled: tuple[Sampled, ...]) -> tuple[tuple[Sampled, ...], tuple[Refused, ...]]:
        return sampled, ()

    def refused(self, numbers: Iterable[int]) -> tuple[Refused, ...]:
        return ()


@dataclass(frozen=True, slots=True)
class Decoded:
    """Decode steps of an engine, all streams in each. clock: what its device says of them."""

    wall_s: float
    clock: StepClock

    @property
    def gap_share(self) -> float:
        """Of the time from the first step's beginning to the last one's end: the device had nothing to do."""
        return self.clock.gap_s / (self.clock.gap_s + self.clock.busy_s)


class EngineRun:
    """`sequences` streams of `context` prompt tokens and `outputs` greedy ones. Raises NoRoom."""

    def __init__(
        self,
        machine: Machine,
        config: ModelConfig,
        kernels: Kernels,
        *,
        sequences: int,
        context: int,
        outputs: int,
        launch_window: int,
    ) -> None:
        self._machine = machine
        self._requests = [_request(number, config, context, outputs) for number in range(sequences)]
        self.model = ModelRun(
            machine, config, kernels, sequences=sequences, tokens=context + outputs,
            graph_rows=sequences if machine.is_cuda else 0,
        )  # fmt: skip
        residents = Residents()
        feed = TokenFeed(residents, machine.device)
        sampler = token_sampler(kernels, Alone(), config.vocab_size, 0)
        last = LastStage(sampler, NoGrammars(), residents, feed, config.eos_token_ids, config.vocab_size, None)
        model, size = self.model, self.model.block_tokens
        stage = Stage(Parallel(), model.decoder, model.cache, residents, feed, last, None, size, machine.device)
        self.steps = Steps(stage, marks_of(machine.device))
        limits = SchedulerLimits(
            block_tokens=size,
            max_model_len=context + outputs,
            max_step_tokens=max(STEP_TOKENS, sequences),
            max_running=sequences,
            max_waiting=sequences,
            prefix_caching=False,
        )
        scheduler = Scheduler(limits, BlockPool(sequences * model.width), frozenset(config.eos_token_ids))
        pipeline = InProcess(self.steps, self._stats, launch_window)
        self._engine = Engine(scheduler, pipeline, config.vocab_size, time.perf_counter)

    def decode(self, forbids_waits: bool = False) -> Decoded:
        """Compute all prompts, then time steps until the first stream ends. forbids_waits: raise RuntimeError where the
        host waits for a GPU but at a step's end."""
        self._capture()
        for request in self._requests:
            self._engine.add(request)
        missing = {request.request_id for request in self._requests}
        while missing:
            missing -= {event.request_id for event in self._engine.step()}
        self.steps.clock = StepClock()
        is_over = False
        with _no_waits() if forbids_waits and self._machine.is_cuda else nullcontext():
            began_s = time.perf_counter()
            while not is_over:
                is_over = any(isinstance(event, Finished) for event in self._engine.step())
            found = Decoded(time.perf_counter() - began_s, self.steps.clock)
        self.steps.clock = StepClock()
        while self._engine.has_work:
            self._engine.step()
        return found

    @torch.inference_mode()
    def _capture(self) -> None:
        """The graphs of all decode steps, so that none is captured while time is taken."""
        decoder, cache = self.model.decoder, self.model.cache
        for rows in reversed(decode_buckets(self.model.graph_rows)):
            decoder.forward(decoder.blank(rows), cache, idle_tokens(rows, self._machine.device))

    def _stats(self) -> RankStats:
        clock = self.steps.clock
        return RankStats(0, 0, clock.busy_s, clock.busy_s + clock.gap_s, 0, self.model.cache.bytes, 0, 0, 0)


@contextmanager
def _no_waits() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def _request(number: int, config: ModelConfig, context: int, outputs: int) -> EngineRequest:
    """Of tokens that differ from request to request."""
    prompt = tuple((number * 104729 + at * 7919) % config.vocab_size for at in range(context))
    params = SamplingParams(temperature=0.0, max_tokens=outputs, ignore_eos=True, seed=0)
    return EngineRequest(f"bench-{number}", prompt, params)
