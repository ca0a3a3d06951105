"""Block tables: which blocks a sequence reads and writes, shared with others as far as their tokens are equal.

A block that several sequences hold is written by none of them. Who is to write into it gets a copy first, the last
holder writes in place:

    one   [ 4 ][ 9 ]          one   [ 4 ][ 9 ]        one   [ 4 ][ 9 ]
                        ->                       ->               copy 9 -> 2 before the step, then `two` writes to 2
    fork of one               two   [ 4 ][ 9 ]        two   [ 4 ][ 2 ]
"""

from collections.abc import Iterable

from rayline.protos.plan import Copy
from rayline.workers.scheduling.blocks import BlockPool
from rayline.workers.scheduling.reservations import Reservations
from rayline.workers.scheduling.sequence import Sequence


class BlockTables:
    """The blocks of sequences over one pool. Takes no block that is not available: the caller makes room."""

    def __init__(self, pool: BlockPool, block_tokens: int, prefix_caching: bool):
        self.pool = pool
        self.reservations = Reservations(pool)
        self._block_tokens = block_tokens
        self._prefix_caching = prefix_caching

    def room(self, sequence: Sequence) -> int:
        """Blocks that `sequence` can get now, those reserved for its request included."""
        return self.pool.available + self.reservations.kept_for(sequence.request.request_id)

    def suffice(self, sequence: Sequence, tokens: int) -> bool:
        """Whether its blocks hold its tokens up to `tokens`, and those that it is to write are its own."""
        return tokens <= len(sequence.blocks) * self._block_tokens and not self._must_copy(sequence)

    def missing(self, sequence: Sequence, tokens: int) -> int:
        """Blocks that must be free before `sequence` can write its tokens up to `tokens`."""
        return max(0, self._blocks(tokens) - len(sequence.blocks)) + self._must_copy(sequence)

    def extend(self, sequence: Sequence, tokens: int) -> Copy | None:
        """Give it blocks of its own for everything from `planned` to `tokens`; the copy that this takes."""
        unheld = self.pool.unheld
        copy = self._own(sequence) if self._must_copy(sequence) else None
        more = self._blocks(tokens) - len(sequence.blocks)
        if more > 0:
            sequence.blocks += self.pool.allocate(more)
        self.reservations.settle(sequence.request.request_id, unheld)
        return copy

    def reusable(self, sequence: Sequence, relatives: Iterable[Sequence] = ()) -> list[int]:
        """Full blocks of its first tokens that are computed, in the prefix cache or by the other beams of its request.

        One token at least is computed, since its logits are wanted, and so is every token that must be scored.
        """
        most = (sequence.length - 1) // self._block_tokens
        if sequence.unscored:
            most = min(most, sequence.scored // self._block_tokens)
        runs = [_common(sequence, other, self._block_tokens)[:most] for other in relatives]
        if self._prefix_caching:
            sequence.extend_hashes(self._block_tokens)
            runs.append(self.pool.match(sequence.hashes[:most]))
        return max(runs, key=len, default=[])

    def to_start(self, sequence: Sequence, reused: list[int]) -> int:
        """Blocks that must be available for all its present tokens and one more, of which `reused` are computed."""
        return self._blocks(sequence.length + 1) - len(reused) + self.pool.idle(reused)

    def start(self, sequence: Sequence, reused: list[int]) -> None:
        unheld = self.pool.unheld
        self.pool.share(reused)
        self.reservations.settle(sequence.request.request_id, unheld)
        sequence.blocks = reused
        sequence.published = len(reused)
        sequence.planned = len(reused) * self._block_tokens

    def fork(self, parent: Sequence, child: Sequence) -> None:
        """All tokens and blocks of `parent` are the child's too."""
        child.inherit(parent)
        self.pool.share(child.blocks)

    def release(self, sequence: Sequence) -> None:
        unheld = self.pool.unheld
        self.pool.release(sequence.blocks)
        self.reservations.settle(sequence.request.request_id, unheld)
        sequence.forget()

    def publish(self, sequence: Sequence) -> None:
        """Offer the blocks that are full of known tokens to later requests."""
        full = min(sequence.planned, sequence.known) // self._block_tokens
        if not self._prefix_caching or full <= sequence.published:
            return
        sequence.extend_hashes(self._block_tokens)
        for index in range(sequence.published, full):
            self.pool.publish(sequence.blocks[index], sequence.hashes[index])
        sequence.published = full

    def _blocks(self, tokens: int) -> int:
        return -(-tokens // self._block_tokens)

    def _must_copy(self, sequence: Sequence) -> bool:
        """Whether it is to write into a block that it shares: only its last one, part-filled, can be that."""
        index = sequence.planned // self._block_tokens
        return index < len(sequence.blocks) and self.pool.is_shared(sequence.blocks[index])

    def _own(self, sequence: Sequence) -> Copy:
        """Put a block of its own in the place of the shared one."""
        index = sequence.planned // self._block_tokens
        shared, (own,) = sequence.blocks[index], self.pool.allocate(1)
        self.pool.release([shared])
        sequence.blocks[index] = own
        sequence.sent_blocks = min(sequence.sent_blocks, index)
        return Copy(shared, own)


def _common(sequence: Sequence, other: Sequence, block_tokens: int) -> list[int]:
    """The full blocks of `other` in which both hold the same tokens; both are of one request."""
    same = len(sequence.request.prompt_ids)
    for mine, theirs in zip(sequence.output_ids, other.output_ids, strict=False):
        if mine != theirs:
            break
        same += 1
    return other.blocks[: min(same, other.planned) // block_tokens]
