"""Weights rounded to 4 or 8 bits in groups along the depth, in plain torch: what native/quant_pack.h does in C++.

    w' = scale (q - zero)        one scale a row and group, and one zero with 4 bits; 8 bits have zero 128

q is the nearest whole number. A scale keeps 20 of its 24 bits: then w' is exact in fp32.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

Bits = Literal[4, 8]
GROUPS = (32, 64, 128)

_SMALLEST = 1e-30  # a scale below it is 0: its reciprocal could overflow
_ZERO_OF_BYTES = 128


@dataclass(frozen=True, slots=True)
class Quantised:
    """A weight [N, K] in ceil(K / group) groups a row.

    q: uint8 [N, K]. scales: fp32 [N, groups]. zeros: uint8 [N, groups] with 4 bits, None with 8.
    """

    q: Tensor
    scales: Tensor
    zeros: Tensor | None
    bits: Bits
    group: int

    @property
    def minima(self) -> Tensor:
        """scale * zero, fp32 [N, groups]: w' = scale q - minimum."""
        return self.scales * (_ZERO_OF_BYTES if self.zeros is None else self.zeros.float())


def quantise(weight: Tensor, bits: Bits, group: int) -> Quantised:
    """Round a weight [N, K] of any float dtype to the nearest of 16 or 255 values a group, 0 among them.

    |w - w'| <= scale / 2 but for rounding in fp32. Raises ValueError for a group that no kernel has.
    """
    if group not in GROUPS:
        raise ValueError(f"a group of {group} inputs is none of {', '.join(map(str, GROUPS))}")
    grouped = _grouped(weight.float(), group)
    above, below = grouped.amax(-1).clamp(min=0), (-grouped).amax(-1).clamp(min=0)
    scales = short_scales((above + below) / 15 if bits == 4 else torch.maximum(above, below) / 127)
    inverse = torch.where(scales > 0, 1 / scales, 0)
    zeros = (below * inverse).round().clamp(max=15) if bits == 4 else torch.full_like(scales, _ZERO_OF_BYTES)
    least, most = (0, 15) if bits == 4 else (1, 255)
    q = ((grouped * inverse[..., None]).round() + zeros[..., None]).clamp(least, most)
    q = q.to(torch.uint8).flatten(1)[:, : weight.shape[1]].contiguous()
    return Quantised(q, scales, zeros.to(torch.uint8) if bits == 4 else None, bits, group)


def dequantise(quantised: Quantised) -> Tensor:
    """The weight's values, exact: fp32 [N, K]."""
    zeros = _ZERO_OF_BYTES if quantised.zeros is None else quantised.zeros.float()[..., None]
    grouped = quantised.scales[..., None] * (_grouped(quantised.q.float(), quantised.group) - zeros)
    return grouped.flatten(1)[:, : quantised.q.shape[1]]


def round_activations(x: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """x = step n: whole n in [-127, 127], fp32 [T, groups, group], and steps, fp32 [T, groups]. x [T, K]."""
    grouped = _grouped(x.float(), group)
    steps = grouped.abs().amax(-1) / 127
    inverse = torch.where(steps < _SMALLEST, 0, 1 / steps)
    return (grouped * inverse[..., None]).round(), steps


def short_scales(scales: Tensor) -> Tensor:
    """fp32 scales cut to 20 bits, to the nearest; fp16 and bf16 scales stay as they are."""
    short = (scales.float().contiguous().view(torch.int32) + 8 & ~15).view(torch.float32)
    return torch.where(scales < _SMALLEST, 0, short)


def _grouped(rows: Tensor, group: int) -> Tensor:
    """[N, K] -> [N, groups, group], zeros behind the last input."""
    return functional.pad(rows, (0, -rows.shape[1] % group)).view(len(rows), -1, group)
