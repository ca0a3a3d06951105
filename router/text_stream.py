"""One stream's output: token events in, deltas out, with detokenisation and stop strings in between.

Pure and synchronous: the router's sessions and the offline LLM both use it.
"""

from collections.abc import Sequence

from rayline.protos.events import Delta, DeltaLogprob, TokenEvent
from rayline.protos.types import SamplingParams
from rayline.router.detokenizer import detokenizer_for
from rayline.router.stops import StopStrings
from rayline.router.tokenizer import Tokenizer


class TextStream:
    """Turns one choice's tokens into deltas.

    `stopped` is the stop string that ended the text, None so far. `output_tokens` counts the tokens seen,
    up to the one that completed it. A stop token's own text is left out, as a stop string's is.
    """

    def __init__(self, tokenizer: Tokenizer, params: SamplingParams, prompt_ids: Sequence[int] = (), choice: int = 0):
        self._tokenizer = tokenizer
        self._params = params
        self._choice = choice
        self._text = detokenizer_for(tokenizer, prompt_ids)
        self._stops = StopStrings(params.stop)
        self._stop_ids = frozenset(params.stop_token_ids)
        self.output_tokens = 0

    @property
    def stopped(self) -> str | None:
        return self._stops.matched

    def push(self, *events: TokenEvent) -> Delta:
        """The delta of these tokens; those after a stop string are ignored. Its text may be empty."""
        taken: list[TokenEvent] = []
        pieces: list[str] = []
        for event in events:
            if self.stopped is not None:
                break
            taken.append(event)
            self.output_tokens += 1
            pieces.append(self._piece(event))
        return Delta(
            choice=self._choice,
            token_ids=tuple(event.token_id for event in taken),
            text="".join(pieces),
            logprobs=tuple(self._logprob(event) for event in taken if event.logprob is not None),
        )

    def finish(self) -> Delta | None:
        """What was held back, None when there is nothing."""
        text = self._stops.push(self._text.finish())
        text += self._stops.finish()
        return Delta(self._choice, (), text) if text else None

    def _piece(self, event: TokenEvent) -> str:
        early = event.index < self._params.min_tokens
        if event.token_id in self._stop_ids and not early:
            return ""
        text = self._text.push(event.token_id)
        return text if early else self._stops.push(text)

    def _logprob(self, event: TokenEvent) -> DeltaLogprob:
        text = self._tokenizer.token_text
        top = tuple((entry.token_id, text(entry.token_id), entry.logprob) for entry in event.top_logprobs)
        assert event.logprob is not None
        return DeltaLogprob(event.token_id, text(event.token_id), event.logprob, top)
