"""A stream as its client saw it: every event with its time, and how it ended."""

from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass, field

from rayline.protos.errors import RaylineError
from rayline.protos.events import Delta, Failed, Finished, StreamEvent
from rayline.protos.types import Spec

Ask = Callable[[Spec], AsyncIterator[StreamEvent]]


@dataclass(slots=True)
class Transcript:
    """One stream as far as it has come. error: what the call raised, also in place of events."""

    workload: str
    asked_s: float
    times_s: list[float] = field(default_factory=list)
    events: list[StreamEvent] = field(default_factory=list)
    error: RaylineError | None = None

    @property
    def tokens(self) -> int:
        """Of its first choice, so far."""
        return sum(len(event.token_ids) for event in self.events if isinstance(event, Delta) and event.choice == 0)

    @property
    def losses(self) -> int:
        """How often choices of it went on in another group because theirs was lost, as its end tells."""
        return sum(e.overhead.losses for e in self.events if isinstance(e, Finished) and e.overhead is not None)

    @property
    def is_over(self) -> bool:
        """Whether it was told how it ended."""
        return bool(self.events) and isinstance(self.events[-1], Finished | Failed)

    def pause_s(self, since_s: float) -> float | None:
        """The longest wait for a next event after `since_s`; None when none came after it."""
        befores = [self.asked_s, *self.times_s]
        gaps = [
            time_s - max(before_s, since_s)
            for before_s, time_s in zip(befores, self.times_s, strict=False)
            if time_s > since_s
        ]
        return max(gaps, default=None)

    async def follow(self, ask: Ask, spec: Spec, clock: Callable[[], float]) -> None:
        """Read a stream to its end, whatever that is."""
        try:
            async for event in ask(spec):
                self.times_s.append(clock())
                self.events.append(event)
        except RaylineError as error:
            self.error = error
        except Exception as error:
            self.error = RaylineError(f"{type(error).__name__}: {error}")

    def failure(self) -> RaylineError | None:
        """What it was failed with, by an event or by the call."""
        with suppress(StopIteration):
            return next(event.error for event in self.events if isinstance(event, Failed))
        return self.error
