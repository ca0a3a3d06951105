"""Paged attention in Triton: which rows and keys each program takes, and how the keys are split over programs.

    class      rows a tile      keys
    ordinary   128 or 16        one part; for a few rows as many equal parts as fill the device
    exact      64               parts of 512 keys at absolute positions, whoever computes them

In the exact class one compiled function computes prefill and decode, so a row's bits depend on the row alone.
A launch's grid follows from bounds of the lengths, the keys a program takes from the lengths on the device.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor

from rayline.kernels.backend import AttentionShape, KvLayer
from rayline.kernels.context import ForwardContext, StaticContext
from rayline.kernels.transfer import to_device, whole_numbers
from rayline.kernels.triton_attention_code import attend_tiles, join_parts
from rayline.kernels.triton_launch import Kernel, Variant

PART_TOKENS = 512  # keys of a part in the exact class
UNBOUNDED = 2**30  # as a window: all keys
LARGEST_HEAD = 256
FEW_ROWS = 16
LEAST_SPLIT_TOKENS = 256  # keys that are worth a program of their own
MOST_SPLITS = 64


@dataclass(frozen=True, slots=True)
class Tile:
    """Query rows and keys of one step of a program. joins: whether it joins parts of PART_TOKENS keys."""

    rows: int
    keys: int
    warps: int
    stages: int
    joins: bool = False

    def variant(self, block_d: int, has_cap: bool) -> Variant:
        sizes = (("BLOCK_M", self.rows), ("BLOCK_N", self.keys), ("BLOCK_D", block_d))
        return Variant((*sizes, ("SOFT_CAP", int(has_cap)), ("JOIN", int(self.joins))), self.warps, self.stages)


@dataclass(frozen=True, slots=True)
class Tiles:
    """What a class takes for slices of many rows and of few."""

    many: Tile
    few: Tile


ORDINARY = {
    64: Tiles(Tile(128, 64, 4, 3), Tile(FEW_ROWS, 64, 4, 3)),
    128: Tiles(Tile(128, 64, 8, 2), Tile(FEW_ROWS, 64, 4, 3)),
    256: Tiles(Tile(64, 32, 8, 2), Tile(FEW_ROWS, 32, 4, 3)),
}
_EXACT = {64: Tile(64, 64, 4, 3, True), 128: Tile(64, 64, 4, 2, True), 256: Tile(64, 32, 8, 2, True)}
EXACT = {size: Tiles(tile, tile) for size, tile in _EXACT.items()}

_VARIANTS = {
    tile.variant(block_d, has_cap)
    for tiles in (ORDINARY, EXACT)
    for block_d, pair in tiles.items()
    for tile in (pair.many, pair.few)
    for has_cap in (False, True)
}
ATTEND_TILES = Kernel(
    attend_tiles,
    dict.fromkeys(("q", "keys", "values"), "*T")
    | {"sinks": "*fp32", "out": "*T"}
    | dict.fromkeys(("part_tops", "part_totals", "part_values"), "*fp32")
    | dict.fromkeys(("tile_sequences", "tile_rows", "starts", "lens", "tables"), "*i32")
    | {"scale": "fp32", "soft_cap": "fp32"}
    | dict.fromkeys(("window", "group", "heads", "kv_heads", "width", "part_tokens", "query_rows", "is_split"), "i32")
    | {"head_dim": "i32:16", "block_tokens": "i32:16"},
    sorted(_VARIANTS, key=repr),
)
JOIN_PARTS = Kernel(
    join_parts,
    dict.fromkeys(("part_tops", "part_totals", "part_values", "sinks"), "*fp32")
    | {"out": "*T", "positions": "*i64", "tokens": "*i32"}
    | dict.fromkeys(("window", "heads", "splits", "part_tokens", "query_rows"), "i32")
    | {"head_dim": "i32:16"},
    [Variant((("BLOCK_D", block_d),)) for block_d in ORDINARY],
)
KERNELS = (ATTEND_TILES, JOIN_PARTS)


@dataclass(frozen=True, slots=True)
class Rows:
    """Some sequences of a step, their query rows cut into tiles.

    sequences, first_rows: int32 [tiles]. tokens: int32, the packed tokens of all of them. longest: keys of the longest.
    """

    sequences: Tensor
    first_rows: Tensor
    tokens: Tensor
    longest: int


@dataclass(frozen=True, slots=True)
class Batch:
    """A step as the device reads it: starts int32 [S + 1], lens int32 [S], and its sequences of few and many rows."""

    context: ForwardContext
    starts: Tensor
    lens: Tensor
    few: Rows
    many: Rows


@dataclass(slots=True)
class PagedAttention:
    """Attention of one class. units: processors of the device, which a split is to fill; 0 splits nothing.

    All layers of a step share the batch that the first one made.
    """

    tiles: dict[int, Tiles]
    units: int
    _batches: dict[int, Batch] = field(default_factory=dict)
    _static: dict[tuple[int, int], Batch] = field(default_factory=dict)
    _no_sinks: dict[int, Tensor] = field(default_factory=dict)

    def attend(
        self, q: Tensor, shape: AttentionShape, layer: KvLayer, context: ForwardContext, sinks: Tensor | None
    ) -> Tensor:
        """`Kernels.attend`. Raises ValueError for heads of more than 256 numbers."""
        out = torch.empty_like(q)
        tiles = self.tiles[block_d(shape.head_dim)]
        batch = self._batch(context, shape.heads // shape.kv_heads, tiles, q.device)
        logits = self._sinks(shape.heads, q.device) if sinks is None else sinks
        for tile, rows in ((tiles.many, batch.many), (tiles.few, batch.few)):
            if len(rows.sequences):
                splits = self._splits(tile, rows, shape) if rows is batch.few else 1
                _launch(q, shape, layer, batch, rows, logits, out, tile, splits)
        return out

    def _batch(self, context: ForwardContext, group: int, tiles: Tiles, device: torch.device) -> Batch:
        if isinstance(context, StaticContext):
            key = (id(context), group)  # the batch holds the context, so nobody else gets its id
            if key not in self._static:
                self._static[key] = static_batch(context, group, tiles.few)
            return self._static[key]
        found = self._batches.get(group)
        if found is None or found.context is not context:
            found = batch_of(context, group, tiles, device)
            self._batches[group] = found
        return found

    def _sinks(self, heads: int, device: torch.device) -> Tensor:
        if heads not in self._no_sinks:
            self._no_sinks[heads] = torch.full((heads,), -torch.inf, device=device)
        return self._no_sinks[heads]

    def _splits(self, tile: Tile, rows: Rows, shape: AttentionShape) -> int:
        """Programs that share the keys of a tile of rows; of no account to the bits where the tile joins parts."""
        programs = max(1, len(rows.sequences) * shape.kv_heads)
        seen = min(rows.longest, shape.window or rows.longest)
        worth = -(-seen // PART_TOKENS) if tile.joins else seen // LEAST_SPLIT_TOKENS
        return min(-(-2 * self.units // programs), worth, MOST_SPLITS) or 1


def block_d(head_dim: int) -> int:
    """Numbers of a head with padding. Raises ValueError when no variant has them."""
    fitting = [size for size in ORDINARY if size >= head_dim]
    if not fitting:
        raise ValueError(f"head_dim must be at most {LARGEST_HEAD}, not {head_dim}")
    return fitting[0]


def batch_of(context: ForwardContext, group: int, tiles: Tiles, device: torch.device) -> Batch:
    """One copy to the device for the whole step."""
    few: list[int] = []
    many: list[int] = []
    for sequence, (first, last) in enumerate(pairwise(context.starts)):
        if last > first:
            (few if (last - first) * group <= max(FEW_ROWS, group) else many).append(sequence)
    parts: list[list[int]] = [list(context.starts), list(context.lens)]
    for sequences, tile in ((few, tiles.few), (many, tiles.many)):
        counts = {s: context.starts[s + 1] - context.starts[s] for s in sequences}
        cut = [(s, row) for s in sequences for row in range(0, counts[s] * group, tile.rows)]
        tokens = [context.starts[s] + i for s in few for i in range(counts[s])] if sequences is few else []
        parts += [[s for s, _ in cut], [row for _, row in cut], tokens]
    flat = whole_numbers([number for part in parts for number in part]).int()
    starts, lens, *rows = torch.split(to_device(flat, device), [len(part) for part in parts])
    return Batch(context, starts, lens, _rows(rows[:3], few, context), _rows(rows[3:], many, context))


def static_batch(context: StaticContext, group: int, tile: Tile) -> Batch:
    """Of one token a sequence, in memory that stays: made before anything is captured."""
    sequences, device = len(context.lens), context.device_lens.device
    order = torch.arange(sequences, dtype=torch.int32, device=device)
    first_rows = torch.arange(0, group, tile.rows, dtype=torch.int32, device=device)
    few = Rows(order.repeat_interleave(len(first_rows)), first_rows.repeat(sequences), order, max(context.lens))
    nothing = order[:0]
    return Batch(context, context.device_starts, context.device_lens, few, Rows(nothing, nothing, nothing, 0))


def _rows(tensors: Sequence[Tensor], sequences: Sequence[int], context: ForwardContext) -> Rows:
    tile_sequences, first_rows, tokens = tensors
    return Rows(tile_sequences, first_rows, tokens, max((context.lens[s] for s in sequences), default=0))


def _launch(
    q: Tensor,
    shape: AttentionShape,
    layer: KvLayer,
    batch: Batch,
    rows: Rows,
    sinks: Tensor,
    out: Tensor,
    tile: Tile,
    splits: int,
) -> None:
    query_rows, dim, is_split = len(q) * shape.heads, shape.head_dim, splits > 1
    parts = -(-rows.longest // PART_TOKENS) if tile.joins else splits
    held = parts * query_rows if is_split else 1
    tops, totals = q.new_empty((2, held), dtype=torch.float32)
    values = q.new_empty((held, dim), dtype=torch.float32)
    window, size = shape.window or UNBOUNDED, block_d(dim)
    # Triton reads a table's row by its stride, so a view of the step's tables will do.
    ATTEND_TILES.launch(
        (len(rows.sequences), shape.kv_heads, splits),
        tile.variant(size, shape.soft_cap is not None),
        q=q, keys=layer.keys, values=layer.values, sinks=sinks, out=out,
        part_tops=tops, part_totals=totals, part_values=values,
        tile_sequences=rows.sequences, tile_rows=rows.first_rows,
        starts=batch.starts, lens=batch.lens, tables=batch.context.tables,
        scale=shape.scale, soft_cap=shape.soft_cap or 0.0, window=window,
        group=shape.heads // shape.kv_heads, heads=shape.heads, kv_heads=shape.kv_heads,
        width=batch.context.tables.stride(0), part_tokens=PART_TOKENS, query_rows=query_rows,
        is_split=int(is_split), head_dim=dim, block_tokens=layer.block_tokens,
    )  # fmt: skip
    if is_split:
        JOIN_PARTS.launch(
            (len(rows.tokens), shape.heads),
            Variant((("BLOCK_D", size),)),
            part_tops=tops, part_totals=totals, part_values=values, sinks=sinks, out=out,
            positions=batch.context.positions, tokens=rows.tokens, window=window, heads=shape.heads,
            splits=0 if tile.joins else splits, part_tokens=PART_TOKENS, query_rows=query_rows, head_dim=dim,
        )  # fmt: skip
