"""Writing keys and values into the paged cache."""

from torch import Tensor


def write_cache(keys: Tensor, values: Tensor, slots: Tensor, k: Tensor, v: Tensor) -> None:
    """Put token t's key and value into slot slots[t] = block * block_tokens + place in the block.

    keys, values [blocks, block_tokens, HK, D]; slots int64 [T]; k, v [T, HK, D] in the cache's dtype.
    """
    keys.flatten(0, 1).index_copy_(0, slots, k)
    values.flatten(0, 1).index_copy_(0, slots, v)
