"""The paged keys and values one rank holds for the layers of its stage."""

import math

import numpy as np
import torch
from torch import Tensor

from rayline.kernels.cache import write_cache


class KvCache:
    """Keys and values of each layer, [blocks, block_tokens, kv_heads, head_dim], zero at first.

    Zero because attention reads whole blocks: a NaN in an unused slot would get past its mask.
    kv_heads is the number this rank holds; a layer's index counts from the stage's first layer.
    """

    def __init__(
        self,
        layers: int,
        blocks: int,
        block_tokens: int,
        kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        shape = (blocks, block_tokens, kv_heads, head_dim)
        self.keys = [_zeros(shape, dtype, device) for _ in range(layers)]
        self.values = [_zeros(shape, dtype, device) for _ in range(layers)]

    def write(self, layer: int, slots: Tensor, k: Tensor, v: Tensor) -> None:
        """Store k and v [T, kv_heads, head_dim] at slots int64 [T]; slot = block * block_tokens + place."""
        write_cache(self.keys[layer], self.values[layer], slots, k, v)

    @property
    def bytes(self) -> int:
        return sum(part.nbytes for part in (*self.keys, *self.values))


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros that take memory only where they are written: torch.zeros would touch every page at start-up."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    pages = np.zeros(math.prod(shape) * dtype.itemsize, dtype=np.uint8)
    return torch.from_numpy(pages).view(dtype).view(shape)
