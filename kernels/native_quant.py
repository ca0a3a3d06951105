"""Products with weights of 4 or 8 bits in C++, which the kernels quantise when they lay them out.

Exact activations: each product is a chain of fused multiply-adds on the whole numbers of the weight, in fp32; the
rounding of the weight is the only thing that sets it apart from bf16. Activations in 8 bits are a numerics class
of their own: each row is rounded in the groups of the weight, to a step of its own, and a group is summed exactly.
Either way a row's bits depend on that row alone, not on threads or instruction set, and, where every rank's share of
the depth is a whole number of groups a segment, not on tp.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from rayline.kernels.backend import Weight
from rayline.kernels.pages import are_at_hand
from rayline.kernels.program import Operations
from rayline.kernels.quantise import GROUPS, Bits, Quantised

COLUMNS = 64  # that lie together, as native/quant_layout.h has them
BITS: dict[str, Bits] = {"int4": 4, "int8": 8}
DEFAULT_GROUPS = {"int4": 64, "int8": 128}
_SLACK_BYTES = 64  # behind the last block: words are read at unaligned addresses

Weights = Literal["int4", "int8"]
Activations = Literal["exact", "int8"]


@dataclass(frozen=True, slots=True)
class Quantisation:
    """How the weights of all linear layers are kept, and what multiplies them.

    group: inputs that share a scale; 0 for the default. With 4 bits a weight takes 4 + 32 / group bits, and a weight
    drawn from a normal distribution is off by 8.1, 9.1 and 10.1 % of its deviation in groups of 32, 64 and 128;
    with 8 bits by 0.54, 0.60 and 0.65 %. So 64 and 128 are the defaults.

    The vocabulary's matrix gets 8 bits in a 4-bit model too (as llama.cpp gives it 6 or 8), where its error would go
    into the logits straight; a tied one is kept once, and the embedding reads its 8 bits. An embedding's own table
    stays in bf16.
    """

    weights: Weights
    activations: Activations = "exact"
    group: int = 0

    def __post_init__(self) -> None:
        if self.group and self.group not in GROUPS:
            raise ValueError(f"group must be one of {GROUPS}, not {self.group}")

    @property
    def name(self) -> str:
        """Part of the numerics class: int4g64, int8g128a8."""
        suffix = "a8" if self.activations == "int8" else ""
        return f"{self.weights}g{self.group_of(self.weights)}{suffix}"

    def group_of(self, weights: Weights) -> int:
        return self.group or DEFAULT_GROUPS[weights]


def pack(operations: Operations, parts: Sequence[Tensor], weights: Weights, group: int, segments: int = 1) -> Weight:
    """Quantise and lay out parts bf16 [N_i, K], each with its rows in one piece. Raises ValueError for others.

    segments: 1, 2, 4 or 8 runs of ceil(groups / segments) groups, joined as a tree (kernels/tree.py).
    """
    columns, depth = sum(len(part) for part in parts), parts[0].shape[1]
    weight = empty(operations, columns, depth, weights, group, segments)
    first = 0
    for part in parts:
        if part.dtype != torch.bfloat16 or part.stride(1) != 1 or part.shape[1] != depth:
            raise ValueError(f"parts must be bf16 [N, {depth}] with rows in one piece, not {part.dtype} {part.shape}")
        operations.call(
            "PackQuantised",
            1,
            source=part.as_strided((1,), (1,)),
            packed=weight.data,
            columns=len(part),
            depth=depth,
            stride=part.stride(0),
            first=first,
            bits=BITS[weights],
            group=group,
        )
        first += len(part)
    return weight


def pack_integers(operations: Operations, parts: Sequence[Quantised], segments: int = 1) -> Weight:
    """Lay out whole numbers that are quantised already, such as a GPTQ, AWQ or Q4_0 checkpoint's.

    scales are kept to 20 bits; those of fp16 and bf16 fit. Parts share depth, bits and group.
    """
    columns, depth = sum(len(part.q) for part in parts), parts[0].q.shape[1]
    bits, group = parts[0].bits, parts[0].group
    weight = empty(operations, columns, depth, "int4" if bits == 4 else "int8", group, segments)
    first = 0
    for part in parts:
        operations.call(
            "PackIntegers",
            1,
            q=part.q,
            scales=part.scales,
            zeros=part.zeros,
            packed=weight.data,
            columns=len(part.q),
            depth=depth,
            first=first,
            bits=bits,
            group=group,
        )
        first += len(part.q)
    return weight


def empty(operations: Operations, columns: int, depth: int, weights: Weights, group: int, segments: int) -> Weight:
    """Memory for a weight, zeros behind the last column."""
    panels, groups = -(-columns // COLUMNS), -(-depth // group)
    panel_bytes = groups * COLUMNS * (4 + group * BITS[weights] // 8)
    data = torch.empty(panels * panel_bytes + _SLACK_BYTES, dtype=torch.uint8)
    if are_at_hand(data.nbytes):
        operations.library.advise_huge_pages(data.data_ptr(), data.nbytes)
    data[(panels - 1 if columns % COLUMNS else panels) * panel_bytes :].zero_()
    return Weight(data, columns, depth, segments, weights, group=group)


def linear(
    operations: Operations,
    x: Tensor,
    weight: Weight,
    bias: Tensor | None,
    out: Tensor,
    activations: Activations,
) -> None:
    """out = x W^T (+ bias). x bf16 [T, K]; out bf16, or fp32 without bias, [T, N]."""
    is_wide = out.dtype == torch.float32
    operations.call(
        "LinearQuantisedA8" if activations == "int8" else "LinearQuantised",
        len(x),
        x=x,
        weight=weight.data,
        bias=bias,
        out=None if is_wide else out,
        out_fp32=out if is_wide else None,
        columns=weight.columns,
        depth=weight.depth,
        segments=weight.segments,
        bits=4 if weight.format == "int4" else 8,
        group=weight.group,
    )


def embedding(operations: Operations, ids: Tensor, weight: Weight, first: int = 0) -> Tensor:
    """The weight's values in rows `ids` - first, rounded to bf16; zeros for an id outside. ids int64 [T] -> [T, K]."""
    out = torch.empty((len(ids), weight.depth), dtype=torch.bfloat16, device=ids.device)
    operations.call(
        "EmbeddingQuantised",
        len(ids),
        ids=ids,
        table=weight.data,
        out=out,
        dim=weight.depth,
        first=first,
        size=weight.columns,
        bits=4 if weight.format == "int4" else 8,
        group=weight.group,
    )
    return out
