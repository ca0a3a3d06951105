"""What a leader tells its workers to compute in one step, and what comes back.

A plan knows only token ranges: chunked prefill, a prefix hit, decode and recomputation after a
preemption are all "compute tokens [start, start + count) of this sequence". It holds no tensors, so it
is tested without torch, logged and replayed. It never holds a token that the workers sampled: they
keep it, so the next plan can be made while this one runs.
"""

from dataclasses import dataclass

from rayline.protos.types import SamplingParams, TokenLogprob


@dataclass(frozen=True, slots=True)
class Admission:
    """A sequence the workers have not seen. `output_ids` is not empty for a resumed stream."""

    sequence: int
    prompt_ids: tuple[int, ...]
    output_ids: tuple[int, ...]
    params: SamplingParams


@dataclass(frozen=True, slots=True)
class Slice:
    """Compute tokens [start, start + count) of one sequence.

    `block_ids` replaces the sequence's block table from index `first_block` on. When the range ends at
    the sequence's last token (`samples`), the workers sample the next one and append it themselves.
    """

    sequence: int
    start: int
    count: int
    first_block: int
    block_ids: tuple[int, ...]
    samples: bool


@dataclass(frozen=True, slots=True)
class Plan:
    """One step. `released` sequences are forgotten before anything else is done."""

    epoch: int
    step: int
    admitted: tuple[Admission, ...] = ()
    slices: tuple[Slice, ...] = ()
    released: tuple[int, ...] = ()

    @property
    def tokens(self) -> int:
        return sum(s.count for s in self.slices)


@dataclass(frozen=True, slots=True)
class Sampled:
    """The token one sequence gained in a step."""

    sequence: int
    token_id: int
    logprob: float | None = None
    top_logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class StepResult:
    """What the last stage answers. busy_s: time the rank spent computing this step."""

    epoch: int
    step: int
    sampled: tuple[Sampled, ...] = ()
    busy_s: float = 0.0
