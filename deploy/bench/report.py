"""What a run of requests amounts to: pure arithmetic on timelines."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from rayline.deploy.bench.timeline import Timeline


@dataclass(frozen=True, slots=True)
class Percentiles:
    """A distribution in milliseconds, percentiles by linear interpolation (as numpy's default)."""

    mean_ms: float
    p50_ms: float
    p90_ms: float
    p99_ms: float


def percentile(ordered: Sequence[float], percent: float) -> float:
    """The value below which `percent` of an ascending, non-empty sequence lies."""
    place = (len(ordered) - 1) * percent / 100
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def percentiles(values_s: Sequence[float]) -> Percentiles | None:
    """None for no values."""
    if not values_s:
        return None
    ordered = sorted(value * 1e3 for value in values_s)
    mean = math.fsum(ordered) / len(ordered)
    return Percentiles(mean, *(percentile(ordered, p) for p in (50, 90, 99)))


@dataclass(frozen=True, slots=True)
class Slo:
    """What a good request must meet, in milliseconds; None: anything."""

    ttft_ms: float | None = None
    tpot_ms: float | None = None
    e2e_ms: float | None = None

    @property
    def is_given(self) -> bool:
        return any(limit is not None for limit in (self.ttft_ms, self.tpot_ms, self.e2e_ms))

    def met_by(self, timeline: Timeline) -> bool:
        """A failed request meets nothing; one without a second token has no TPOT to miss."""
        if not timeline.ok:
            return False
        pairs = (
            (self.ttft_ms, timeline.ttft_s),
            (self.tpot_ms, timeline.tpot_s),
            (self.e2e_ms, timeline.e2e_s),
        )
        return all(limit is None or value_s is None or value_s * 1e3 <= limit for limit, value_s in pairs)


@dataclass(frozen=True, slots=True)
class Goodput:
    """Requests that met the SLO, a second and as a share of all."""

    slo: Slo
    requests_per_s: float
    share: float


@dataclass(frozen=True, slots=True)
class ServerTimes:
    """Where requests' time went, from the router's own figures.

    tokenize, queue, first_token: as in the Finished event. transport: the client's time to first token
    less the server's, so the wire and both ends' event loops.
    """

    tokenize: Percentiles
    queue: Percentiles
    first_token: Percentiles
    transport: Percentiles


@dataclass(frozen=True, slots=True)
class LoadReport:
    """One run. Latencies are of the requests that succeeded; None where there is nothing to measure."""

    requests: int
    failed: int
    errors: tuple[str, ...]
    duration_s: float
    prompt_tokens: int
    output_tokens: int
    requests_per_s: float
    output_tokens_per_s: float
    total_tokens_per_s: float
    ttft: Percentiles | None
    tpot: Percentiles | None
    itl: Percentiles | None
    e2e: Percentiles | None
    goodput: Goodput | None = None
    server: ServerTimes | None = None


def load_report(timelines: Sequence[Timeline], slo: Slo) -> LoadReport:
    """Sum up a run of at least one request, from the first one due to the last one's end."""
    good = [timeline for timeline in timelines if timeline.ok]
    duration_s = max(t.ended_s for t in timelines) - min(t.due_s for t in timelines)
    prompt = sum(t.prompt_tokens for t in good)
    output = sum(t.output_tokens for t in good)
    met = sum(slo.met_by(t) for t in timelines)
    return LoadReport(
        requests=len(timelines),
        failed=len(timelines) - len(good),
        errors=tuple(sorted({t.error or "no output" for t in timelines if not t.ok})),
        duration_s=duration_s,
        prompt_tokens=prompt,
        output_tokens=output,
        requests_per_s=len(good) / duration_s,
        output_tokens_per_s=output / duration_s,
        total_tokens_per_s=(prompt + output) / duration_s,
        ttft=percentiles([t.ttft_s for t in good]),
        tpot=percentiles([t.tpot_s for t in good if t.tpot_s is not None]),
        itl=percentiles([gap for t in good for gap in t.itls_s]),
        e2e=percentiles([t.e2e_s for t in good]),
        goodput=Goodput(slo, met / duration_s, met / len(timelines)) if slo.is_given else None,
        server=_server_times(good),
    )


def _server_times(timelines: Sequence[Timeline]) -> ServerTimes | None:
    told = [(t, t.overhead) for t in timelines if t.overhead is not None]
    tokenize = percentiles([o.tokenize_s for _, o in told])
    queue = percentiles([o.queue_s for _, o in told])
    first_token = percentiles([o.first_token_s for _, o in told])
    transport = percentiles([t.arrivals[0].at_s - t.sent_s - o.first_token_s for t, o in told])
    if tokenize is None or queue is None or first_token is None or transport is None:
        return None
    return ServerTimes(tokenize, queue, first_token, transport)


@dataclass(frozen=True, slots=True)
class Added:
    """What router and transport add to the bare engine under the same load, at the median.

    Latencies in milliseconds (negative: the server was quicker), throughput as the share that is left.
    """

    ttft_ms: float | None
    tpot_ms: float | None
    e2e_ms: float | None
    throughput_share: float


def added(served: LoadReport, engine: LoadReport) -> Added:
    """`served` less `engine`; both runs must have had successful requests."""

    def more(a: Percentiles | None, b: Percentiles | None) -> float | None:
        return a.p50_ms - b.p50_ms if a and b else None

    return Added(
        ttft_ms=more(served.ttft, engine.ttft),
        tpot_ms=more(served.tpot, engine.tpot),
        e2e_ms=more(served.e2e, engine.e2e),
        throughput_share=served.output_tokens_per_s / engine.output_tokens_per_s,
    )


@dataclass(frozen=True, slots=True)
class BatchRun:
    """One measured batch of the bare engine: until every request has its first token, and from there on."""

    prompt_tokens: int
    prefill_s: float
    decode_tokens: int
    decode_steps: int
    decode_s: float


@dataclass(frozen=True, slots=True)
class BatchReport:
    """Medians over the repeats of one batch size. decode is None when nothing was left to decode."""

    batch: int
    repeats: int
    prefill_tokens_per_s: float
    decode_tokens_per_s: float | None
    decode_step_ms: float | None


def batch_report(batch: int, runs: Sequence[BatchRun]) -> BatchReport:
    """Sum up at least one run of one batch size."""
    decoded = [run for run in runs if run.decode_steps]
    return BatchReport(
        batch=batch,
        repeats=len(runs),
        prefill_tokens_per_s=median(run.prompt_tokens / run.prefill_s for run in runs),
        decode_tokens_per_s=median(run.decode_tokens / run.decode_s for run in decoded) if decoded else None,
        decode_step_ms=median(run.decode_s / run.decode_steps * 1e3 for run in decoded) if decoded else None,
    )
