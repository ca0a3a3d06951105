"""The paged keys and values one rank holds for the layers of its stage."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from rayline.kernels.backend import KvLayer
from rayline.kernels.transfer import to_device
from rayline.protos.plan import Copy


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
        up_front: bool = False,
    ) -> None:
        """up_front: take all memory now, so that no step waits for the system to find a page."""
        shape = (blocks, block_tokens * kv_heads * head_dim)

        def layer() -> KvLayer:
            keys, values = (_zeros(shape, dtype, device, up_front) for _ in range(2))
            return KvLayer(keys, values, block_tokens, kv_heads, head_dim)

        self._device = device
        self.layers = [layer() for _ in range(layers)]

    def copy(self, copies: Sequence[Copy]) -> None:
        """Copy whole blocks in all layers. All sources are read before a target is written."""
        source = to_device(torch.tensor([copy.source for copy in copies]), self._device)
        target = to_device(torch.tensor([copy.target for copy in copies]), self._device)
        for layer in self.layers:
            for blocks in (layer.keys, layer.values):
                blocks[target] = blocks[source]

    @property
    def bytes(self) -> int:
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in self.layers)


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, up_front: bool) -> Tensor:
    """Zeros that take memory only where they are written, unless `up_front`."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    pages = np.zeros(math.prod(shape) * dtype.itemsize, dtype=np.uint8)
    if up_front:
        pages.fill(0)  # the system maps a page when it is written, not when it is asked for
    return torch.from_numpy(pages).view(dtype).view(shape)
