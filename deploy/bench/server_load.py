"""One benchmark of a running server: the same plan can be run on a bare engine to compare."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, Self

from rayline.deploy.bench.engine_load import EngineLoad, SteppedEngine
from rayline.deploy.bench.load import Target, TargetModel, closed_loop, open_loop
from rayline.deploy.bench.timeline import Timeline
from rayline.deploy.bench.workload import Shape, poisson_arrivals
from rayline.protos.errors import ConfigError, RaylineError

ANY_VOCAB = 256  # the OpenAI API does not tell the size, and no vocabulary is smaller than the bytes


class ServerTarget(Target, Protocol):
    """A target with a connection, entered inside the event loop."""

    async def describe(self) -> TargetModel: ...

    async def __aenter__(self) -> Self: ...

    async def __aexit__(self, *error: object) -> None: ...


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """What is asked and how fast. rate_per_s: an open loop of Poisson arrivals; None: a closed loop."""

    shape: Shape
    requests: int
    concurrency: int
    rate_per_s: float | None
    warm_up: int

    def arrivals_s(self) -> Iterator[float]:
        assert self.rate_per_s is not None
        return poisson_arrivals(self.rate_per_s, self.shape.seed)

    async def run_on(self, target: Target) -> list[Timeline]:
        """Warm up, then measure. Raises the error of a warm-up request, for nothing would succeed."""
        for job in self.shape.jobs(self.warm_up, repeat=1):
            async for _ in target.run(job):
                pass
        jobs = self.shape.jobs(self.requests)
        if self.rate_per_s is None:
            return await closed_loop(target, jobs, self.concurrency)
        return await open_loop(target, jobs, self.arrivals_s())

    def run_on_engine(self, engine: SteppedEngine, temperature: float) -> list[Timeline]:
        """The same requests at the same times, on a bare engine in this process."""
        load = EngineLoad(engine, temperature)
        load.closed_loop(self.shape.jobs(self.warm_up, repeat=1), 1)
        jobs = self.shape.jobs(self.requests)
        if self.rate_per_s is None:
            return load.closed_loop(jobs, self.concurrency)
        return load.open_loop(jobs, self.arrivals_s())


def checked_vocab_size(model: TargetModel, wanted: int | None, input_tokens: int, output_tokens: int) -> int:
    """Token ids to draw prompts from. Raises ConfigError when the lengths do not fit the model's context."""
    if model.max_model_len and input_tokens + output_tokens > model.max_model_len:
        raise ConfigError(
            f"input_tokens + output_tokens = {input_tokens + output_tokens} is out of range: "
            f"{model.name} allows up to {model.max_model_len}",
            field="input_tokens",
        )
    return wanted or model.vocab_size or ANY_VOCAB


def refuse_all_failed(timelines: list[Timeline]) -> None:
    """Raise when not one request succeeded: there is nothing to report."""
    if not any(timeline.ok for timeline in timelines):
        raise RaylineError(f"all {len(timelines)} requests failed, the first with {timelines[0].error}")
