"""What is known of a stream's tokens from those who ran it: played again, its choices are where they were."""

from collections.abc import Iterable

from rayline.protos.events import EngineEvent, TokenEvent
from rayline.protos.journal import Trace


def past_of(traces: Iterable[Trace], choice: int, *, is_ahead: bool) -> list[EngineEvent]:
    """The engine's events of one choice as far as they are known: scores, tokens from the first on, the end.

    is_ahead: engines may say something else each time, so only what its router wrote ahead counts: nothing else was
    shown.
    """
    usable = [trace for trace in traces if trace.choice == choice and (trace.is_ahead or not is_ahead)]
    tokens: list[TokenEvent] = []
    for trace in sorted(usable, key=_start):
        if _start(trace) <= len(tokens):
            tokens += trace.tokens[len(tokens) - _start(trace) :]
    scores = max((trace.scores for trace in usable), key=len, default=())
    ends = [t.finished for t in usable if t.finished is not None and _start(t) + len(t.tokens) == len(tokens)]
    return [*scores, *tokens, *ends[:1]]


def _start(trace: Trace) -> int:
    return trace.tokens[0].index if trace.tokens else 0
