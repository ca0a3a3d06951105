"""Numbers of a step on their way to the device."""

from array import array
from collections.abc import Iterable

import torch
from torch import Tensor


def upload(numbers: Tensor, device: torch.device) -> Tensor:
    """`numbers` on `device`, without waiting for what runs there: a copy from pageable memory would."""
    if device.type == "cuda":
        numbers = numbers.pin_memory()  # torch gives the page to nobody before the copy is over
    return numbers.to(device, non_blocking=True)


def bits_of(values: Iterable[float]) -> list[int]:
    """fp64 numbers by their bits, to travel among int64 ones."""
    return array("q", array("d", values).tobytes()).tolist()
