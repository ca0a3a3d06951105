"""One request inside the engine: the only mutable record of it. Knows tokens and blocks, no tensors."""

from collections.abc import Sequence as Run
from dataclasses import dataclass, field

from rayline.protos.blocks import ROOT, BlockHash, block_hash
from rayline.protos.events import Usage
from rayline.protos.types import EngineRequest


@dataclass(slots=True, eq=False)
class Sequence:
    """Where a request stands on its token axis.

        0            prompt            prompt+output          length             limit
        |------------------------------|-----------------------|- - - - - - - - - |
        |  known to the leader                                 |                  |
        |                              pending: sampled by the workers, not yet reported
        |<------------ planned ------------->|  keys and values written by the plans made so far

    The scheduler alone writes it. `planned` counts plans made, not plans finished: workers run plans in
    order, so a block may be shared or given away as soon as the plan that writes it has been made.
    """

    number: int
    request: EngineRequest
    limit: int
    arrived_s: float
    output_ids: list[int] = field(default_factory=list)
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
    preemptions: int = 0
    told: bool = False  # its first token has been reported

    @property
    def rank(self) -> tuple[int, float, int]:
        """Smaller runs first, and may preempt larger."""
        return (self.request.priority, self.arrived_s, self.number)

    @property
    def known(self) -> int:
        return len(self.request.prompt_ids) + len(self.output_ids)

    @property
    def length(self) -> int:
        return self.known + self.pending

    @property
    def remaining(self) -> int:
        """Tokens to compute before the next one can be sampled; 0 when all that may come was planned."""
        return self.length - self.planned if self.length < self.limit else 0

    @property
    def outstanding_tokens(self) -> int:
        return max(0, self.limit - 1 - self.planned)

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
            parent = self.hashes[-1] if self.hashes else ROOT
            self.hashes.append(block_hash(parent, self.token_ids(end - block_tokens, end)))

    @property
    def queue_s(self) -> float:
        """Time it waited for its first plan; 0 until then."""
        return 0.0 if self.started_s is None else self.started_s - self.arrived_s

    @property
    def usage(self) -> Usage:
        return Usage(len(self.request.prompt_ids), len(self.output_ids), self.cached_tokens)
