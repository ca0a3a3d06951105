"""One choice's life: what its engine stream brings becomes what a client may see of it. Pure and synchronous."""

from collections.abc import Sequence
from dataclasses import replace

from rayline.protos.events import (
    Beam,
    Begun,
    ChoiceEnded,
    Delta,
    DeltaLogprob,
    EngineEvent,
    Failed,
    Finished,
    FinishReason,
    Preempted,
    PromptScores,
    Searched,
    TokenEvent,
    Usage,
)
from rayline.protos.journal import Trace
from rayline.protos.types import EngineRequest, Spec
from rayline.router.output_form import OutputForm
from rayline.router.text_stream import TextStream, joined
from rayline.router.tokenizer import Tokenizer

ChoiceEvent = PromptScores | Delta | ChoiceEnded | Failed


class Choice:
    """One engine stream: a choice, or a beam search that brings all of its choices at its end.

    `is_over`: nothing more is wanted of the engine's stream; where it goes on, it has to be aborted.
    usage, queue_s and preempted are known then. score: mean logprob of the tokens, where logprobs were asked for.
    """

    def __init__(self, number: int, request: EngineRequest, spec: Spec, form: OutputForm, tokenizer: Tokenizer):
        self.number = number
        self.request = request
        self.is_over = False
        self.queue_s = 0.0
        self.usage = Usage(len(request.prompt_ids), 0)
        self.preempted = Preempted()
        self._spec = spec
        self._form = form
        self._tokenizer = tokenizer
        self._text = self._new_text(number)
        self._logprob_sum = 0.0
        self._output_ids: list[int] = []
        self._logged: list[TokenEvent] = []  # where logprobs were asked for: nobody could guess them
        self._scores: list[PromptScores] = []
        self._finished: Finished | None = None
        self._has_begun = False

    @property
    def output_ids(self) -> Sequence[int]:
        """What engines have sampled for it so far."""
        return self._output_ids

    @property
    def rest(self) -> EngineRequest:
        """The request for whoever goes on with it. Of a search nothing is kept: it begins again."""
        return replace(self.request, output_ids=tuple(self._output_ids))

    @property
    def mark(self) -> tuple[int, int, bool]:
        """How far it has come: tokens, scores of the prompt, whether its engine has ended it."""
        return len(self._output_ids), len(self._scores), self._finished is not None

    def trace(self, since: tuple[int, int, bool]) -> Trace:
        """What engines have said of it since an earlier `mark`."""
        tokens, scores, has_ended = since
        said: Sequence[TokenEvent] = self._logged[tokens:]
        if self.request.params.logprobs is None:
            said = [TokenEvent("", tokens + at, token) for at, token in enumerate(self._output_ids[tokens:])]
        return Trace(self.number, tuple(said), tuple(self._scores[scores:]), None if has_ended else self._finished)

    @property
    def score(self) -> float:
        return self._logprob_sum / max(1, self._text.output_tokens)

    def take(self, event: EngineEvent) -> Sequence[ChoiceEvent]:
        """What the client may see of `event`, in order."""
        match event:
            case TokenEvent():
                return self._token(event)
            case Finished():
                self._finished = event
                return self._finish(event)
            case PromptScores():
                self._scores.append(event)
            case Searched():
                return ()
            case Failed():
                self.is_over = True
        return (event,)

    def _token(self, event: TokenEvent) -> Sequence[ChoiceEvent]:
        if event.begun is not None:
            self._begin(event.begun)
        self._output_ids.append(event.token_id)
        if self.request.params.logprobs is not None:
            self._logged.append(event)
        if self._spec.is_prompt_alone:
            return ()  # an engine cannot but sample a token; nobody asked for it
        delta = self._text.push(event)
        self._logprob_sum += event.logprob or 0.0
        if self._text.stopped is None:
            return (delta,)
        return (delta, *self._end(FinishReason.STOP, self._text.stopped))

    def _begin(self, begun: Begun) -> None:
        """How it began in its first group; others go on with it."""
        if self._has_begun:
            return
        self._has_begun = True
        self.queue_s = begun.queue_s
        self.usage = replace(self.usage, cached_tokens=begun.cached_tokens)

    def _finish(self, event: Finished) -> Sequence[ChoiceEvent]:
        self.preempted = event.preempted
        self._begin(Begun(event.usage.cached_tokens, event.queue_s))
        if event.beams:
            self.is_over = True
            self.usage = replace(self.usage, output_tokens=event.usage.output_tokens)
            best = event.beams[: self.request.params.n]
            return [shown for number, beam in enumerate(best) for shown in self._beam(number, beam)]
        if self._spec.is_prompt_alone:
            return self._end(FinishReason.LENGTH, None)
        last = self._text.finish()
        if self._text.stopped is not None:  # completed by what was held back
            ended = self._end(FinishReason.STOP, self._text.stopped)
        else:
            ended = self._end(event.reason, event.stop_reason)
        return ended if last is None else (last, *ended)

    def _end(self, reason: FinishReason, stop_reason: str | int | None) -> tuple[ChoiceEnded]:
        self.is_over = True
        text = self._text
        self.usage = replace(self.usage, output_tokens=text.output_tokens, reasoning_tokens=text.reasoning_tokens)
        return (ChoiceEnded(self.number, text.reason(reason), stop_reason),)

    def _beam(self, number: int, beam: Beam) -> tuple[Delta, ChoiceEnded]:
        text = self._new_text(number)
        events = [TokenEvent(self.request.request_id, i, token) for i, token in enumerate(beam.token_ids)]
        delta, last = text.push(*events), text.finish()
        logprobs: tuple[DeltaLogprob, ...] = ()
        if self.request.params.logprobs is not None:
            spelled = self._tokenizer.token_text
            pairs = zip(beam.token_ids, beam.logprobs, strict=True)
            logprobs = tuple(DeltaLogprob(token, spelled(token), logprob) for token, logprob in pairs)
        whole = delta if last is None else joined(delta, last)
        return replace(whole, logprobs=logprobs), ChoiceEnded(
            number, text.reason(beam.reason), beam.stop_token, beam.score
        )

    def _new_text(self, number: int) -> TextStream:
        return TextStream(self._tokenizer, self._spec.params, self.request.prompt_ids, number, self._form)
