"""How many KV blocks a group gets: from kv_bytes, or from the memory left once the weights are loaded.

    bytes of a block on a rank = 2 x layers x kv heads x head dim x bytes x tokens of a block

All ranks hold the same block ids, so the rank with the least room decides.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from rayline.cluster.config import EngineSection
from rayline.protos.errors import NotEnoughMemory

LEAST_TOKENS = 2  # of a context worth having: one of the prompt, one of the output
SLOT_MULTIPLE_TOKENS = 16  # kernels read keys and values in tiles of so many tokens


@dataclass(frozen=True, slots=True)
class RankMemory:
    """One rank after loading. host: the node whose memory it shares with its neighbours."""

    host: str
    free_bytes: int
    block_bytes: int


@dataclass(frozen=True, slots=True)
class KvPlan:
    """The KV cache of a group. bytes: of all its ranks together. is_static: its blocks are slots (see static_slots)."""

    blocks: int
    tokens: int
    bytes: int
    max_model_len: int
    is_static: bool = False


@dataclass(frozen=True, slots=True)
class KvWish:
    """What the operator asked for. max_model_len 0: whatever fits, up to the model's own limit."""

    kv_bytes: int
    memory_fraction: float
    block_tokens: int
    max_model_len: int
    model_limit: int
    max_running: int
    groups: int
    is_static: bool = False


def static_slots(engine: EngineSection, context: int) -> EngineSection:
    """`engine` as its static KV cache makes it: one block holds a whole context, so a sequence never needs another.

    Blocks that are whole contexts have no prefix to share. The last place of a slot is never a sequence's: the
    last token of a full context is sampled and not computed.
    """
    slot_tokens = -(-context // SLOT_MULTIPLE_TOKENS) * SLOT_MULTIPLE_TOKENS
    return replace(engine, block_tokens=slot_tokens, prefix_caching=False)


def plan_kv(ranks: Sequence[RankMemory], wish: KvWish) -> KvPlan:
    """Blocks of a group's KV cache. Raises NotEnoughMemory when not even one full context fits.

    Without kv_bytes each rank gets free x fraction / (ranks on its host x groups), and never more than
    max_running sequences of full length could use.
    """
    neighbours = Counter(rank.host for rank in ranks)
    length = wish.max_model_len or wish.model_limit
    useful = wish.max_running * -(-length // wish.block_tokens)
    blocks = useful if not wish.kv_bytes else wish.kv_bytes // max(rank.block_bytes for rank in ranks)
    for rank in ranks:
        room = rank.free_bytes / (neighbours[rank.host] * wish.groups)
        if wish.kv_bytes and wish.kv_bytes > room:
            raise NotEnoughMemory(
                f"kv_bytes = {wish.kv_bytes} is out of range: at most {int(room)} bytes are free for each rank",
                field="kv_bytes",
            )
        if not wish.kv_bytes:
            blocks = min(blocks, int(room * wish.memory_fraction) // rank.block_bytes)
    if wish.is_static:
        blocks = min(blocks, useful)  # nobody could use another slot
    need = -(-(wish.max_model_len or LEAST_TOKENS) // wish.block_tokens)
    if blocks < need:
        least = need * max(rank.block_bytes for rank in ranks)
        if wish.is_static:
            raise NotEnoughMemory(
                f"kv_cache = static needs kv_bytes of at least {least} for each rank: one slot of {wish.block_tokens} "
                "tokens; a smaller max_model_len makes slots smaller",
                field="kv_cache",
            )
        why = f"max_model_len = {length} needs" if wish.max_model_len else "the shortest request needs"
        raise NotEnoughMemory(
            f"the KV cache has room for {blocks * wish.block_tokens} tokens, {why} kv_bytes of at least {least} "
            "for each rank",
            field="kv_bytes",
        )
    tokens = blocks * wish.block_tokens
    total = blocks * sum(rank.block_bytes for rank in ranks)
    return KvPlan(blocks, tokens, total, min(length, tokens), wish.is_static)
