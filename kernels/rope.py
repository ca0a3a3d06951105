"""Rotary position embedding (Su et al. 2021) in the half-split layout of Hugging Face checkpoints."""

import math

import torch
from torch import Tensor


def inverse_frequencies(head_dim: int, theta: float) -> Tensor:
    """theta^(-2i / head_dim) for i < head_dim / 2, fp32."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim
    return 1.0 / (theta**exponents)


def llama3_frequencies(
    frequencies: Tensor, factor: float, low_freq_factor: float, high_freq_factor: float, original_max_position: int
) -> Tensor:
    """Llama 3.1's stretching of long wavelengths.

    wavelength    original / high_freq_factor     original / low_freq_factor
        as they are           |        blended             |        divided by factor
    """
    wavelengths = 2 * math.pi / frequencies
    slowed = torch.where(wavelengths > original_max_position / low_freq_factor, frequencies / factor, frequencies)
    blend = (original_max_position / wavelengths - low_freq_factor) / (high_freq_factor - low_freq_factor)
    blended = (1 - blend) * slowed / factor + blend * slowed
    is_short = wavelengths < original_max_position / high_freq_factor
    is_long = wavelengths > original_max_position / low_freq_factor
    return torch.where(is_short | is_long, slowed, blended)


def rope_tables(frequencies: Tensor, positions: int) -> tuple[Tensor, Tensor]:
    """cos and sin of position * frequency, each fp32 [positions, head_dim / 2]."""
    angles = torch.arange(positions).float()[:, None] * frequencies
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair (x[i], x[i + D/2]) by its angle, in fp32. x [T, H, D], cos and sin fp32 [T, D/2]."""
    first, second = x.float().chunk(2, dim=-1)
    cos, sin = cos[:, None, :], sin[:, None, :]
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)
