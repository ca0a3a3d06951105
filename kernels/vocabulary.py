"""How a vocabulary is cut: into segments that sums over it are made of, and those into the ranks' parts."""

LEAVES = 8
"""Segments, and so the leaves of the tree that sums over the vocabulary are."""
_LANES = 16


def vocab_segment(vocab_size: int) -> int:
    """Length of a segment: an eighth of the vocabulary, rounded up to whole vectors."""
    return -(-vocab_size // (LEAVES * _LANES)) * _LANES


def vocab_share(vocab_size: int, tp_size: int) -> int:
    """Ids of each rank's part: whole segments when tp divides them. The last parts may hold fewer ids, or none."""
    if tp_size == 1 or LEAVES % tp_size:
        return -(-vocab_size // tp_size)
    return LEAVES // tp_size * vocab_segment(vocab_size)
