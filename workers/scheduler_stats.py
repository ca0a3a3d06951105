"""What a scheduler counts."""

from dataclasses import dataclass


@dataclass(slots=True)
class SchedulerStats:
    """Counts since the start. forks: choices and beams that began in another one's blocks."""

    steps: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    preemptions: int = 0
    recomputed_tokens: int = 0
    forks: int = 0
    copied_blocks: int = 0
