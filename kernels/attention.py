"""Attention over a paged cache (Kwon et al. 2023) in torch: chunked prefill and decode in one call."""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from rayline.kernels.backend import AttentionShape
from rayline.kernels.context import ForwardContext

QUERY_TILE = 256  # queries of one long slice computed at once: the mask is QUERY_TILE x keys, never n x n
GATHERED_BYTES = 2**23  # keys copied out of the cache at once for one-token slices: they stay in the CPU's cache


@dataclass(frozen=True, slots=True)
class PagedKv:
    """Keys and values [blocks, block_tokens, HK, D], this step's own tokens already written."""

    keys: Tensor
    values: Tensor


def paged_attention(
    q: Tensor, cache: PagedKv, context: ForwardContext, shape: AttentionShape, sinks: Tensor | None = None
) -> Tensor:
    """softmax(q k^T scale) v of each query over the keys at its own and earlier positions.

    q [T, H, D]; sequence s of the context holds queries starts[s] to starts[s + 1] and lens[s] keys in the
    blocks tables[s]. sinks fp32 [H]: logits that take part in the softmax without a value. Returns [T, H, D]
    in q's dtype.

    Slices of one token are computed together (a Python loop would cost more than their arithmetic),
    longer ones one after another in tiles of queries.
    """
    starts, lens = context.starts, context.lens
    most_keys = GATHERED_BYTES // cache.keys[0, 0].nbytes
    is_pure_decode = starts == tuple(range(len(starts)))
    if is_pure_decode and len(lens) * max(lens) <= most_keys:
        return attend_tokens(q, cache, context.tables, max(lens), context.positions, shape, sinks)
    out = q.new_empty(q.shape)
    single: list[int] = []
    for s, (first, last) in enumerate(pairwise(starts)):
        if last - first == 1:
            single.append(s)
        elif last > first:
            mine = slice(first, last)
            out[mine] = _attend_slice(q[mine], cache, context.tables[s], lens[s], context.positions[mine], shape, sinks)
    single.sort(key=lambda s: lens[s])
    for batch in _batches(single, lens, shape.window, most_keys):
        at = torch.tensor([starts[s] for s in batch], device=q.device)
        rows = torch.tensor(batch, device=q.device)
        longest = max(lens[s] for s in batch)
        out[at] = attend_tokens(q[at], cache, context.tables[rows], longest, context.positions[at], shape, sinks)
    return out


def _batches(sequences: list[int], lens: tuple[int, ...], window: int | None, most_keys: int) -> list[list[int]]:
    """Cut sequences, shortest first, into batches of at most `most_keys` keys, padding included."""
    batches: list[list[int]] = []
    for s in sequences:
        longest = min(lens[s], window or lens[s])
        if not batches or (len(batches[-1]) + 1) * longest > most_keys:
            batches.append([])
        batches[-1].append(s)
    return batches


def _gather(cache: Tensor, blocks: Tensor) -> Tensor:
    """The tokens of some blocks in order: [blocks, block_tokens, HK, D] -> [tokens, HK, D].

    index_select copies whole blocks, several times as fast as cache[blocks].
    """
    return cache.flatten(1).index_select(0, blocks).view(-1, *cache.shape[2:])


def attend_tokens(
    q: Tensor,
    cache: PagedKv,
    tables: Tensor,
    longest: int,
    positions: Tensor,
    shape: AttentionShape,
    sinks: Tensor | None,
) -> Tensor:
    """One query of each of B sequences, none of whose keys lie at `longest` or behind.

    q [B, H, D], tables [B, W], positions [B] -> [B, H, D].

    The query heads that share a KV head become the rows of one product.
    """
    batch, heads, head_dim = q.shape
    block_tokens, kv_heads = cache.keys.shape[1:3]
    window, columns = shape.window, -(-longest // block_tokens)
    if window is None or window >= longest:
        tables = tables[:, :columns]
        at = torch.arange(columns * block_tokens, device=q.device)[None]
        visible = at <= positions[:, None]
    else:
        # Only the blocks in the window: each sequence's first one, and as many as a window can touch.
        oldest = (positions - window + 1).clamp(min=0)
        reach = torch.arange(min(columns, -(-window // block_tokens) + 1), device=q.device)
        wanted = (oldest // block_tokens)[:, None] + reach
        tables = tables.gather(1, wanted.clamp(max=tables.shape[1] - 1))
        at = (wanted[:, :, None] * block_tokens + torch.arange(block_tokens, device=q.device)).flatten(1)
        visible = (at <= positions[:, None]) & (at >= oldest[:, None])
    gathered = (batch, -1, kv_heads, head_dim)
    k, v = (_gather(part, tables.flatten()).view(gathered).transpose(1, 2) for part in (cache.keys, cache.values))
    folded = q.view(batch, kv_heads, heads // kv_heads, head_dim)
    mine = None if sinks is None else sinks.view(kv_heads, -1)
    out = _softmax_attention(folded, k, v, visible[:, None, None, :], shape, mine)
    return out.reshape(batch, heads, head_dim)


def _attend_slice(
    q: Tensor,
    cache: PagedKv,
    table: Tensor,
    length: int,
    positions: Tensor,
    shape: AttentionShape,
    sinks: Tensor | None,
) -> Tensor:
    """The queries of one sequence, the last of them its newest token. q [n, H, D], table [W] -> [n, H, D]."""
    count, heads, head_dim = q.shape
    block_tokens, kv_heads = cache.keys.shape[1:3]
    window, oldest_query = shape.window, length - count
    first_block = max(0, oldest_query - window + 1) // block_tokens if window else 0
    origin = first_block * block_tokens
    blocks = table[first_block : -(-length // block_tokens)]
    # [HK, 1, keys, D], read by each of the H / HK query heads without a copy.
    k, v = (_gather(part, blocks).transpose(0, 1).unsqueeze(1) for part in (cache.keys, cache.values))
    grouped = q.reshape(count, kv_heads, heads // kv_heads, head_dim).permute(1, 2, 0, 3)
    mine = None if sinks is None else sinks.view(kv_heads, -1, 1)
    tiles = []
    for first in range(0, count, QUERY_TILE):
        last = min(first + QUERY_TILE, count)
        low = max(0, oldest_query + first - window + 1) - origin if window else 0
        high = oldest_query + last - origin
        at = torch.arange(origin + low, origin + high, device=q.device)
        visible = at <= positions[first:last, None]
        if window:
            visible &= at > positions[first:last, None] - window
        tile = (kv_heads, heads // kv_heads, high - low, head_dim)
        k_tile, v_tile = (part[:, :, low:high].expand(tile) for part in (k, v))
        tiles.append(_softmax_attention(grouped[:, :, first:last], k_tile, v_tile, visible, shape, mine))
    return torch.cat(tiles, dim=2).flatten(0, 1).transpose(0, 1)


def _softmax_attention(
    q: Tensor, k: Tensor, v: Tensor, visible: Tensor, shape: AttentionShape, sinks: Tensor | None
) -> Tensor:
    """q [.., n, D], k and v [.., keys, D], visible bool [.., n, keys], sinks [.., n] or None -> [.., n, D]."""
    if shape.soft_cap is None and sinks is None:
        return scaled_dot_product_attention(q, k, v, attn_mask=visible, scale=shape.scale)
    scores = q.float() @ k.float().transpose(-1, -2) * shape.scale
    if shape.soft_cap is not None:
        scores = shape.soft_cap * torch.tanh(scores / shape.soft_cap)
    scores = scores.masked_fill(~visible, -torch.inf)
    if sinks is not None:
        scores = torch.cat((scores, sinks.expand(scores.shape[:-1])[..., None]), dim=-1)
    weights = scores.softmax(-1)[..., : k.shape[-2]]
    return (weights @ v.float()).to(q.dtype)
