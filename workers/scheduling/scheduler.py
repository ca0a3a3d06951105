"""Continuous batching: which tokens of which sequences the next step computes, and what its result means.

Pure bookkeeping: no torch, no clock, no threads. `plan` makes a frozen Plan of token ranges, `commit`
turns a StepResult into events. There is no prefill or decode: a sequence has tokens left to compute.
A request is one sequence, or as many as it has beams; choices of one family fork from the first of them.
"""

import math
import sys
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from rayline.protos.events import EngineEvent, FinishReason
from rayline.protos.group import GroupLoad, PreemptionReason
from rayline.protos.plan import Admission, Plan, Slice, StepResult
from rayline.protos.types import EngineRequest
from rayline.workers.scheduling.beams import rules_of
from rayline.workers.scheduling.blocks import BlockPool
from rayline.workers.scheduling.deadlines import Deadlines
from rayline.workers.scheduling.draft import Draft
from rayline.workers.scheduling.gate import Gate, given_tokens
from rayline.workers.scheduling.pace import Pace, Work
from rayline.workers.scheduling.preemption import Preemption
from rayline.workers.scheduling.queue import WaitingQueue
from rayline.workers.scheduling.results import Results
from rayline.workers.scheduling.roster import Roster
from rayline.workers.scheduling.scheduler_stats import SchedulerStats
from rayline.workers.scheduling.searches import BeamSearch
from rayline.workers.scheduling.sequence import Place, Sequence
from rayline.workers.scheduling.solo import Solo
from rayline.workers.scheduling.tables import BlockTables
from rayline.workers.scheduling.tenants import CACHED_COST, INPUT_COST, TenantCounters


@dataclass(frozen=True, slots=True)
class SchedulerLimits:
    """What one group takes on. `depth` is the number of pipeline stages: plans that run at once.

    max_waiting_tokens: of the prompts that wait; one may always wait.
    max_preemptions: of one request. priority_aging_s: of waiting for one class of priority, 0 for never.
    decode_stretch: how many times longer a step of running streams may get by others' prompts.
    """

    block_tokens: int
    max_model_len: int
    max_step_tokens: int
    max_running: int
    max_waiting: int
    depth: int = 1
    prefix_caching: bool = True
    max_preemptions: int = 3
    priority_aging_s: float = 5.0
    tenant_weights: Mapping[str, float] = field(default_factory=dict)
    decode_stretch: float = math.inf
    max_waiting_tokens: int = sys.maxsize


class Scheduler:
    """Waiting and running sequences over one block pool."""

    def __init__(self, limits: SchedulerLimits, pool: BlockPool, eos_token_ids: frozenset[int], epoch: int = 0):
        self.limits = limits
        self.pool = pool
        self.stats = SchedulerStats()
        self.eos_token_ids = eos_token_ids
        self._epoch = epoch
        self._step = 0
        self._now_s = 0.0
        self._draft = Draft()
        self._pace = Pace(limits.decode_stretch)
        self._works: deque[Work] = deque()  # of the plans that no result has come for
        self._tables = BlockTables(pool, limits.block_tokens, limits.prefix_caching)
        self._tenants = TenantCounters(limits.tenant_weights)
        self._roster = Roster(self._tables, self._draft, WaitingQueue(self._tenants, limits.priority_aging_s))
        self._deadlines = Deadlines()
        self._gate = Gate(
            self._roster,
            limits.max_waiting,
            limits.max_waiting_tokens,
            limits.max_model_len,
            limits.max_step_tokens,
        )
        self._results = Results(self._roster, self._tables, self._draft, self.stats, self._tenants, eos_token_ids)
        self._solo = Solo(self._roster)
        self._preemption = Preemption(
            self._roster, self._tables, self._draft, self.stats, limits.block_tokens, limits.max_preemptions
        )

    # ---- requests come and go

    def add(self, request: EngineRequest, now_s: float) -> None:
        """Queue a request the caller has checked. Raises Overloaded when the waiting queue has no room for it,
        DeadlineExceeded when it cannot be done in its time."""
        self._gate.check(request, now_s, lambda: self._cached_tokens(request))
        asked = request.params.max_tokens or self.limits.max_model_len
        limit = min(len(request.prompt_ids) + asked, self.limits.max_model_len)
        sequence = self._roster.add(request, limit, now_s)
        if request.timeout_s is not None:
            self._deadlines.add(sequence, now_s + request.timeout_s, self._roster.firsts)
        if sequence.is_beam:
            rules = rules_of(request.params, request.rules, self.eos_token_ids, limit - len(request.prompt_ids))
            self._roster.searches[request.request_id] = BeamSearch(rules, [sequence])

    def abort(self, request_id: str) -> list[EngineEvent]:
        """Forget a request at once: its blocks are free before the next plan. Unknown ids are ignored."""
        return [self._results.finish(request_id, FinishReason.ABORT)] if self.holds(request_id) else []

    def expire(self, now_s: float) -> list[EngineEvent]:
        """End the requests whose time is up, wherever they are: their blocks are free before the next plan."""
        late = self._deadlines.due(now_s, self._roster.firsts)
        return [self._results.expire(request_id) for request_id in late]

    @property
    def has_work(self) -> bool:
        return bool(self._roster.sequences)

    def holds(self, request_id: str) -> bool:
        return request_id in self._roster.firsts

    @property
    def request_ids(self) -> tuple[str, ...]:
        return tuple(self._roster.firsts)

    @property
    def apart(self) -> str:
        """Id of the request that is the only one in all plans from now on, "" for none."""
        return self._solo.request_id

    def is_running(self, request_id: str) -> bool:
        """Whether anything of it, its prompt at least, may be in the plans that no result has come for."""
        trunk = self._roster.families.trunk_of(self._roster.firsts[request_id])
        return any(s.request.request_id == trunk.request.request_id for s in self._roster.running)

    @property
    def live(self) -> tuple[Sequence, ...]:
        return tuple(self._roster.sequences.values())

    def load(self) -> GroupLoad:
        return GroupLoad(
            running=len(self._roster.running),
            waiting=self._roster.waiting,
            outstanding_tokens=sum(s.outstanding_tokens for s in self._roster.sequences.values()),
            free_blocks=self.pool.available,
            total_blocks=self.pool.total,
            preemptions=tuple(self.stats.preemptions_by[reason] for reason in PreemptionReason),
            recomputed_tokens=self.stats.recomputed_tokens,
            tokens_per_s=self._gate.drain.tokens_per_s,
            waiting_tokens=self._roster.queue.tokens,
        )

    # ---- one step

    def plan(self, now_s: float) -> Plan | None:
        """The next step, or None when every sequence waits for a result or nothing is left to do."""
        draft, self._now_s = self._draft, now_s
        self._gate.drain.look(len(self._roster.queue), now_s)
        draft.open(self.limits.max_step_tokens)
        if self._solo.request_id:
            self._plan_solo()
        elif not self._solo.takes_its_turn():  # who is named now is planned next: all hear of it between
            self._plan_all()
        if not draft.slices:
            return None
        self._works.append(draft.work)
        plan = draft.close(self._epoch, self._step)
        self._step += 1
        self.stats.steps += 1
        return plan

    def commit(self, result: StepResult, step_s: float = 0.0) -> list[EngineEvent]:
        """Take in what the workers answered to the oldest plan, in `step_s` seconds; 0 when nobody measured."""
        work = self._works.popleft()
        self._pace.observe(work, step_s)
        self._gate.speed.observe(work, step_s)
        return self._results.commit(result)

    # ---- planning

    def _plan_all(self) -> None:
        """Streams, then prompts, then who waits, as far as tokens, places and blocks last."""
        draft = self._draft
        ranked = sorted(self._roster.running, key=lambda s: s.rank)
        left = [s.remaining for s in ranked]
        streams = [s for s, tokens in zip(ranked, left, strict=True) if tokens == 1]
        prompts = [s for s, tokens in zip(ranked, left, strict=True) if tokens > 1]
        for sequence in self._turn(streams):
            self._plan_one(sequence)
        # What lost its group stands still: it waits for longer than any step takes.
        if streams and (prompts or len(self._roster.queue)) and not any(s.is_stalled for s in prompts):
            draft.allowance = self._pace.allowance(draft.decodes)
        for sequence in prompts:
            self._plan_one(sequence)
        while draft.has_room and (entry := self._next_waiting()):
            self._start(entry)
            if self._solo.takes(entry):
                return
            self._plan_one(entry)
        if not draft.slices:
            self._unblock()

    def _plan_solo(self) -> None:
        """The suspect alone, once all plans made before it have ended. When it lacks blocks the others go on first,
        from the next plan on: until then the suspect is known as the only one that is computed.
        """
        if not self._solo.may_plan(in_flight=len(self._works)):
            return
        for sequence in self._solo.sequences:
            if sequence.place is Place.QUEUED and self._can_move(sequence):
                self._roster.queue.remove(sequence)
                self._start(sequence)
            self._plan_one(sequence)
        if not self._draft.slices and not self._works:
            self._preemption.step_back(self._solo.sequences)
            self._solo.give_up()

    def _turn(self, streams: list[Sequence]) -> list[Sequence]:
        """Of the sequences that need a single token, those whose turn it is. They come before all prompts.

        With `depth` pipeline stages each plan takes its share of them, so that `depth` plans of disjoint
        sequences keep every stage busy.
        """
        share = -(-len(streams) // self.limits.depth)
        return [s for s in streams if self._is_ready(s)][:share]

    def _is_ready(self, sequence: Sequence) -> bool:
        """Not while its newest token is still on its way through the stages."""
        return not sequence.pending or self._step - sequence.last_step >= self.limits.depth

    def _plan_one(self, sequence: Sequence) -> None:
        """Add a slice for `sequence` if tokens and blocks allow."""
        if sequence.place is not Place.RUNNING or not self._is_ready(sequence):
            return
        count, scores = self._count(sequence)
        if count <= 0 or not self._grow(sequence, sequence.planned + count):
            return
        start, is_prompt = sequence.planned, sequence.remaining > 1
        self._account(sequence, start + count)
        sequence.planned += count
        sequence.last_step = self._step
        if scores:
            sequence.scored = sequence.planned
        samples = sequence.planned == sequence.length
        if not sequence.introduced:
            self._draft.admitted.append(_admission(sequence))
            sequence.introduced = True
        forks = self._fork_choices(sequence) if samples and self._roster.families.is_trunk(sequence) else ()
        new_blocks = tuple(sequence.blocks[sequence.sent_blocks :])
        self._draft.add(
            Slice(sequence.number, start, count, sequence.sent_blocks, new_blocks, samples, forks, scores), is_prompt
        )
        sequence.sent_blocks = len(sequence.blocks)
        if samples and sequence.is_beam:
            sequence.is_idle = sequence.awaited = True
        elif samples:
            sequence.pending += 1
        self._tables.publish(sequence)

    def _count(self, sequence: Sequence) -> tuple[int, bool]:
        """Tokens of its next slice, and whether the ones behind them are scored. No slice is scored in part."""
        count = min(self._draft.budget, sequence.remaining)
        if count > 1:
            count = int(min(count, self._draft.allowance.tokens(sequence.planned)))
        if not sequence.unscored:
            return count, False
        if sequence.planned < sequence.scored:
            return min(count, sequence.scored - sequence.planned), False
        return min(count, self._draft.scores_budget), True

    def _grow(self, sequence: Sequence, tokens: int) -> bool:
        """Give `sequence` blocks for its first `tokens` tokens, preempting lower-ranked ones if need be."""
        if self._tables.suffice(sequence, tokens):
            return True
        if not self._preemption.make_room(sequence, self._tables.missing(sequence, tokens)):
            return False
        if (copy := self._tables.extend(sequence, tokens)) is not None:
            self._draft.copies.append(copy)
            self.stats.copied_blocks += 1
        return True

    def _account(self, sequence: Sequence, end: int) -> None:
        """Tokens up to `end` get computed. The tenant pays for those of the prompt, once; what a preemption lost is
        counted for the request that lost it."""
        request, start = sequence.request, sequence.planned
        given = sequence.prompt_tokens + len(request.output_ids)
        if start >= given and start >= sequence.computed:
            sequence.computed = end
            return
        again = max(0, min(end, sequence.computed) - start)
        self.stats.recomputed_tokens += again
        self._roster.firsts[request.request_id].recomputed_tokens += again
        self._tenants.charge(request.tenant, INPUT_COST * max(0, min(end, given) - max(start, sequence.computed)))
        sequence.computed = max(sequence.computed, end)

    def _next_waiting(self) -> Sequence | None:
        """The first waiting sequence if all its present tokens would fit, else None: no overtaking."""
        if not len(self._roster.queue):
            return None
        sequence = self._roster.queue.first(self._now_s, self._roster.places())
        if sequence is None or not self._roster.has_place(sequence, self.limits.max_running):
            return None
        if self._roster.running and not self._fits(sequence):
            return None
        self._roster.queue.remove(sequence)
        return sequence

    def _fits(self, sequence: Sequence) -> bool:
        return self._preemption.to_start(sequence, self._reusable(sequence)) <= self._tables.room(sequence)

    def _reusable(self, sequence: Sequence) -> list[int]:
        search = self._roster.searches.get(sequence.request.request_id)
        return self._tables.reusable(sequence, search.beams if search else ())

    def _cached_tokens(self, request: EngineRequest) -> int:
        """Of the tokens it brings along, those that need not be computed again for it."""
        if self._roster.families.has(request.family):
            return given_tokens(request)
        sequence = Sequence(-1, request, self.limits.max_model_len, 0.0, -1, output_ids=list(request.output_ids))
        return len(self._tables.reusable(sequence)) * self.limits.block_tokens

    def _start(self, sequence: Sequence) -> None:
        reused = self._reusable(sequence)
        self._preemption.reserve(sequence, reused)
        self._tables.start(sequence, reused)
        self._tenants.charge(sequence.request.tenant, CACHED_COST * max(0, sequence.planned - sequence.computed))
        sequence.computed = max(sequence.computed, sequence.planned)
        if sequence.started_s is None:
            self._count_start(sequence, sequence.planned)
            self._gate.drain.started(sequence.given)
        self._roster.run(sequence)

    def _count_start(self, sequence: Sequence, reused_tokens: int) -> None:
        sequence.started_s = self._now_s
        sequence.cached_tokens = min(reused_tokens, len(sequence.request.prompt_ids))
        self.stats.prompt_tokens += len(sequence.request.prompt_ids)
        self.stats.cached_tokens += sequence.cached_tokens

    def _fork_choices(self, trunk: Sequence) -> tuple[int, ...]:
        """The choices that sample from the trunk's first logits: as many as there are places, and blocks to write."""
        room = min(self.limits.max_running - sum(self._roster.places().values()), self.pool.available)
        children, others = self._roster.families.split(trunk, max(0, room))
        for child in children:
            self._roster.inherit(trunk, child)
            self._count_start(child, child.planned)
            child.pending = 1
            self._roster.run(child)
        for other in others:
            self._roster.wait(other)
        self.stats.forks += len(children)
        return tuple(child.number for child in children)

    def _unblock(self) -> None:
        """Idle beams can hold so many blocks and places that nobody moves. The first of all that have work takes what
        it needs then; candidates in hand are kept, so each time at least one more answer is there for good."""
        if any(s.pending or s.awaited for s in self._roster.sequences.values()):
            return
        stuck = [s for s in self._roster.sequences.values() if s.remaining and s.place is not Place.ASIDE]
        if not stuck:
            return
        first = self._preemption.first_of(stuck)
        while not self._can_move(first) and (losers := self._preemption.losers(first)):
            self._preemption.preempt(losers[-1], first, PreemptionReason.STUCK)
        if first.place is Place.QUEUED:
            self._roster.queue.remove(first)
            self._start(first)
        self._plan_one(first)

    def _can_move(self, sequence: Sequence) -> bool:
        if sequence.place is Place.QUEUED:
            return self._roster.has_place(sequence, self.limits.max_running) and self._fits(sequence)
        return self._tables.missing(sequence, sequence.planned + self._count(sequence)[0]) <= self._tables.room(
            sequence
        )


def _admission(sequence: Sequence) -> Admission:
    request = sequence.request
    return Admission(sequence.number, request.prompt_ids, tuple(sequence.output_ids), request.params, request.rules)
