"""Continuous batching: which tokens of which sequences the next step computes, and what its result means.

Pure bookkeeping: no torch, no clock, no threads. `plan` makes a frozen Plan of token ranges, `commit`
turns a StepResult into events. There is no prefill or decode: a sequence has tokens left to compute.
A request is one sequence, or as many as it has beams; choices of one family fork from the first of them.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass

from rayline.protos.errors import InvalidRequest, Overloaded
from rayline.protos.events import (
    Begun,
    EngineEvent,
    Failed,
    Finished,
    FinishReason,
    PromptScores,
    TokenEvent,
    TokenLogprob,
    Usage,
)
from rayline.protos.group import GroupLoad
from rayline.protos.plan import Admission, Fork, Gain, Plan, Sampled, Slice, StepResult
from rayline.protos.types import EngineRequest
from rayline.workers.beams import Heir, end_ids, rules_of
from rayline.workers.blocks import BlockPool
from rayline.workers.draft import Draft
from rayline.workers.families import Families
from rayline.workers.queue import WaitingQueue
from rayline.workers.searches import BeamSearch
from rayline.workers.sequence import Place, Sequence
from rayline.workers.tables import BlockTables

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
    forks: int = 0
    copied_blocks: int = 0


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
        self._now_s = 0.0
        self._live: dict[int, Sequence] = {}
        self._by_request: dict[str, Sequence] = {}  # the first sequence of each
        self._searches: dict[str, BeamSearch] = {}
        self._families = Families()
        self._waiting = WaitingQueue()
        self._running: list[Sequence] = []
        self._tables = BlockTables(pool, limits.block_tokens, limits.prefix_caching)
        self._draft = Draft()

    # ---- requests come and go

    def add(self, request: EngineRequest, now_s: float) -> None:
        """Queue a request the caller has checked. Raises Overloaded when the waiting queue is full."""
        if (waiting := len(self._waiting) + self._families.waiting) >= self.limits.max_waiting:
            raise Overloaded(
                f"waiting = {waiting} requests: at most {self.limits.max_waiting} may wait in a group",
                field="max_waiting",
                retry_after_s=1.0,
            )
        asked = request.params.max_tokens or self.limits.max_model_len
        limit = min(len(request.prompt_ids) + asked, self.limits.max_model_len)
        sequence = self._new_sequence(request, limit, now_s)
        sequence.output_ids = list(request.output_ids)
        self._by_request[request.request_id] = sequence
        if sequence.is_beam:
            rules = rules_of(request.params, self._eos, limit - len(request.prompt_ids))
            self._searches[request.request_id] = BeamSearch(rules, [sequence])
        if not self._families.join(sequence):
            self._queue(sequence)

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
    def request_ids(self) -> tuple[str, ...]:
        return tuple(self._by_request)

    @property
    def live(self) -> tuple[Sequence, ...]:
        return tuple(self._live.values())

    def load(self) -> GroupLoad:
        return GroupLoad(
            running=len(self._running),
            waiting=len(self._waiting) + self._families.waiting,
            outstanding_tokens=sum(s.outstanding_tokens for s in self._live.values()),
            free_blocks=self.pool.available,
            total_blocks=self.pool.total,
        )

    def _new_sequence(self, request: EngineRequest, limit: int, arrived_s: float, order: int | None = None) -> Sequence:
        number = self._numbers
        sequence = Sequence(number, request, limit, arrived_s, number if order is None else order)
        self._numbers += 1
        self._live[number] = sequence
        return sequence

    def _queue(self, sequence: Sequence) -> None:
        sequence.place = Place.QUEUED
        self._waiting.push(sequence)

    def _run(self, sequence: Sequence) -> None:
        sequence.place = Place.RUNNING
        self._running.append(sequence)

    # ---- one step

    def plan(self, now_s: float) -> Plan | None:
        """The next step, or None when every sequence waits for a result or nothing is left to do."""
        draft, self._now_s = self._draft, now_s
        draft.open(self.limits.max_step_tokens)
        for sequence in self._order():
            self._plan_one(sequence)
        while draft.budget and (entry := self._next_waiting()):
            self._start(entry)
            self._plan_one(entry)
        if not draft.slices:
            self._unblock()
        if not draft.slices:
            return None
        plan = draft.close(self._epoch, self._step)
        self._draft = Draft()
        self._step += 1
        self.stats.steps += 1
        return plan

    def commit(self, result: StepResult) -> list[EngineEvent]:
        """Take in what the workers answered. What concerns sequences that ended meanwhile is dropped."""
        events: list[EngineEvent] = []
        for scored in result.scored:
            if (sequence := self._live.get(scored.sequence)) is not None:
                events.append(PromptScores(sequence.request.request_id, scored.start, scored.tokens))
        for refused in result.refused:
            if (sequence := self._live.get(refused.sequence)) is not None:
                events.append(self._refuse(sequence, refused.message))
        for sampled in result.sampled:
            if (sequence := self._live.get(sampled.sequence)) is not None:
                events.extend(self._gain(sequence, sampled))
        for answer in result.candidates:
            if (sequence := self._live.get(answer.sequence)) is not None:
                events.extend(self._search(sequence, answer.tokens))
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

    def _plan_one(self, sequence: Sequence) -> None:
        """Add a slice for `sequence` if tokens and blocks allow."""
        count, scores = self._count(sequence)
        if count <= 0 or sequence.place is not Place.RUNNING or not self._is_ready(sequence):
            return
        if not self._grow(sequence, sequence.planned + count):
            return
        start = sequence.planned
        sequence.planned += count
        sequence.last_step = self._step
        if scores:
            sequence.scored = sequence.planned
        samples = sequence.planned == sequence.length
        if not sequence.introduced:
            self._draft.admitted.append(_admission(sequence))
            sequence.introduced = True
        forks = self._fork_choices(sequence) if samples and self._families.is_trunk(sequence) else ()
        new_blocks = tuple(sequence.blocks[sequence.sent_blocks :])
        self._draft.add(Slice(sequence.number, start, count, sequence.sent_blocks, new_blocks, samples, forks, scores))
        sequence.sent_blocks = len(sequence.blocks)
        if samples and sequence.is_beam:
            sequence.is_idle = sequence.awaited = True
        elif samples:
            sequence.pending += 1
        self._tables.publish(sequence)

    def _count(self, sequence: Sequence) -> tuple[int, bool]:
        """Tokens of its next slice, and whether the ones behind them are scored. No slice is scored in part."""
        count = min(self._draft.budget, sequence.remaining)
        if not sequence.unscored:
            return count, False
        if sequence.planned < sequence.scored:
            return min(count, sequence.scored - sequence.planned), False
        return min(count, self._draft.scores_budget), True

    def _grow(self, sequence: Sequence, tokens: int) -> bool:
        """Give `sequence` blocks for its first `tokens` tokens, preempting lower-ranked ones if need be."""
        while self._tables.missing(sequence, tokens) > self.pool.available:
            victims = [s for s in self._running if s.blocks and s.number not in self._draft.members]
            victims = [s for s in victims if s.rank > sequence.rank]
            if not victims:
                return False
            self._preempt(max(victims, key=lambda s: s.rank), by=sequence)
        copies = self._tables.extend(sequence, tokens)
        self._draft.copies += copies
        self.stats.copied_blocks += len(copies)
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
        victim.preemptions += 1
        self._tables.release(victim)
        self._running.remove(victim)
        victim.place = Place.ASIDE
        if not victim.is_idle:
            self._queue(victim)

    def _next_waiting(self) -> Sequence | None:
        """The first waiting sequence if all its present tokens would fit, else None: no overtaking."""
        sequence = self._waiting.first()
        if sequence is None or not self._has_place(sequence):
            return None
        if self._running and not self._fits(sequence):
            return None
        self._waiting.remove(sequence)
        return sequence

    def _fits(self, sequence: Sequence) -> bool:
        return self._tables.to_start(sequence, self._reusable(sequence)) <= self.pool.available

    def _has_place(self, sequence: Sequence) -> bool:
        """A search keeps the places of all its beams as long as one of them runs."""
        places = self._places()
        needed = 0 if sequence.request.request_id in places else max(1, sequence.request.params.beam_width)
        return sum(places.values()) + needed <= self.limits.max_running

    def _places(self) -> dict[str, int]:
        """Places taken by each running request."""
        return {s.request.request_id: max(1, s.request.params.beam_width) for s in self._running}

    def _reusable(self, sequence: Sequence) -> list[int]:
        search = self._searches.get(sequence.request.request_id)
        return self._tables.reusable(sequence, search.beams if search else ())

    def _start(self, sequence: Sequence) -> None:
        self._tables.start(sequence, self._reusable(sequence))
        if sequence.started_s is None:
            self._count_start(sequence, sequence.planned)
        self._run(sequence)

    def _count_start(self, sequence: Sequence, reused_tokens: int) -> None:
        sequence.started_s = self._now_s
        sequence.cached_tokens = min(reused_tokens, len(sequence.request.prompt_ids))
        self.stats.prompt_tokens += len(sequence.request.prompt_ids)
        self.stats.cached_tokens += sequence.cached_tokens

    def _fork_choices(self, trunk: Sequence) -> tuple[int, ...]:
        """The choices that sample from the trunk's first logits: as many as there are places, and blocks to write."""
        room = min(self.limits.max_running - sum(self._places().values()), self.pool.available)
        children, others = self._families.split(trunk, max(0, room))
        for child in children:
            self._tables.fork(trunk, child)
            self._draft.forked.append(Fork(child.number, trunk.number, child.request.params))
            self._count_start(child, child.planned)
            child.pending = 1
            self._run(child)
        for other in others:
            self._queue(other)
        self.stats.forks += len(children)
        return tuple(child.number for child in children)

    def _unblock(self) -> None:
        """Idle beams can hold so many blocks and places that nobody moves. The first of all that have work takes what
        it needs then; candidates in hand are kept, so each time at least one more answer is there for good."""
        if any(s.pending or s.awaited for s in self._live.values()):
            return
        stuck = [s for s in self._live.values() if s.remaining and s.place is not Place.ASIDE]
        if not stuck:
            return
        first = min(stuck, key=lambda s: s.rank)
        others = sorted((s for s in self._running if s is not first), key=lambda s: s.rank)
        while others and not self._can_move(first):
            self._preempt(others.pop(), by=first)
        if first.place is Place.QUEUED:
            self._waiting.remove(first)
            self._start(first)
        self._plan_one(first)

    def _can_move(self, sequence: Sequence) -> bool:
        if sequence.place is Place.QUEUED:
            return self._has_place(sequence) and self._fits(sequence)
        return self._tables.missing(sequence, sequence.planned + self._count(sequence)[0]) <= self.pool.available

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
        if sampled.token_id in end_ids(request.params, self._eos):
            yield self._finish(sequence, FinishReason.STOP)
        elif sequence.known >= sequence.limit:
            yield self._finish(sequence, FinishReason.LENGTH)
        elif sequence.blocks:
            self._tables.publish(sequence)

    def _search(self, beam: Sequence, candidates: tuple[TokenLogprob, ...]) -> Iterator[EngineEvent]:
        search = self._searches[beam.request.request_id]
        heirs = search.answer(beam, candidates)
        if heirs is None:
            return
        if not search.search.is_over:
            self._succeed(search, heirs)
            return
        first, best = self._by_request[beam.request.request_id], search.best
        usage = Usage(len(beam.request.prompt_ids), sum(len(b.token_ids) for b in best), first.cached_tokens)
        self.stats.output_tokens += usage.output_tokens
        self._end(first)
        yield Finished(
            beam.request.request_id,
            best[0].reason,
            usage,
            queue_s=first.queue_s,
            stop_reason=best[0].stop_token,
            beams=best,
        )

    def _succeed(self, search: BeamSearch, heirs: list[Heir]) -> None:
        """The first heir of a beam goes on in its place, the others fork from it, beams without heirs are gone."""
        parents, beams = search.beams, []
        taken: set[int] = set()
        for heir in heirs:
            parent = parents[heir.parent]
            beams.append(self._fork_beam(parent) if parent.number in taken else parent)
            taken.add(parent.number)
        for parent in parents:
            if parent.number not in taken:
                self._drop(parent)
        for beam, heir in zip(beams, heirs, strict=True):
            beam.output_ids.append(heir.token_id)
            beam.is_idle = False
            self._draft.gained.append(Gain(beam.number, heir.token_id))
            if beam.place is Place.RUNNING:
                self._tables.publish(beam)
            else:
                self._queue(beam)
        search.beams = beams

    def _fork_beam(self, parent: Sequence) -> Sequence:
        child = self._new_sequence(parent.request, parent.limit, parent.arrived_s, parent.order)
        self._tables.fork(parent, child)
        self._draft.forked.append(Fork(child.number, parent.number, child.request.params))
        if parent.place is Place.RUNNING:
            self._run(child)
        self.stats.forks += 1
        return child

    # ---- ends

    def _finish(self, sequence: Sequence, reason: FinishReason) -> Finished:
        self._end(sequence)
        last = sequence.output_ids[-1] if reason is FinishReason.STOP else None
        stopped_by = last if last in sequence.request.params.stop_token_ids else None
        return Finished(
            sequence.request.request_id, reason, sequence.usage, queue_s=sequence.queue_s, stop_reason=stopped_by
        )

    def _refuse(self, sequence: Sequence, message: str) -> Failed:
        self._end(self._by_request[sequence.request.request_id])
        return Failed(sequence.request.request_id, InvalidRequest(message, field="structured_output"))

    def _end(self, first: Sequence) -> None:
        """Free everything a request holds, given its first sequence."""
        search = self._searches.pop(first.request.request_id, None)
        for sequence in [first] if search is None else search.beams:
            self._drop(sequence)
        del self._by_request[first.request.request_id]
        self._families.leave(first, self._queue)

    def _drop(self, sequence: Sequence) -> None:
        self._tables.release(sequence)
        del self._live[sequence.number]
        if sequence.introduced:
            self._draft.released.append(sequence.number)
        if sequence.place is Place.RUNNING:
            self._running.remove(sequence)
        elif sequence.place is Place.QUEUED:
            self._waiting.remove(sequence)


def _admission(sequence: Sequence) -> Admission:
    request = sequence.request
    return Admission(sequence.number, request.prompt_ids, tuple(sequence.output_ids), request.params, request.rules)
