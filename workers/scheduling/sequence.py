"""One sequence inside the engine: the only mutable record of it. Knows tokens and blocks, no tensors."""

from collections.abc import Sequence as Run
from dataclasses import dataclass, field
from enum import Enum, auto

from rayline.protos.blocks import BlockHash, block_hash, root_hash
from rayline.protos.events import Preempted, Usage
from rayline.protos.types import EngineRequest


class Place(Enum):
    """Where a sequence is kept.

    ASIDE: neither waits for blocks nor holds any. A choice that will fork from another one, or a beam that lost its
    blocks and waits for the other beams of its request.
    """

    QUEUED = auto()
    RUNNING = auto()
    ASIDE = auto()


@dataclass(slots=True, eq=False)
class Sequence:
    """Where a request, or one beam of it, stands on its token axis.

        0            prompt            prompt+output          length             limit
        |------------------------------|-----------------------|- - - - - - - - - |
        |  known to the leader                                 |                  |
        |                              pending: sampled by the workers, not yet reported
        |<------------ planned ------------->|  keys and values written by the plans made so far

    The scheduler alone writes it. `planned` counts plans made, not plans finished: workers run plans in
    order, so a block may be shared or given away as soon as the plan that writes it has been made.

    A beam gains no token from the workers: they answer with candidates (`awaited` until then), and it stays idle
    until the search gives it one of them.
    """

    number: int
    request: EngineRequest
    limit: int
    arrived_s: float
    order: int  # the number of the request's first sequence
    output_ids: list[int] = field(default_factory=list)
    place: Place = Place.ASIDE
    pending: int = 0
    planned: int = 0
    blocks: list[int] = field(default_factory=list)
    sent_blocks: int = 0  # how many of `blocks` the workers know
    published: int = 0  # how many of `blocks` were offered to the prefix cache
    hashes: list[BlockHash] = field(default_factory=list)  # of the full blocks of the known tokens
    introduced: bool = False  # the workers have the prompt
    last_step: int = -(2**31)
    started_s: float | None = None
    cached_tokens: int = 0
    computed: int = 0  # most tokens that were ever planned or found computed
    preemptions: int = 0  # of the whole request, counted by its first sequence; so are the
    recomputed_tokens: int = 0
    told: bool = False  # its first token has been reported
    scored: int = 0  # prompt tokens behind which the next one's logprob was planned
    is_idle: bool = False
    awaited: bool = False
    rank: tuple[int, float, int, int] = field(init=False)
    prompt_tokens: int = field(init=False)
    given: int = field(init=False)  # tokens that the request brought along
    is_beam: bool = field(init=False)

    def __post_init__(self) -> None:
        """rank: smaller runs first, and may preempt larger. No request stands between the beams of another one."""
        self.rank = (self.request.priority, self.arrived_s, self.order, self.number)
        self.prompt_tokens = len(self.request.prompt_ids)
        self.given = self.prompt_tokens + len(self.request.output_ids)
        self.is_beam = self.request.params.beam_width > 0

    @property
    def known(self) -> int:
        return self.prompt_tokens + len(self.output_ids)

    @property
    def length(self) -> int:
        return self.known + self.pending

    @property
    def remaining(self) -> int:
        """Tokens to compute before the next one can be sampled; 0 when all that may come was planned."""
        length = self.prompt_tokens + len(self.output_ids) + self.pending
        return length - self.planned if length < self.limit and not self.is_idle else 0

    @property
    def unscored(self) -> int:
        """Prompt tokens behind which the next one's logprob is still wanted. A resumed stream had them before."""
        params, outputs = self.request.params, self.request.output_ids
        if params.prompt_logprobs is None or outputs:
            return 0
        return max(0, len(self.request.prompt_ids) - 1 - self.scored)

    @property
    def outstanding_tokens(self) -> int:
        return max(0, self.limit - 1 - self.planned)

    @property
    def is_fresh(self) -> bool:
        """It has no output yet, and none is on its way."""
        return not self.output_ids and not self.pending

    @property
    def is_stalled(self) -> bool:
        """Its group is gone, and nothing has come of it since."""
        return self.request.is_stalled and len(self.output_ids) == len(self.request.output_ids)

    def inherit(self, parent: "Sequence") -> None:
        """Stand where `parent` stands, in its blocks, which the caller shares in the pool.

        The workers know its tokens by then; they get its table with its first slice.
        """
        self.output_ids = list(parent.output_ids)
        self.planned, self.published, self.scored = parent.planned, parent.published, parent.scored
        self.computed = parent.computed
        self.blocks, self.sent_blocks = list(parent.blocks), 0
        self.hashes = list(parent.hashes)
        self.last_step, self.started_s = parent.last_step, parent.started_s
        self.introduced = True

    def forget(self) -> None:
        """Without blocks everything is computed again; the caller releases them."""
        self.blocks, self.planned, self.sent_blocks, self.published = [], 0, 0, 0

    def token_ids(self, start: int, end: int) -> Run[int]:
        """Known tokens [start, end)."""
        prompt = self.request.prompt_ids
        if end <= len(prompt):
            return prompt[start:end]
        split = max(0, start - len(prompt))
        return [*prompt[start:], *self.output_ids[split : end - len(prompt)]]

    def extend_hashes(self, block_tokens: int) -> None:
        """Name the full blocks of the tokens known by now."""
        for end in range((len(self.hashes) + 1) * block_tokens, self.known + 1, block_tokens):
            parent = self.hashes[-1] if self.hashes else root_hash(self.request.cache_salt)
            self.hashes.append(block_hash(parent, self.token_ids(end - block_tokens, end)))

    @property
    def queue_s(self) -> float:
        """Time it waited for its first plan; 0 until then."""
        return 0.0 if self.started_s is None else self.started_s - self.arrived_s

    @property
    def preempted(self) -> Preempted:
        return Preempted(self.preemptions, self.recomputed_tokens)

    @property
    def usage(self) -> Usage:
        """Of what the client has got: nothing of a search that goes on."""
        outputs = 0 if self.is_beam else len(self.output_ids)
        return Usage(len(self.request.prompt_ids), outputs, self.cached_tokens)
