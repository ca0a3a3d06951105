"""What the workers' answers mean for requests: tokens gained, beams chosen, ends."""

from collections.abc import Iterator

from rayline.protos.errors import DeadlineExceeded, InvalidRequest
from rayline.protos.events import (
    Begun,
    EngineEvent,
    Failed,
    Finished,
    FinishReason,
    PromptScores,
    Searched,
    TokenEvent,
    TokenLogprob,
    Usage,
)
from rayline.protos.plan import Gain, Sampled, StepResult
from rayline.workers.scheduling.beams import Heir, is_end
from rayline.workers.scheduling.draft import Draft
from rayline.workers.scheduling.roster import Roster
from rayline.workers.scheduling.scheduler_stats import SchedulerStats
from rayline.workers.scheduling.searches import BeamSearch
from rayline.workers.scheduling.sequence import Place, Sequence
from rayline.workers.scheduling.tables import BlockTables
from rayline.workers.scheduling.tenants import OUTPUT_COST, TenantCounters

NOTHING_LEFT = "no text is left that the grammar and the request's other rules allow"


class Results:
    """Turns results into events, in the order: prompt scores, refusals, tokens, searches."""

    def __init__(
        self,
        roster: Roster,
        tables: BlockTables,
        draft: Draft,
        stats: SchedulerStats,
        tenants: TenantCounters,
        eos_token_ids: frozenset[int],
    ):
        self._roster = roster
        self._tables = tables
        self._draft = draft
        self._stats = stats
        self._tenants = tenants
        self._eos = eos_token_ids

    def commit(self, result: StepResult) -> list[EngineEvent]:
        """What concerns sequences that ended meanwhile is dropped."""
        live = self._roster.sequences
        events: list[EngineEvent] = []
        for scored in result.scored:
            if (sequence := live.get(scored.sequence)) is not None:
                events.append(PromptScores(sequence.request.request_id, scored.start, scored.tokens))
        for refused in result.refused:
            if (sequence := live.get(refused.sequence)) is not None:
                events.append(self._refuse(sequence, refused.message))
        for sampled in result.sampled:
            if (sequence := live.get(sampled.sequence)) is not None:
                events.extend(self._gain(sequence, sampled))
        for answer in result.candidates:
            if (sequence := live.get(answer.sequence)) is not None:
                events.extend(self._search(sequence, answer.tokens))
        return events

    def finish(self, request_id: str, reason: FinishReason, stop_token: int | None = None) -> Finished:
        """End a request. stop_token: of `stop_token_ids`, the one that ended it."""
        first = self._roster.end(request_id)
        return Finished(
            request_id,
            reason,
            first.usage,
            queue_s=first.queue_s,
            stop_reason=stop_token,
            preempted=first.preempted,
        )

    def expire(self, request_id: str) -> Failed:
        """End a request whose time is up."""
        first = self._roster.end(request_id)
        state = f"{len(first.output_ids)} tokens of output" if first.started_s is not None else "its turn"
        return Failed(
            request_id,
            DeadlineExceeded(
                f"timeout_s = {first.request.timeout_s:.3g} have passed, and it has got as far as {state}",
                field="timeout_s",
            ),
        )

    def _refuse(self, sequence: Sequence, message: str) -> Failed:
        request_id = sequence.request.request_id
        self._roster.end(request_id)
        return Failed(request_id, InvalidRequest(message, field="structured_output"))

    def _gain(self, sequence: Sequence, sampled: Sampled) -> Iterator[EngineEvent]:
        sequence.pending -= 1
        index = len(sequence.output_ids)
        sequence.output_ids.append(sampled.token_id)
        self._stats.output_tokens += 1
        self._tenants.charge(sequence.request.tenant, OUTPUT_COST)
        request = sequence.request
        begun = None if sequence.told else Begun(sequence.cached_tokens, sequence.queue_s)
        sequence.told = True
        yield TokenEvent(request.request_id, index, sampled.token_id, sampled.logprob, sampled.top_logprobs, begun)
        if is_end(sampled.token_id, request.params, request.rules, self._eos):
            named = sampled.token_id if sampled.token_id in request.params.stop_token_ids else None
            yield self.finish(request.request_id, FinishReason.STOP, named)
        elif sequence.known >= sequence.limit:
            yield self.finish(request.request_id, FinishReason.LENGTH)
        elif sequence.blocks:
            self._tables.publish(sequence)

    # ---- beams

    def _search(self, beam: Sequence, candidates: tuple[TokenLogprob, ...]) -> Iterator[EngineEvent]:
        """Candidates are kept until all beams of the request have theirs; then the search goes on, or ends."""
        self._tenants.charge(beam.request.tenant, OUTPUT_COST)
        search = self._roster.searches[beam.request.request_id]
        heirs = search.answer(beam, candidates)
        if heirs is None:
            return
        if search.search.is_over:
            yield self._end_search(beam.request.request_id, search)
        else:
            self._succeed(search, heirs)
            yield Searched(beam.request.request_id, search.tokens)

    def _end_search(self, request_id: str, search: BeamSearch) -> Finished | Failed:
        first, beams = self._roster.end(request_id), search.best
        if not beams:
            return Failed(request_id, InvalidRequest(NOTHING_LEFT, field="structured_output"))
        outputs = sum(len(beam.token_ids) for beam in beams)
        self._stats.output_tokens += outputs
        usage = Usage(len(first.request.prompt_ids), outputs, first.cached_tokens)
        reason, stop = beams[0].reason, beams[0].stop_token
        return Finished(
            request_id,
            reason,
            usage,
            queue_s=first.queue_s,
            stop_reason=stop,
            preempted=first.preempted,
            beams=beams,
        )

    def _succeed(self, search: BeamSearch, heirs: list[Heir]) -> None:
        """The first heir of a beam goes on in its place, the others fork from it, beams without heirs are gone.

        A beam that lost its blocks meanwhile has work again, so it waits for others.
        """
        parents, beams = search.beams, []
        taken: set[int] = set()
        for heir in heirs:
            parent = parents[heir.parent]
            beams.append(self._roster.fork(parent) if parent.number in taken else parent)
            taken.add(parent.number)
        self._stats.forks += len(heirs) - len(taken)
        for parent in parents:
            if parent.number not in taken:
                self._roster.drop(parent)
        for beam, heir in zip(beams, heirs, strict=True):
            beam.output_ids.append(heir.token_id)
            beam.is_idle = False
            self._draft.gained.append(Gain(beam.number, heir.token_id))
            if beam.place is Place.RUNNING:
                self._tables.publish(beam)
            else:
                self._roster.wait(beam)
        search.beams = beams
