"""Probabilities as whole numbers: sums of them are exact, so they have no order.

    score   min(logit - best, 0) * (1 / temperature)       fp32
    weight  exp(score) in units of 2^-34, rounded          a whole number of up to 2^34, held in fp32

A sum over a vocabulary stays below 2^53 and is exact in fp64. Every step is an addition, a product or a rounding of
fp32, so native/truncation.h computes the same bits in any order and lanes. exp is Cephes' polynomial.
"""

import torch
from torch import Tensor

UNIT_BITS = 34
LOWEST = -30.0  # weights of lower scores are rounded to 0
_LARGEST_INVERSE = 1e30
_LOG2_E = 1.44269504
_LN2_HIGH, _LN2_LOW = 0.693359375, -2.12194440e-4
_TERMS = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)


def rough_scores(logits: Tensor, best: Tensor, temperature: Tensor) -> Tensor:
    """Scores in fp32; 0 where a logit equals the best, infinite ones too. `temperature` is fp64."""
    inverse = (1.0 / temperature).clamp(max=_LARGEST_INVERSE).float()
    return torch.where(logits == best, 0.0, (logits - best).clamp(max=0.0)) * inverse


def weights(scores: Tensor) -> Tensor:
    """fp32, at most 0 -> whole numbers in fp32."""
    inside = scores.clamp(min=LOWEST)
    power = (inside * _LOG2_E).round()
    rest = inside - power * _LN2_HIGH
    rest = rest - power * _LN2_LOW
    series = torch.full_like(rest, _TERMS[0])
    for term in _TERMS[1:]:
        series = series * rest + term
    series = series * (rest * rest)
    series = (series + rest) + 1.0
    unit = ((power.to(torch.int32) + (UNIT_BITS + 127)) << 23).view(torch.float32)
    return (series * unit).round()
