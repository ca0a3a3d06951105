"""How fast requests with a grammar decode beside the same requests without one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from time import perf_counter

from rayline.deploy.bench.engine_load import SteppedEngine, measure_batch
from rayline.deploy.bench.report import BatchRun
from rayline.deploy.bench.workload import Shape
from rayline.protos.errors import InvalidRequest
from rayline.protos.types import SamplingParams


@dataclass(frozen=True, slots=True)
class GrammarSpeed:
    """Medians of one batch size. share: of the free speed, the median over pairs of runs one after the other."""

    batch: int
    free_tokens_per_s: float
    grammar_tokens_per_s: float
    share: float


def grammar_speed(
    engine: SteppedEngine,
    batch: int,
    repeats: int,
    shape: Shape,
    params: SamplingParams,
    grammar: str,
    clock: Callable[[], float] = perf_counter,
) -> GrammarSpeed:
    """Run each repeat's prompts free and with `grammar`, in turns, after one such pair that is thrown away.

    Raises InvalidRequest when the grammar lets outputs end early: the batches would not be the same.
    """
    pairs = []
    for repeat in range(repeats + 1):
        jobs = shape.jobs(batch, repeat)
        pairs.append([measure_batch(engine, jobs, params, clock, text) for text in ("", grammar)])
        wanted, got = (run.decode_tokens for run in pairs[-1])
        if got < wanted:
            raise InvalidRequest(
                f"json_schema lets outputs end after {got} of {wanted} tokens: give one that goes on (minItems)",
                field="json_schema",
            )
    return _medians(batch, pairs[1:])


def _medians(batch: int, pairs: Sequence[Sequence[BatchRun]]) -> GrammarSpeed:
    speeds = [tuple(run.decode_tokens / run.decode_s for run in pair) for pair in pairs]
    free, bound = zip(*speeds, strict=True)
    return GrammarSpeed(batch, median(free), median(bound), median(b / f for f, b in speeds))
