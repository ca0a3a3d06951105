"""The paged keys and values one rank holds for the layers of its stage."""

import math

import numpy as np
import torch
from torch import Tensor

from rayline.kernels.backend import KvLayer


class KvCache:
    """Keys and values of each layer, zero at first; the kernels decide the order inside a block.

    Zero because attention may read whole blocks: a NaN in an unused slot would get past its mask.
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
        shape = (blocks, block_tokens * kv_heads * head_dim)

        def layer() -> KvLayer:
            keys, values = _zeros(shape, dtype, device), _zeros(shape, dtype, device)
            return KvLayer(keys, values, block_tokens, kv_heads, head_dim)

        self.layers = [layer() for _ in range(layers)]

    @property
    def bytes(self) -> int:
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in self.layers)


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros that take memory only where they are written: torch.zeros would touch every page at start-up."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    pages = np.zeros(math.prod(shape) * dtype.itemsize, dtype=np.uint8)
    return torch.from_numpy(pages).view(dtype).view(shape)
