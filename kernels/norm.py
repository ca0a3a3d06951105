"""RMS normalisation (Zhang and Sennrich 2019), in fp32 whatever the dtype."""

import torch
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / rms(x) * weight over the last axis. x [..., D], weight [D] or one row a head [H, D], one dtype -> x's shape.

    Rounded to the dtype before the weight is applied, as transformers does.
    """
    wide = x.float()
    inverse = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return (wide * inverse).to(x.dtype) * weight


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The residual stream's step: s = x + residual in their dtype -> (rms_norm(s), s)."""
    total = x + residual
    return rms_norm(total, weight, eps), total
