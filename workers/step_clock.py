"""How long a rank's device computed, and how long it stood idle between one thing and the next."""

from dataclasses import dataclass

from rayline.workers.marks import Mark


@dataclass(frozen=True, slots=True)
class Span:
    """What was launched between two marks."""

    began: Mark
    ended: Mark

    @property
    def seconds(self) -> float:
        return self.ended.seconds_since(self.began)


@dataclass(slots=True)
class StepClock:
    """Sums over the steps that are done, told in the order in which the device computed them.

    gap_s: between a step's parts and between steps; not before the first one.
    """

    steps: int = 0
    busy_s: float = 0.0
    gap_s: float = 0.0
    sample_s: float = 0.0
    sample_steps: int = 0
    _last: Mark | None = None

    def forward(self, span: Span) -> float:
        """A step's forward pass is done: its seconds."""
        self.steps += 1
        return self._take(span)

    def sampling(self, span: Span, has_rows: bool) -> float:
        """What followed it, from logits to tokens. has_rows: there were any to choose."""
        seconds = self._take(span)
        self.sample_s += seconds
        self.sample_steps += has_rows
        return seconds

    def _take(self, span: Span) -> float:
        if self._last is not None:
            self.gap_s += span.began.seconds_since(self._last)
        self._last = span.ended
        seconds = span.seconds
        self.busy_s += seconds
        return seconds
