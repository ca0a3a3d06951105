"""What a run amounts to: pure arithmetic on the results of its cases."""

from collections.abc import Sequence
from dataclasses import dataclass

from rayline.deploy.bench.report import percentile
from rayline.deploy.chaos.case import CaseResult, StreamResult
from rayline.deploy.chaos.matrix import Skipped
from rayline.deploy.chaos.pairs import Pair


@dataclass(frozen=True, slots=True)
class Spread:
    """A distribution in seconds, percentiles by linear interpolation."""

    count: int
    p50_s: float
    p99_s: float
    max_s: float


@dataclass(frozen=True, slots=True)
class Row:
    """All cases of one target and fault. lost: streams that failed, hung, or differ from the undisturbed one. refused:
    those that began after the fault and were told so before anything else.

    moved: streams that went on in another group since theirs was lost. next_token: the longest wait for a next event
    after the fault, of the streams that moved where any did, of all others elsewhere. back: until the deployment was
    whole again.
    """

    pair: Pair
    cases: int
    streams: int
    lost: int
    refused: int
    moved: int
    next_token: Spread | None
    back: Spread | None


@dataclass(frozen=True, slots=True)
class MatrixReport:
    """A whole run, as `--json` prints it."""

    rows: tuple[Row, ...]
    cases: tuple[CaseResult, ...]
    skipped: tuple[Skipped, ...]


def spread(values_s: Sequence[float]) -> Spread | None:
    """None for no values."""
    if not values_s:
        return None
    ordered = sorted(values_s)
    return Spread(len(ordered), percentile(ordered, 50), percentile(ordered, 99), ordered[-1])


def rows(results: Sequence[CaseResult]) -> list[Row]:
    """One row for each pair of target and fault, in the order in which they first came."""
    pairs = dict.fromkeys(result.case.pair for result in results)
    return [_row(pair, [result for result in results if result.case.pair == pair]) for pair in pairs]


def lost(results: Sequence[CaseResult]) -> list[tuple[CaseResult, StreamResult]]:
    """Every stream that somebody would complain of."""
    return [(result, stream) for result in results for stream in result.streams if stream.complaints]


def _row(pair: Pair, results: Sequence[CaseResult]) -> Row:
    streams = [stream for result in results for stream in result.streams]
    moved = [stream for stream in streams if stream.losses]
    return Row(
        pair=pair,
        cases=len(results),
        streams=len(streams),
        lost=sum(bool(stream.complaints) for stream in streams),
        refused=sum(stream.is_refused for stream in streams),
        moved=len(moved),
        next_token=spread([stream.pause_s for stream in moved or streams if stream.pause_s is not None]),
        back=spread([result.back_s for result in results if result.back_s is not None]),
    )
