"""What a scheduler counts."""

from collections import Counter
from dataclasses import dataclass, field

from rayline.protos.group import PreemptionReason


@dataclass(slots=True)
class SchedulerStats:
    """Counts since the start. forks: choices and beams that began in another one's blocks."""

    steps: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    recomputed_tokens: int = 0
    forks: int = 0
    copied_blocks: int = 0
    preemptions_by: Counter[PreemptionReason] = field(default_factory=Counter)

    @property
    def preemptions(self) -> int:
        return self.preemptions_by.total()
