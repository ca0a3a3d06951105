"""The pool of KV blocks of one group: reference counts, a cache of full blocks by hash, one invariant.

Every block is in exactly one of three places, and free + cached + held = total:

    free     nothing worth keeping                     taken first
    cached   no sequence holds it, its hash is known   taken next, least recently used first
    held     one or more sequences hold it             never taken, written while only one does
"""

from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence

from rayline.protos.blocks import BlockHash


class BlockPool:
    """Hands out block ids. Knows no sequence and no token: only ids, counts and hashes."""

    def __init__(self, total: int):
        self.total = total
        self.reserved = 0  # promised to requests that have not taken them yet
        self._free: deque[int] = deque(range(total))
        self._cached: OrderedDict[int, None] = OrderedDict()
        self._holders = [0] * total
        self._by_hash: dict[BlockHash, int] = {}
        self._hash_of: dict[int, BlockHash] = {}

    @property
    def available(self) -> int:
        """Blocks that anyone can get now."""
        return self.unheld - self.reserved

    @property
    def unheld(self) -> int:
        """Blocks that `allocate` can hand out now, the reserved ones too."""
        return len(self._free) + len(self._cached)

    @property
    def cached(self) -> int:
        return len(self._cached)

    def allocate(self, count: int) -> list[int]:
        """Take `count` blocks, evicting the least recently used cached ones. The caller checked `unheld`."""
        taken = []
        for _ in range(count):
            block = self._free.popleft() if self._free else self._evict()
            self._holders[block] = 1
            taken.append(block)
        return taken

    def match(self, hashes: Iterable[BlockHash]) -> list[int]:
        """The longest run of known blocks at the head of `hashes`; not yet held, see `share`."""
        run = []
        for name in hashes:
            block = self._by_hash.get(name)
            if block is None:
                break
            run.append(block)
        return run

    def share(self, blocks: Sequence[int]) -> None:
        """Hold blocks that `match` returned, beside whoever holds them already."""
        for block in blocks:
            self._cached.pop(block, None)
            self._holders[block] += 1

    def is_shared(self, block: int) -> bool:
        """Whether more than one sequence holds it, so that none of them may write to it."""
        return self._holders[block] > 1

    def idle(self, blocks: Sequence[int]) -> int:
        """How many of `blocks` are held by nobody, so that sharing them lowers `available`."""
        return sum(self._holders[block] == 0 for block in blocks)

    def publish(self, block: int, name: BlockHash) -> None:
        """Say what a held, full block contains. Of two blocks with equal content the first keeps the name."""
        if name not in self._by_hash and block not in self._hash_of:
            self._by_hash[name] = block
            self._hash_of[block] = name

    def release(self, blocks: Sequence[int]) -> None:
        """Let go of `blocks`; the last of a chain becomes evictable first, so that prefixes live longest."""
        for block in reversed(blocks):
            self._holders[block] -= 1
            if self._holders[block]:
                continue
            if block in self._hash_of:
                self._cached[block] = None
            else:
                self._free.append(block)

    def check(self, held: Iterable[Sequence[int]]) -> None:
        """Assert the invariant, given the block lists of all live sequences."""
        counts = [0] * self.total
        for blocks in held:
            for block in blocks:
                counts[block] += 1
        assert counts == self._holders, "reference counts differ from the sequences' tables"
        places = [*self._free, *self._cached, *(b for b in range(self.total) if counts[b])]
        assert sorted(places) == list(range(self.total)), "free + cached + held != total"
        assert all(self._by_hash[name] == block for block, name in self._hash_of.items())
        assert 0 <= self.reserved <= self.unheld, "more is promised than there is"

    def _evict(self) -> int:
        block, _ = self._cached.popitem(last=False)
        del self._by_hash[self._hash_of.pop(block)]
        return block
