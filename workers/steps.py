"""The steps of one rank: each launched in two halves, and read back once the next one's first half has been launched.

    host     S1 F2 | reads 1 | tells of 1, plan 3 comes | S2 F3 | reads 2 | ..
    device   [S1][----------------- F2 -----------------][S2][-------- F3 ---

F: the forward pass, whose ids are taken on the device. S: sampling, for which penalties, grammars and the like need all
earlier tokens on the host. Who reads a step back before the next one begins has the order F1 S1, reads 1, F2 S2 ..
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from rayline.cluster.parallel import Parallel
from rayline.protos.plan import Plan, StepResult
from rayline.workers.batch import Wanted, forward_context, wanted
from rayline.workers.cache import KvCache
from rayline.workers.last_stage import Answer, LastStage
from rayline.workers.marks import Mark
from rayline.workers.models.decoder import Decoder
from rayline.workers.resident import Residents
from rayline.workers.stages import StageLinks
from rayline.workers.step_clock import Span, StepClock
from rayline.workers.token_feed import TokenFeed


@dataclass(frozen=True, slots=True)
class Stage:
    """What a rank computes steps with. last: None on other stages than the last one; links: None where there is one."""

    place: Parallel
    decoder: Decoder
    cache: KvCache
    residents: Residents
    feed: TokenFeed
    last: LastStage | None
    links: StageLinks | None
    block_tokens: int
    device: torch.device


@dataclass(slots=True)
class Step:
    """One that was launched. pushed: what had been given to the feed by then. held: memory that its launches read and
    that belongs to other queues. answer, sampling: of its second half, None until that is launched."""

    plan: Plan
    asked: Wanted
    output: Tensor
    forward: Span
    pushed: int
    held: tuple[Tensor, ...]
    answer: Answer | None = None
    sampling: Span | None = None

    @property
    def ended(self) -> Mark:
        return (self.sampling or self.forward).ended


class Steps:
    """Computes plans in the order they come. `mark` makes marks in the queue of the rank's device."""

    def __init__(self, stage: Stage, mark: Callable[[], Mark]) -> None:
        self.clock = StepClock()
        self._stage = stage
        self._mark = mark
        self._running: deque[Step] = deque()

    @property
    def in_flight(self) -> int:
        """Steps that were begun and not finished: two at most."""
        return len(self._running)

    @property
    def is_over(self) -> bool:
        """Whether `finish` would wait for nothing."""
        return self._running[0].ended.is_reached()

    def foresee(self, plan: Plan) -> None:
        """Told of each plan as soon as it comes, before earlier ones are computed."""
        if self._stage.links is not None:
            self._stage.links.foresee(*self._hidden(plan))

    def begin(self, plan: Plan) -> None:
        """Launch the forward pass of the next plan, behind all of the step before. Of that one nothing is awaited, nor
        of the stage before, where messages are the device's."""
        if self._running:
            self.sample()
        stage = self._stage
        stage.residents.follow(plan)
        if stage.last is not None:
            stage.last.follow(plan)
        asked = wanted(plan.slices, stage.residents)
        context = forward_context(plan.slices, stage.residents, asked.tokens, stage.block_tokens, stage.device)
        with torch.inference_mode():
            if plan.copies:
                stage.cache.copy(plan.copies)
            inputs = self._inputs(plan)
            began = self._mark()
            output = stage.decoder.forward(inputs, stage.cache, context)
            forward = Span(began, self._mark())
            if stage.last is None:
                self._hand_on(asked, output)
        held = (inputs, *stage.feed.held)
        self._running.append(Step(plan, asked, output, forward, stage.feed.pushed, held))

    def sample(self) -> None:
        """Launch the second half of the newest step, if it is not: the step before must be finished."""
        last = self._stage.last
        if last is None or not self._running or self._running[-1].answer is not None:
            return
        assert len(self._running) == 1, "a step samples when all tokens before are known"
        step, began = self._running[0], self._mark()
        with torch.inference_mode():
            step.answer = last.sample(step.asked, step.output)
        step.pushed = self._stage.feed.pushed
        step.sampling = Span(began, self._mark())

    def finish(self) -> StepResult | None:
        """Wait for the oldest step. Only the reporting rank of the last stage returns a result."""
        if len(self._running) == 1:
            self.sample()
        step = self._running.popleft()
        step.ended.wait()
        self._stage.feed.settle(step.pushed)
        busy_s, sample_s = self.clock.forward(step.forward), 0.0
        if step.sampling is not None:
            sample_s = self.clock.sampling(step.sampling, bool(step.asked.sampling or step.asked.beams))
        if self._stage.last is None or step.answer is None:
            return None
        result = self._stage.last.result(step.plan, step.asked, step.answer, busy_s + sample_s, sample_s)
        return result if self._stage.place.reports else None

    def _inputs(self, plan: Plan) -> Tensor:
        """Token ids [T] on the first stage, the previous stage's hidden states [T, hidden] on the others."""
        stage = self._stage
        if stage.links is None:
            return stage.feed.inputs(plan.slices)
        if not stage.place.is_first_stage:
            return stage.links.next_hidden(*self._hidden(plan))
        while stage.feed.lacks(plan.slices):
            stage.feed.push(stage.links.next_tokens())
        return stage.feed.inputs(plan.slices)

    def _hidden(self, plan: Plan) -> tuple[tuple[int, int], torch.dtype]:
        """Shape and dtype of the hidden states between stages."""
        decoder = self._stage.decoder
        return (plan.tokens, decoder.hidden_size), decoder.dtype

    def _hand_on(self, asked: Wanted, output: Tensor) -> None:
        """Pass hidden states on; the first stage will also be told what the last one samples. Tokens of beams come with
        later plans."""
        links = self._stage.links
        assert links is not None
        links.send_hidden(output.clone())  # the next step writes over it
        if self._stage.place.is_first_stage and asked.sampling:
            links.expect_tokens(asked.sampling)
