"""Which implementation of the operations that have several runs: chosen once, when a rank starts."""

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from rayline.kernels import linear, onednn

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Kernels:
    """Implementations that belong together. `pack` lays out a weight [N, K] for its products."""

    name: str
    pack: Callable[[Tensor], Tensor]
    linear: Callable[[Tensor, Tensor, Tensor | None], Tensor]
    linear_fp32: Callable[[Tensor, Tensor], Tensor]


TORCH = Kernels("torch", lambda weight: weight, linear.linear, linear.linear_fp32)
ONEDNN = Kernels("onednn", onednn.pack, onednn.linear, onednn.linear_fp32)


def choose(device: torch.device, dtype: torch.dtype) -> Kernels:
    """The fastest implementation this device has for the dtype."""
    fits_onednn = device.type == "cpu" and dtype == torch.bfloat16 and onednn.is_available()
    kernels = ONEDNN if fits_onednn else TORCH
    log.info("kernels: %s for %s on %s", kernels.name, dtype, device)
    return kernels
