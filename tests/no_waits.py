"""Refuses what would wait for a device, on CPUs, where nothing is ever waited for."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from torch import Tensor

from rayline.kernels.triton_launch import Kernel, Variant

READS = (
    "item",
    "tolist",
    "cpu",
    "numpy",
    "nonzero",
    "unique",
    "__bool__",
    "__int__",
    "__float__",
    "__index__",
    "equal",
)


@contextmanager
def no_waits() -> Iterator[None]:
    """No tensor is read on the host in here, but by Triton's interpreter."""
    real = Kernel.launch
    with pytest.MonkeyPatch.context() as patch:

        def refuse(name: str) -> Any:
            def read(*_: Any, **__: Any) -> None:
                raise AssertionError(f"Tensor.{name} waits for the device")

            return read

        def forbid() -> None:
            for name in READS:
                patch.setattr(Tensor, name, refuse(name))

        def launch(kernel: Kernel, grid: tuple[int, ...], variant: Variant, **arguments: Any) -> None:
            patch.undo()
            real(kernel, grid, variant, **arguments)
            patch.setattr(Kernel, "launch", launch)
            forbid()

        patch.setattr(Kernel, "launch", launch)
        forbid()
        yield
