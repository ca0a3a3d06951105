"""A request's answer: joins what its choices bring into the one stream that a client reads. Pure and synchronous.

    engine events --> Choice --\\
    engine events --> Choice ---+--> Answer --> Started, [PromptScored], Delta*, ChoiceEnded for each, Finished
    engine events --> Choice --/
"""

from dataclasses import replace

from rayline.protos.events import (
    ChoiceEnded,
    Delta,
    DeltaLogprob,
    Failed,
    Finished,
    FinishReason,
    Preempted,
    PromptScored,
    PromptScores,
    Started,
    StreamEvent,
    Usage,
)
from rayline.router.admission import Admitted
from rayline.router.choice import Choice, ChoiceEvent
from rayline.router.ranking import best_of
from rayline.router.tokenizer import Tokenizer


class Answer:
    """All choices of one request. Order kept: the prompt's scores, each choice's echo, then output.

    Where more choices are computed than shown, nothing is shown before all have ended.
    """

    def __init__(self, admitted: Admitted, tokenizer: Tokenizer):
        spec = admitted.spec
        self.choices = tuple(Choice(n, r, spec, admitted.form, tokenizer) for n, r in enumerate(admitted.requests))
        self._admitted = admitted
        self._tokenizer = tokenizer
        self._held: list[Delta | ChoiceEnded] = []
        self._scored = [_unscored(admitted.prompt_ids[0], tokenizer)]
        self._is_open = False
        self._first_end: ChoiceEnded | None = None

    @property
    def prompt_ids(self) -> tuple[int, ...]:
        return self._admitted.prompt_ids

    def started(self, numerics: str, exact: bool, created_s: int) -> Started:
        """The first event, once a group of this numerics class has accepted the request."""
        prompt_ids, spec = self._admitted.prompt_ids, self._admitted.spec
        shown = prompt_ids if spec.return_prompt_ids else ()
        return Started(spec.request_id, numerics, exact, len(prompt_ids), shown, created_s)

    def opening(self) -> list[StreamEvent]:
        """What comes right behind Started."""
        return self._open() if self._prompt_is_scored else []

    def take(self, event: ChoiceEvent) -> list[StreamEvent]:
        """What the client may see now of what a choice brought."""
        match event:
            case Failed():
                return [Failed(self._admitted.spec.request_id, event.error)]
            case PromptScores():
                self._add_scores(event)
                return self._open() if self._prompt_is_scored else []
        self._held.append(event)
        if not self._is_open or (self._admitted.is_ranked and not self._all_have_ended()):
            return []
        return self._release()

    def finished(self) -> Finished:
        """The terminal event of an answer whose choices have all ended. The prompt counts once."""
        first = self.choices[0]
        ended = self._first_end or ChoiceEnded(0, FinishReason.ABORT)
        usages = [choice.usage for choice in self.choices]
        return Finished(
            self._admitted.spec.request_id,
            ended.reason,
            Usage(
                len(self._admitted.prompt_ids),
                sum(usage.output_tokens for usage in usages),
                usages[0].cached_tokens,
                sum(usage.reasoning_tokens for usage in usages),
            ),
            queue_s=first.queue_s,
            stop_reason=ended.stop_reason,
            preempted=Preempted(
                sum(choice.preempted.times for choice in self.choices),
                sum(choice.preempted.recomputed_tokens for choice in self.choices),
            ),
        )

    # ---- the prompt

    @property
    def _prompt_is_scored(self) -> bool:
        wanted = self._admitted.spec.params.prompt_logprobs is not None
        return not wanted or len(self._scored) >= len(self._admitted.prompt_ids)

    def _add_scores(self, scores: PromptScores) -> None:
        """Scores may come twice for a token that was computed again; the first ones count."""
        text = self._tokenizer.token_text
        for own, best in scores.tokens[max(0, len(self._scored) - scores.start) :]:
            top = tuple((entry.token_id, text(entry.token_id), entry.logprob) for entry in best)
            self._scored.append(DeltaLogprob(own.token_id, text(own.token_id), own.logprob, top))

    def _open(self) -> list[StreamEvent]:
        """The prompt as asked for, then what had to wait for it."""
        if self._is_open:
            return []
        self._is_open = True
        admitted, shown = self._admitted, list[StreamEvent]()
        scored = tuple(self._scored) if admitted.spec.params.prompt_logprobs is not None else ()
        if scored:
            shown.append(PromptScored(scored))
        if admitted.spec.echo:
            echo = Delta(0, admitted.prompt_ids, admitted.prompt_text, scored, is_echo=True)
            shown += [replace(echo, choice=number) for number in range(admitted.spec.params.n)]
        return shown if admitted.is_ranked else shown + self._release()

    # ---- the output

    def _all_have_ended(self) -> bool:
        return sum(isinstance(event, ChoiceEnded) for event in self._held) == len(self.choices)

    def _release(self) -> list[StreamEvent]:
        held, self._held = self._held, []
        if self._admitted.is_ranked:
            scores = [choice.score for choice in self.choices]
            held = best_of(held, scores, self._admitted.spec.params.n)
            if self._admitted.spec.params.logprobs is None:  # they were needed for the ranking alone
                held = [replace(event, logprobs=()) if isinstance(event, Delta) else event for event in held]
        for event in held:
            if isinstance(event, ChoiceEnded) and event.choice == 0:
                self._first_end = event
        return list(held)


def _unscored(token_id: int, tokenizer: Tokenizer) -> DeltaLogprob:
    return DeltaLogprob(token_id, tokenizer.token_text(token_id), None)
