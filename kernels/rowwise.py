"""Weights and activations of 8 bits with one scale a row each, in torch: FP8 (e4m3) and whole numbers (W8A8).

    x' = step n       n of 8 bits, one step a token: the largest |x| is 448 in FP8, 127 in whole numbers
    y = (n m^T) step scale

Sums of products of whole numbers are whole, so W8A8 gives a row the same bits in any order of adding. Steps are those
of a rank's own inputs: bits depend on tp. After Micikevicius et al., "FP8 formats for deep learning" (2022), and
Dettmers et al., "LLM.int8()" (2022), without its outliers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional

from rayline.kernels.backend import Weight

Rowwise = Literal["fp8", "w8a8"]
DTYPES: dict[Rowwise, torch.dtype] = {"fp8": torch.float8_e4m3fn, "w8a8": torch.int8}
LARGEST: dict[Rowwise, float] = {"fp8": 448.0, "w8a8": 127.0}
SMALLEST = 1e-30  # a step below it counts as 0: its reciprocal could overflow
LEAST_FP8_CAPABILITY = 89  # of GPUs whose tensor cores multiply FP8
_MULTIPLE = 16  # of both sizes of a matrix that torch multiplies in FP8


@dataclass(frozen=True, slots=True, kw_only=True)
class RowWeight(Weight):
    """numbers [N, K] of 8 bits and scales fp32 [N], both in `data`."""

    numbers: Tensor
    scales: Tensor

    @property
    def kind(self) -> Rowwise:
        return "fp8" if self.format == "fp8" else "w8a8"


@dataclass(frozen=True, slots=True)
class RoundedRows:
    """What a product with a `RowWeight` takes: numbers of 8 bits [T, K] and steps fp32 [T], rounded from `dtype`."""

    numbers: Tensor
    steps: Tensor
    dtype: torch.dtype


@runtime_checkable
class RoundingKernels(Protocol):
    """Kernels that round what they make in the launch that makes it, to what `round_rows` makes of the result."""

    def rounded_rms_norm(self, x: Tensor, weight: Tensor, eps: float, target: RowWeight) -> RoundedRows:
        """`Kernels.rms_norm`, for a product with `target`, as the two that follow."""
        ...

    def rounded_add_rms_norm(
        self, x: Tensor, residual: Tensor, weight: Tensor, eps: float, target: RowWeight
    ) -> tuple[RoundedRows, Tensor]:
        """`Kernels.add_rms_norm`; the sum is not rounded."""
        ...

    def rounded_silu_gate(self, gate_up: Tensor, target: RowWeight) -> RoundedRows:
        """`Kernels.silu_gate`."""
        ...

    def rounded_linear(self, x: RoundedRows, weight: RowWeight, bias: Tensor | None, is_wide: bool) -> Tensor:
        """x W^T + bias in x's dtype, or in fp32 without bias. -> [T, N]."""
        ...


def round_rows(x: Tensor, kind: Rowwise) -> tuple[Tensor, Tensor]:
    """Numbers of 8 bits [T, K] and their steps, fp32 [T]; ties go to the even neighbour."""
    wide, largest = x.float(), LARGEST[kind]
    steps = wide.abs().amax(-1) / torch.full((), largest, device=x.device)
    inverse = torch.where(steps < SMALLEST, 0.0, 1.0 / steps)
    scaled = wide * inverse[:, None]
    return (scaled.round() if kind == "w8a8" else scaled.clamp(-largest, largest)).to(DTYPES[kind]), steps


def pack(parts: Sequence[Tensor], kind: Rowwise) -> RowWeight:
    """Round the rows [N_i, K] of parts of any float dtype, one scale a row."""
    rounded = [round_rows(part, kind) for part in parts]
    numbers = torch.cat([each.view(torch.uint8) for each, _ in rounded])
    scales = torch.cat([each for _, each in rounded])
    columns, depth = numbers.shape
    # Scales come first, so that both begin where Triton may read 16 bytes at once.
    head = functional.pad(scales, (0, -columns % 4)).view(torch.uint8)
    data = torch.cat((head, numbers.flatten()))
    return RowWeight(
        data, columns, depth, 1, kind,
        numbers=data[len(head) :].view(DTYPES[kind]).view(columns, depth),
        scales=data[: 4 * columns].view(torch.float32),
    )  # fmt: skip


def values(weight: RowWeight) -> Tensor:
    """fp32 [N, K]."""
    return weight.numbers.float() * weight.scales[:, None]


def linear(x: Tensor, weight: RowWeight, bias: Tensor | None, is_wide: bool) -> Tensor:
    """x W^T + bias in x's dtype, or in fp32 without bias, by torch. x [T, K] -> [T, N]."""
    numbers, steps = round_rows(x, weight.kind)
    product = scaled_product if weight.kind == "fp8" else _whole_product
    out = product(numbers, steps, weight, torch.float32)
    return out if is_wide else (out if bias is None else out + bias.float()).to(x.dtype)


def fits_scaled_product(weight: RowWeight) -> bool:
    """Whether torch multiplies matrices of these sizes in FP8."""
    return weight.columns % _MULTIPLE == 0 and weight.depth % _MULTIPLE == 0


def scaled_product(
    numbers: Tensor, steps: Tensor, weight: RowWeight, dtype: torch.dtype, bias: Tensor | None = None
) -> Tensor:
    """FP8, by torch._scaled_mm with a scale a row; `bias` is of this dtype."""
    across, down = steps[:, None], weight.scales[None]
    return torch._scaled_mm(numbers, weight.numbers.T, scale_a=across, scale_b=down, bias=bias, out_dtype=dtype)


def _whole_product(numbers: Tensor, steps: Tensor, weight: RowWeight, dtype: torch.dtype) -> Tensor:
    sums = torch._int_mm(numbers, weight.numbers.T)
    return (sums.float() * steps[:, None] * weight.scales).to(dtype)
