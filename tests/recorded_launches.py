"""A CUDA graph's behaviour on CPUs: launches recorded with the memory and the numbers they had, and run again."""

from collections.abc import Callable
from typing import Any

import pytest
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rayline.kernels.triton_launch import Kernel, Variant

Launch = Callable[[], None]
HOST_READS = ("_local_scalar_dense", "nonzero", "item", "equal", "is_nonzero")


class RecordedLaunches:
    """Records what reaches the device: torch's operators below autograd, and Triton's launches.

    Python is not run again, so a number that was read on the host stays what it was; what would have to wait for the
    device is refused, as CUDA refuses it while it captures.
    """

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.graphs: list[list[Launch]] = []
        self._recording: list[Launch] | None = None
        real = Kernel.launch

        def launch(kernel: Kernel, grid: tuple[int, ...], variant: Variant, **arguments: Any) -> None:
            recording, self._recording = self._recording, None
            real(kernel, grid, variant, **arguments)
            self._recording = recording
            if recording is not None:
                recording.append(lambda: real(kernel, grid, variant, **arguments))

        patch.setattr(Kernel, "launch", launch)

    def record(self, function: Callable[[], None]) -> Launch:
        function()
        launches: list[Launch] = []
        self._recording = launches
        with _Mode(self):
            function()
        self._recording = None
        self.graphs.append(launches)
        return lambda: [launch() for launch in launches][:0].clear()


class _Mode(TorchDispatchMode):
    def __init__(self, owner: RecordedLaunches) -> None:
        super().__init__()
        self._owner = owner

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if self._owner._recording is None:
            return out
        assert not any(name in func.name() for name in HOST_READS), f"{func} waits for the device"
        self._owner._recording.append(_again(func, args, kwargs, out))
        return out


def _again(func: Any, args: Any, kwargs: Any, out: Any) -> Launch:
    """Run an operator again, into the memory that it gave the first time."""
    if func.namespace == "c10d":  # messages to other processes, which write into what they are given
        return lambda: func(*args, **kwargs)[1].wait()
    held = [tensor for tensor in tree_leaves(out) if isinstance(tensor, Tensor)]
    given = [tensor for tensor in tree_leaves((args, kwargs)) if isinstance(tensor, Tensor)]
    memory = {tensor.untyped_storage().data_ptr() for tensor in given}
    is_view = all(tensor.untyped_storage().data_ptr() in memory for tensor in held)

    def run() -> None:
        if is_view and not func._schema.is_mutable:
            return  # the same memory by another name
        new = tree_leaves(func(*args, **kwargs))
        if not is_view:
            for old, value in zip(held, (each for each in new if isinstance(each, Tensor)), strict=True):
                old.copy_(value)

    return run
