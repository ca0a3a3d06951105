"""What engines said of one choice, in few bytes: ids and logprobs are arrays."""

from array import array
from collections.abc import Sequence

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
)
from rayline.protos.journal import Trace

ID_BYTES = 4
LOGPROB_BYTES = 8
ENTRY_BYTES = 96  # of a token among the best ones: two objects and their place in a tuple


class KeptTrace:
    """Tokens with indices in one run. `size_bytes` is about what it takes."""

    def __init__(self) -> None:
        self._start = 0
        self._ids = array("I")
        self._logprobs = array("d")
        self._tops: list[tuple[TokenLogprob, ...]] = []
        self._begun: tuple[int, Begun] | None = None
        self._scores: list[PromptScores] = []
        self._finished: Finished | None = None
        self.size_bytes = 0

    def begin(self, output_ids: Sequence[int], has_logprobs: bool) -> None:
        """An engine goes on behind `output_ids`, which were said elsewhere. Their logprobs are not known here."""
        if output_ids and not has_logprobs and len(output_ids) > self._end:
            self._clear_tokens(0)
            self._ids.extend(output_ids)
            self.size_bytes += ID_BYTES * len(output_ids)

    def add(self, event: EngineEvent) -> None:
        """Tokens that are known already are passed over, as when a stream's router takes it to another group."""
        match event:
            case TokenEvent():
                self._add_token(event)
            case PromptScores():
                self._scores.append(event)
                self.size_bytes += sum(ENTRY_BYTES * (1 + len(best)) for _, best in event.tokens)
            case Finished() if event.reason is not FinishReason.ABORT:
                self._finished = event
                self.size_bytes += sum((ID_BYTES + LOGPROB_BYTES) * len(beam.token_ids) for beam in event.beams)
            case Searched():
                pass  # nobody could go on with that
            case Finished() | Failed():
                pass  # it was not the end of its text: another run may do better

    def trace(self, choice: int, is_ahead: bool, run: int) -> Trace:
        """All of it as one record."""
        tokens = tuple(self._token(at) for at in range(len(self._ids)))
        return Trace(choice, tokens, tuple(self._scores), self._finished, is_ahead, run)

    @property
    def _end(self) -> int:
        return self._start + len(self._ids)

    def _add_token(self, event: TokenEvent) -> None:
        if self._start <= event.index < self._end:
            return
        if event.index != self._end:
            self._clear_tokens(event.index)
        if event.begun is not None and self._begun is None:
            self._begun = (event.index, event.begun)
        self._ids.append(event.token_id)
        self.size_bytes += ID_BYTES
        if event.logprob is not None:
            self._logprobs.append(event.logprob)
            self._tops.append(event.top_logprobs)
            self.size_bytes += LOGPROB_BYTES + ENTRY_BYTES * len(event.top_logprobs)

    def _clear_tokens(self, start: int) -> None:
        tops = sum(len(top) for top in self._tops)
        self.size_bytes -= ID_BYTES * len(self._ids) + LOGPROB_BYTES * len(self._logprobs) + ENTRY_BYTES * tops
        self._start, self._ids, self._logprobs, self._tops, self._begun = start, array("I"), array("d"), [], None

    def _token(self, at: int) -> TokenEvent:
        index = self._start + at
        begun = self._begun[1] if self._begun is not None and self._begun[0] == index else None
        if not self._logprobs:
            return TokenEvent("", index, self._ids[at], begun=begun)
        return TokenEvent("", index, self._ids[at], self._logprobs[at], self._tops[at], begun)
