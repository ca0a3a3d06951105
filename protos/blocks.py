"""Names of full KV blocks: a hash chain over their tokens, shared by block pool and router."""

import hashlib
from collections.abc import Iterator, Sequence
from typing import NewType

from rayline.protos.token_ids import packed

BlockHash = NewType("BlockHash", bytes)

ROOT = BlockHash(b"")


def root_hash(salt: str) -> BlockHash:
    """Where a chain begins: chains of different salts have no hash in common. "" is `ROOT`."""
    return BlockHash(hashlib.sha256(b"salt:" + salt.encode()).digest()[:16]) if salt else ROOT


def block_hash(parent: BlockHash, token_ids: Sequence[int]) -> BlockHash:
    """Hash of one block given its predecessor's, so that equal hashes mean equal prefixes.

    128 bits of SHA-256: a collision would serve one user another's keys and values.
    """
    return BlockHash(hashlib.sha256(parent + packed(token_ids)).digest()[:16])


def block_hashes(token_ids: Sequence[int], block_tokens: int, salt: str = "") -> Iterator[BlockHash]:
    """Hashes of the full blocks of `token_ids`, first to last; a part block at the end has none."""
    parent = root_hash(salt)
    for end in range(block_tokens, len(token_ids) + 1, block_tokens):
        parent = block_hash(parent, token_ids[end - block_tokens : end])
        yield parent
