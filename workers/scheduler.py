"""Continuous batching: which tokens of which sequences the next step computes, and what its result means.

Pure bookkeeping: no torch, no clock, no threads. `plan` makes a frozen Plan of token ranges, `commit`
turns a StepResult into events. There is no prefill or decode: a sequence has tokens left to compute.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass

from rayline.protos.errors import Overloaded
from rayline.protos.events import Begun, EngineEvent, Finished, FinishReason, TokenEvent
from rayline.protos.group import GroupLoad
from rayline.protos.plan import Admission, Plan, Sampled, Slice, StepResult
from rayline.protos.types import EngineRequest
from rayline.workers.blocks import BlockPool
from rayline.workers.queue import WaitingQueue
from rayline.workers.sequence import Sequence

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SchedulerLimits:
    """What one group takes on. `depth` is the number of pipeline stages: plans that run at once."""

    block_tokens: int
    max_model_len: int
    max_step_tokens: int
    max_running: int
    max_waiting: int
    depth: int = 1
    prefix_caching: bool = True


@dataclass(slots=True)
class SchedulerStats:
    """Counts since the start."""

    steps: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    preemptions: int = 0
    recomputed_tokens: int = 0


class Scheduler:
    """Waiting and running sequences over one block pool."""

    def __init__(self, limits: SchedulerLimits, pool: BlockPool, eos_token_ids: frozenset[int], epoch: int = 0):
        self.limits = limits
        self.pool = pool
        self.stats = SchedulerStats()
        self._eos = eos_token_ids
        self._epoch = epoch
        self._step = 0
        self._numbers = 0
        self._live: dict[int, Sequence] = {}
        self._by_request: dict[str, Sequence] = {}
        self._waiting = WaitingQueue()
        self._running: list[Sequence] = []
        self._released: list[int] = []

    # ---- requests come and go

    def add(self, request: EngineRequest, now_s: float) -> None:
        """Queue a request the caller has checked. Raises Overloaded when the waiting queue is full."""
        if len(self._waiting) >= self.limits.max_waiting:
            raise Overloaded(
                f"waiting = {len(self._waiting)} requests: at most {self.limits.max_waiting} may wait in a group",
                field="max_waiting",
                retry_after_s=1.0,
            )
        asked = request.params.max_tokens or self.limits.max_model_len
        limit = min(len(request.prompt_ids) + asked, self.limits.max_model_len)
        sequence = Sequence(self._numbers, request, limit, now_s, output_ids=list(request.output_ids))
        self._numbers += 1
        self._live[sequence.number] = sequence
        self._by_request[request.request_id] = sequence
        self._waiting.push(sequence)

    def abort(self, request_id: str) -> list[EngineEvent]:
        """Forget a request at once: its blocks are free before the next plan. Unknown ids are ignored."""
        sequence = self._by_request.get(request_id)
        return [] if sequence is None else [self._finish(sequence, FinishReason.ABORT)]

    @property
    def has_work(self) -> bool:
        return bool(self._live)

    def holds(self, request_id: str) -> bool:
        return request_id in self._by_request

    @property
    def live(self) -> tuple[Sequence, ...]:
        return tuple(self._live.values())

    def load(self) -> GroupLoad:
        return GroupLoad(
            running=len(self._running),
            waiting=len(self._waiting),
            outstanding_tokens=sum(s.outstanding_tokens for s in self._live.values()),
            free_blocks=self.pool.available,
            total_blocks=self.pool.total,
        )

    # ---- one step

    def plan(self, now_s: float) -> Plan | None:
        """The next step, or None when every sequence waits for a result or nothing is left to do."""
        slices: list[Slice] = []
        admitted: list[Admission] = []
        budget = self.limits.max_step_tokens
        for sequence in self._order():
            budget -= self._plan_one(sequence, budget, slices)
        while budget and len(self._running) < self.limits.max_running and (entry := self._next_waiting()):
            self._start(entry, now_s)
            budget -= self._plan_one(entry, budget, slices)
        if not slices:
            return None
        for item in slices:
            sequence = self._live[item.sequence]
            if not sequence.introduced:
                admitted.append(_admission(sequence))
                sequence.introduced = True
        plan = Plan(self._epoch, self._step, tuple(admitted), tuple(slices), tuple(self._released))
        self._released.clear()
        self._step += 1
        self.stats.steps += 1
        return plan

    def commit(self, result: StepResult) -> list[EngineEvent]:
        """Take in sampled tokens. Those of sequences that ended meanwhile are dropped."""
        events: list[EngineEvent] = []
        for sampled in result.sampled:
            sequence = self._live.get(sampled.sequence)
            if sequence is not None:
                events.extend(self._gain(sequence, sampled))
        return events

    # ---- planning

    def _order(self) -> list[Sequence]:
        """Running sequences, the ones that need a single token first: a long prompt never holds up streams.

        With `depth` pipeline stages each plan takes its share of the one-token sequences, so that
        `depth` plans of disjoint sequences keep every stage busy.
        """
        ranked = sorted(self._running, key=lambda s: s.rank)
        single = [s for s in ranked if s.remaining == 1]
        share = -(-len(single) // self.limits.depth)
        ready = [s for s in single if self._is_ready(s)]
        return ready[:share] + [s for s in ranked if s.remaining > 1]

    def _is_ready(self, sequence: Sequence) -> bool:
        """Not while its newest token is still on its way through the stages."""
        return not sequence.pending or self._step - sequence.last_step >= self.limits.depth

    def _plan_one(self, sequence: Sequence, budget: int, slices: list[Slice]) -> int:
        """Append a slice for `sequence` if tokens and blocks allow; returns the tokens it takes."""
        count = min(budget, sequence.remaining)
        if count <= 0 or sequence not in self._running or not self._is_ready(sequence):
            return 0
        if not self._grow(sequence, sequence.planned + count, {item.sequence for item in slices}):
            return 0
        start = sequence.planned
        sequence.planned += count
        samples = sequence.planned == sequence.length
        new_blocks = tuple(sequence.blocks[sequence.sent_blocks :])
        slices.append(Slice(sequence.number, start, count, sequence.sent_blocks, new_blocks, samples))
        sequence.sent_blocks = len(sequence.blocks)
        sequence.pending += samples
        sequence.last_step = self._step
        self._publish(sequence)
        return count

    def _grow(self, sequence: Sequence, tokens: int, in_plan: set[int]) -> bool:
        """Give `sequence` blocks for its first `tokens` tokens, preempting lower-ranked ones if need be."""
        missing = -(-tokens // self.limits.block_tokens) - len(sequence.blocks)
        while missing > self.pool.available:
            victims = [s for s in self._running if s.blocks and s.number not in in_plan and s.rank > sequence.rank]
            if not victims:
                return False
            self._preempt(max(victims, key=lambda s: s.rank), by=sequence)
        if missing > 0:
            sequence.blocks += self.pool.allocate(missing)
        return True

    def _preempt(self, victim: Sequence, by: Sequence) -> None:
        """Take a sequence's blocks; its tokens are recomputed when it runs again. Only an earlier or more
        important request may do this, so the first of all is never preempted and everything ends."""
        log.info(
            "preempted request %s: %d tokens to recompute, blocks wanted by %s",
            victim.request.request_id,
            victim.planned,
            by.request.request_id,
        )
        self.stats.preemptions += 1
        self.stats.recomputed_tokens += victim.planned
        self.pool.release(victim.blocks)
        victim.blocks, victim.planned, victim.sent_blocks, victim.published = [], 0, 0, 0
        victim.preemptions += 1
        self._running.remove(victim)
        self._waiting.push(victim)

    def _next_waiting(self) -> Sequence | None:
        """The first waiting sequence if all its present tokens would fit, else None: no overtaking."""
        sequence = self._waiting.first()
        if sequence is None:
            return None
        reused = self._reusable(sequence)
        need = -(-(sequence.length + 1) // self.limits.block_tokens) - len(reused) + self.pool.idle(reused)
        if need > self.pool.available and self._running:
            return None
        self._waiting.remove(sequence)
        return sequence

    def _reusable(self, sequence: Sequence) -> list[int]:
        """Cached blocks of its prefix. One token at least is computed, since its logits are wanted."""
        if not self.limits.prefix_caching:
            return []
        sequence.extend_hashes(self.limits.block_tokens)
        whole = (sequence.length - 1) // self.limits.block_tokens
        return self.pool.match(sequence.hashes[:whole])

    def _start(self, sequence: Sequence, now_s: float) -> None:
        reused = self._reusable(sequence)
        self.pool.share(reused)
        sequence.blocks = reused
        sequence.published = len(reused)
        sequence.planned = len(reused) * self.limits.block_tokens
        if sequence.started_s is None:
            sequence.started_s = now_s
            sequence.cached_tokens = min(sequence.planned, len(sequence.request.prompt_ids))
            self.stats.prompt_tokens += len(sequence.request.prompt_ids)
            self.stats.cached_tokens += sequence.cached_tokens
        self._running.append(sequence)

    def _publish(self, sequence: Sequence) -> None:
        """Offer the blocks that are full of known tokens to later requests."""
        if not self.limits.prefix_caching:
            return
        sequence.extend_hashes(self.limits.block_tokens)
        full = min(sequence.planned, sequence.known) // self.limits.block_tokens
        for index in range(sequence.published, full):
            self.pool.publish(sequence.blocks[index], sequence.hashes[index])
        sequence.published = max(sequence.published, full)

    # ---- results

    def _gain(self, sequence: Sequence, sampled: Sampled) -> Iterator[EngineEvent]:
        sequence.pending -= 1
        index = len(sequence.output_ids)
        sequence.output_ids.append(sampled.token_id)
        self.stats.output_tokens += 1
        request = sequence.request
        begun = None if sequence.told else Begun(sequence.cached_tokens, sequence.queue_s)
        sequence.told = True
        yield TokenEvent(request.request_id, index, sampled.token_id, sampled.logprob, sampled.top_logprobs, begun)
        params = request.params
        ends_at_eos = not params.ignore_eos or bool(request.rules.grammar)  # a complete grammar leaves nothing else
        stops = sampled.token_id in params.stop_token_ids or (sampled.token_id in self._eos and ends_at_eos)
        if stops:
            yield self._finish(sequence, FinishReason.STOP)
        elif sequence.known >= sequence.limit:
            yield self._finish(sequence, FinishReason.LENGTH)
        elif sequence.blocks:
            self._publish(sequence)

    def _finish(self, sequence: Sequence, reason: FinishReason) -> Finished:
        self.pool.release(sequence.blocks)
        sequence.blocks = []
        del self._live[sequence.number]
        del self._by_request[sequence.request.request_id]
        if sequence.introduced:
            self._released.append(sequence.number)
        if sequence in self._running:
            self._running.remove(sequence)
        else:
            self._waiting.remove(sequence)
        last = sequence.output_ids[-1] if reason is FinishReason.STOP else None
        stopped_by = last if last in sequence.request.params.stop_token_ids else None
        return Finished(
            sequence.request.request_id, reason, sequence.usage, queue_s=sequence.queue_s, stop_reason=stopped_by
        )


def _admission(sequence: Sequence) -> Admission:
    request = sequence.request
    return Admission(sequence.number, request.prompt_ids, tuple(sequence.output_ids), request.params, request.rules)
