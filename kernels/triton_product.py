"""A product in Triton whose rows do not depend on the batch, nor, cut into whole leaves, on tp.

The tile is one for all numbers of rows, so a row alone and a row among 4,096 go through the same instructions. With few
rows each leaf gets programs of its own, so that the whole device reads weights.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from rayline.kernels.backend import Weight
from rayline.kernels.triton_launch import Kernel, Variant
from rayline.kernels.triton_product_code import join_leaves, product_tiles

DEPTH = 64  # of a tile
LEAVES = (1, 2, 4, 8)


@dataclass(frozen=True, slots=True)
class Tile:
    """Rows and columns of a result that one program computes."""

    rows: int
    columns: int
    warps: int
    stages: int

    def variant(self, **constants: int) -> Variant:
        sizes = {"BLOCK_M": self.rows, "BLOCK_N": self.columns} | constants
        return Variant(tuple(sizes.items()), self.warps, self.stages)

    def number(self, rows: int, columns: int) -> int:
        """Of tiles in a whole result."""
        return -(-rows // self.rows) * -(-columns // self.columns)


TILE = Tile(64, 128, 8, 3)
_EVEN, _UNEVEN = (TILE.variant(BLOCK_K=DEPTH, EVEN=even) for even in (1, 0))
_JOIN = Variant((("BLOCK", 1024),))

PRODUCT_TILES = Kernel(
    product_tiles,
    dict.fromkeys(("x", "weight", "bias", "out"), "*T")
    | {"wide": "*fp32"}
    | dict.fromkeys(("rows", "leaves", "has_bias", "is_wide", "is_split"), "i32")
    | dict.fromkeys(("columns", "depth", "leaf_depth"), "i32:16"),
    [_EVEN, _UNEVEN],
)
JOIN_LEAVES = Kernel(
    join_leaves,
    {"parts": "*fp32", "bias": "*T", "out": "*T", "wide": "*fp32"}
    | dict.fromkeys(("numbers", "leaves", "has_bias", "is_wide"), "i32")
    | {"columns": "i32:16"},
    [_JOIN],
)
KERNELS = (PRODUCT_TILES, JOIN_LEAVES)


@dataclass(frozen=True, slots=True)
class Result:
    """Where a product [rows, columns] goes: out in the model's dtype, + bias, or wide in fp32 without."""

    rows: int
    columns: int
    bias: Tensor | None
    out: Tensor
    wide: Tensor
    is_wide: bool

    @staticmethod
    def of(x: Tensor, columns: int, bias: Tensor | None, is_wide: bool, dtype: torch.dtype | None = None) -> "Result":
        """Memory for it; what is not written is of one number. dtype: the model's, x's own by default."""
        out = x.new_empty((1, 1) if is_wide else (len(x), columns), dtype=dtype or x.dtype)
        wide = x.new_empty((len(x), columns) if is_wide else (1, 1), dtype=torch.float32)
        return Result(len(x), columns, bias, out, wide, is_wide)

    @property
    def tensor(self) -> Tensor:
        return self.wide if self.is_wide else self.out

    def join(self, parts: Tensor) -> None:
        """Sum leaves fp32 [leaves, rows, columns] as a tree (kernels/tree.py)."""
        numbers = self.rows * self.columns
        JOIN_LEAVES.launch(
            (-(-numbers // _JOIN["BLOCK"]),), _JOIN,
            parts=parts, bias=self.out if self.bias is None else self.bias, out=self.out, wide=self.wide,
            numbers=numbers, leaves=len(parts), has_bias=int(self.bias is not None), is_wide=int(self.is_wide),
            columns=self.columns,
        )  # fmt: skip


def leaves_of(depth: int) -> int:
    """Leaves of a product that no rank cuts: as many as make whole tiles for 16-bit numbers, else one chain."""
    return LEAVES[-1] if depth % (LEAVES[-1] * 16) == 0 else 1


def product(x: Tensor, weight: Weight, bias: Tensor | None, is_wide: bool, units: int) -> Tensor:
    """x W^T + bias in x's dtype, or in fp32 without bias. x [T, K], weight.data [N, K] -> [T, N].

    weight.segments divides the depth. units: processors to fill with programs; the bits do not depend on it.
    """
    rows, columns, depth, leaves = len(x), weight.columns, weight.depth, weight.segments
    result = Result.of(x, columns, bias, is_wide)
    tiles = TILE.number(rows, columns)
    is_split = leaves > 1 and tiles < 2 * units
    wide = x.new_empty((leaves, rows, columns), dtype=torch.float32) if is_split else result.wide
    leaf_depth = depth // leaves
    PRODUCT_TILES.launch(
        (tiles, leaves if is_split else 1),
        _UNEVEN if leaf_depth % DEPTH else _EVEN,
        x=x, weight=weight.data, bias=result.out if bias is None else bias, out=result.out, wide=wide,
        rows=rows, leaves=leaves, has_bias=int(bias is not None), is_wide=int(is_wide), is_split=int(is_split),
        columns=columns, depth=depth, leaf_depth=leaf_depth,
    )  # fmt: skip
    if is_split:
        result.join(wide)
    return result.tensor
