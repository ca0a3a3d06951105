"""What a group tells its routers about itself."""

import sys
from dataclasses import dataclass
from enum import StrEnum


class PreemptionReason(StrEnum):
    """Why a request lost its KV blocks."""

    GROWTH = "growth"  # a request before it in rank needed them for its next tokens
    STUCK = "stuck"  # beam searches held so many that nobody could move
    OWN_BEAMS = "own_beams"  # another beam of the same request needed them


@dataclass(frozen=True, slots=True)
class GroupLoad:
    """What a group reports after each step, and the router balances on."""

    running: int = 0
    waiting: int = 0
    outstanding_tokens: int = 0  # prompt tokens not yet computed + output tokens not yet sampled
    free_blocks: int = 0
    total_blocks: int = 0
    draining: bool = False  # finishes what it has, takes nothing new
    preemptions: tuple[int, ...] = ()  # since the start, one count for each PreemptionReason in its order
    recomputed_tokens: int = 0  # since the start, because of preemptions
    tokens_per_s: float = 0.0  # of waiting requests' tokens that start, while any wait; 0 before that was seen
    waiting_tokens: int = 0  # that those who wait bring along


@dataclass(frozen=True, slots=True)
class GroupInfo:
    """What a group is: fixed once it has started."""

    group_id: str
    model: str
    numerics: str
    exact: bool
    max_model_len: int
    vocab_size: int
    block_tokens: int
    total_blocks: int
    max_waiting: int
    epoch: int
    max_waiting_tokens: int = sys.maxsize
    weights: str = ""  # a fingerprint of the model's files

    @property
    def bits(self) -> tuple[str, str]:
        """What decides the bits of an exact stream besides the request."""
        return self.numerics, self.weights
