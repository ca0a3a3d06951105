"""One stream's output: token events in, deltas out, with detokenisation, stop strings and parsers in between.

    tokens -> raw text -> up to a stop string -> thoughts | answer -> answer | calls

Pure and synchronous: the router's sessions and the offline LLM both use it.
"""

from collections.abc import Sequence

from rayline.protos.events import Delta, DeltaLogprob, FinishReason, TokenEvent
from rayline.protos.types import SamplingParams
from rayline.router.detokenizer import detokenizer_for
from rayline.router.output_form import PLAIN_OUTPUT, OutputForm
from rayline.router.output_parser import OutputParser
from rayline.router.stops import StopStrings
from rayline.router.tokenizer import Tokenizer
from rayline.router.tools.output import Parsed


class TextStream:
    """Turns one choice's tokens into deltas.

    `stopped` is the stop string that ended the text, None so far. `output_tokens` counts the tokens seen,
    up to the one that completed it; `reasoning_tokens` those of them up to the end of the model's thinking. A stop
    token's own text is left out, as a stop string's is, unless params.include_stop_str_in_output.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        params: SamplingParams,
        prompt_ids: Sequence[int] = (),
        choice: int = 0,
        form: OutputForm = PLAIN_OUTPUT,
    ):
        self._tokenizer = tokenizer
        self._params = params
        self._choice = choice
        marks = _special_ids(form.markers, tokenizer) if params.skip_special_tokens else {}
        shown = marks if params.skip_special_tokens else tokenizer.special_ids
        self._text = detokenizer_for(tokenizer, prompt_ids, shown)
        self._stops = StopStrings(params.stop, params.include_stop_str_in_output)
        self._silent_ids = _silent_ids(tokenizer, params)
        self._parser: OutputParser | None = None
        if form.reasoning is not None or form.tools is not None:
            self._parser = OutputParser(form, frozenset(marks.values()), prompt_ids, choice)
        self.output_tokens = 0
        self.reasoning_tokens = 0

    @property
    def stopped(self) -> str | None:
        return self._stops.matched

    def reason(self, reason: FinishReason) -> FinishReason:
        """Why the choice ended: `reason`, or the calls that the model made before it stopped by itself."""
        called = self._parser is not None and self._parser.calls > 0
        return FinishReason.TOOL_CALLS if called and reason is FinishReason.STOP else reason

    def push(self, *events: TokenEvent) -> Delta:
        """The delta of these tokens; those after a stop string are ignored. Its text may be empty."""
        taken: list[TokenEvent] = []
        pieces: list[str] = []
        parsed: list[Parsed] = []
        for event in events:
            if self.stopped is not None:
                break
            taken.append(event)
            self.output_tokens += 1
            pieces.append(self._piece(event))
            if self._parser is not None:
                parsed += self._parse(self._parser, pieces.pop())
        ids = tuple(event.token_id for event in taken)
        logprobs = tuple(self._logprob(event) for event in taken if event.logprob is not None)
        if self._parser is None:
            return Delta(self._choice, ids, "".join(pieces), logprobs)
        return _delta(self._choice, ids, logprobs, parsed)

    def finish(self) -> Delta | None:
        """What was held back, None when there is nothing."""
        text = self._stops.push(self._text.finish())
        text += self._stops.finish()
        if self._parser is None:
            return Delta(self._choice, (), text) if text else None
        delta = _delta(self._choice, (), (), [self._parser.push(text), self._parser.finish()])
        return delta if delta.text or delta.reasoning or delta.tool_calls else None

    def _piece(self, event: TokenEvent) -> str:
        early = event.index < self._params.min_tokens
        if event.token_id in self._silent_ids and not early:
            return ""
        text = self._text.push(event.token_id)
        return text if early else self._stops.push(text)

    def _parse(self, parser: OutputParser, text: str) -> list[Parsed]:
        """One token's text through the parsers; all of it once a stop string has ended the text."""
        was_thinking = parser.is_thinking
        parsed = [parser.push(text)]
        if was_thinking or parser.is_thinking or parsed[0].reasoning:
            self.reasoning_tokens = self.output_tokens
        return parsed if self.stopped is None else [*parsed, parser.finish()]

    def _logprob(self, event: TokenEvent) -> DeltaLogprob:
        text = self._tokenizer.token_text
        top = tuple((entry.token_id, text(entry.token_id), entry.logprob) for entry in event.top_logprobs)
        assert event.logprob is not None
        return DeltaLogprob(event.token_id, text(event.token_id), event.logprob, top)


def joined(first: Delta, last: Delta) -> Delta:
    """Two deltas of one choice, one right after the other, as one."""
    return Delta(
        first.choice,
        first.token_ids + last.token_ids,
        first.text + last.text,
        first.logprobs + last.logprobs,
        first.reasoning + last.reasoning,
        first.tool_calls + last.tool_calls,
    )


def _delta(
    choice: int, token_ids: tuple[int, ...], logprobs: tuple[DeltaLogprob, ...], parsed: Sequence[Parsed]
) -> Delta:
    text = "".join([part.text for part in parsed])
    reasoning = "".join([part.reasoning for part in parsed])
    calls = [call for part in parsed for call in part.calls]
    return Delta(choice, token_ids, text, logprobs, reasoning, tuple(calls))


def _special_ids(markers: Sequence[str], tokenizer: Tokenizer) -> dict[int, str]:
    """Those of `markers` that are special tokens, by id."""
    ids = {token_id: name for name in markers if (token_id := tokenizer.token_id(name)) is not None}
    return {token_id: name for token_id, name in ids.items() if token_id in tokenizer.special_ids}


def _silent_ids(tokenizer: Tokenizer, params: SamplingParams) -> frozenset[int]:
    """Tokens that end the output and are no part of its text."""
    if params.include_stop_str_in_output:
        return frozenset()
    eos = () if tokenizer.eos_id is None or params.ignore_eos else (tokenizer.eos_id,)
    return frozenset((*params.stop_token_ids, *eos))
