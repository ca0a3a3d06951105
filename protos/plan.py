"""What a leader tells its workers to compute in one step, and what comes back.

A plan knows only token ranges: chunked prefill, a prefix hit, decode and recomputation after a
preemption are all "compute tokens [start, start + count) of this sequence". It holds no tensors, so it
is tested without torch, logged and replayed. It never holds a token that the workers sampled: they
keep it, so the next plan can be made while this one runs. Tokens of beams are the leader's choice: it gives them back.
"""

from dataclasses import dataclass

from rayline.protos.events import TokenLogprob
from rayline.protos.types import PLAIN_RULES, SamplingParams, TokenRules


@dataclass(frozen=True, slots=True)
class Admission:
    """A sequence the workers have not seen. `output_ids` is not empty for a resumed stream."""

    sequence: int
    prompt_ids: tuple[int, ...]
    output_ids: tuple[int, ...]
    params: SamplingParams
    rules: TokenRules = PLAIN_RULES


@dataclass(frozen=True, slots=True)
class Fork:
    """A sequence that begins with all tokens of `parent` known so far. Its block table comes with its first slice."""

    sequence: int
    parent: int
    params: SamplingParams


@dataclass(frozen=True, slots=True)
class Gain:
    """A token that the leader appends to a sequence."""

    sequence: int
    token_id: int


@dataclass(frozen=True, slots=True)
class Copy:
    """The keys and values of block `source` are copied to block `target`, in all layers."""

    source: int
    target: int


@dataclass(frozen=True, slots=True)
class Slice:
    """Compute tokens [start, start + count) of one sequence.

    `block_ids` replaces the sequence's block table from index `first_block` on. When the range ends at
    the sequence's last token (`samples`), the workers sample the next one and append it themselves; so do `forks`,
    which sample from the same logits. A beam's row is answered with candidates instead. `scores`: the logprobs of the
    tokens behind those of the range are wanted, as far as they are known.
    """

    sequence: int
    start: int
    count: int
    first_block: int
    block_ids: tuple[int, ...]
    samples: bool
    forks: tuple[int, ...] = ()
    scores: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """One step, followed in the order admitted, forked, gained, released, copies (all sources are read before a target
    is written), slices."""

    epoch: int
    step: int
    admitted: tuple[Admission, ...] = ()
    slices: tuple[Slice, ...] = ()
    released: tuple[int, ...] = ()
    forked: tuple[Fork, ...] = ()
    gained: tuple[Gain, ...] = ()
    copies: tuple[Copy, ...] = ()

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
class Candidates:
    """The best next tokens of one beam by processed logprob, best first, ties to the lower id."""

    sequence: int
    tokens: tuple[TokenLogprob, ...]


@dataclass(frozen=True, slots=True)
class Scored:
    """Logprobs of prompt tokens [start, start + len(tokens)) of one sequence: each one's own, then the best there."""

    sequence: int
    start: int
    tokens: tuple[tuple[TokenLogprob, tuple[TokenLogprob, ...]], ...]


@dataclass(frozen=True, slots=True)
class Refused:
    """A sequence that cannot go on: `message` says why its grammar failed. It gained no token."""

    sequence: int
    message: str


@dataclass(frozen=True, slots=True)
class StepResult:
    """What the last stage answers. busy_s: time the rank spent computing this step, sample_s: of it, in sampling."""

    epoch: int
    step: int
    sampled: tuple[Sampled, ...] = ()
    busy_s: float = 0.0
    sample_s: float = 0.0
    candidates: tuple[Candidates, ...] = ()
    scored: tuple[Scored, ...] = ()
    refused: tuple[Refused, ...] = ()
