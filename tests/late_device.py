"""A device that computes later than it is told to, on the CPU: no number is there before somebody waits for it.

What touches one of its tensors is queued, with shapes known and nothing computed. The queue runs up to a mark that is
waited for. Whatever reads a number earlier, as `item` or `nonzero` do, runs all of it, and is counted as a wait.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map_only

HOST_READS = ("_local_scalar_dense", "::item", "nonzero", "equal", "is_nonzero", "masked_select", "unique")


@dataclass
class Cell:
    """A tensor's number, None until it is computed, and the last operation that was launched on it."""

    number: Tensor | None
    used: int = 0


@dataclass
class LateDevice:
    """waits: numbers that were read before a mark behind them was waited for. behind: of each mark that was waited for,
    how many operations had been launched behind it by then."""

    queue: list[Callable[[], None] | None] = field(default_factory=list)
    done: int = 0
    waits: int = 0
    behind: list[int] = field(default_factory=list)

    @torch.inference_mode()
    def own(self, tensor: Tensor) -> "Late":
        """A tensor that lies on this device from now on."""
        return Late(tensor, self, tensor)

    def room(self, shape: Sequence[int], dtype: torch.dtype) -> "Late":
        """Memory in which nothing is yet."""
        return Late(torch.empty(tuple(shape), dtype=dtype, device="meta"), self)

    def launch(self, operation: Callable[[], None]) -> None:
        self.queue.append(operation)

    def mark(self) -> "LateMark":
        return LateMark(self, len(self.queue))

    @torch.inference_mode()
    def run(self, to: int) -> None:
        """An operation that raises is tried again the next time."""
        while self.done < to:
            operation = self.queue[self.done]
            assert operation is not None
            operation()
            self.queue[self.done] = None
            self.done += 1


@dataclass(frozen=True)
class LateMark:
    device: LateDevice
    at: int

    def is_reached(self) -> bool:
        return self.device.done >= self.at

    def wait(self) -> None:
        self.device.behind.append(len(self.device.queue) - self.at)
        self.device.run(self.at)

    def seconds_since(self, earlier: "LateMark") -> float:
        return float(self.at - earlier.at)


class Late(Tensor):
    """What Python holds of a tensor of the device, which computes with its cell."""

    owner: LateDevice
    cell: Cell

    @staticmethod
    def __new__(cls, like: Tensor, owner: LateDevice, number: Tensor | None = None) -> "Late":
        made: Late = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, like.shape, strides=like.stride(), storage_offset=like.storage_offset(), dtype=like.dtype, device="cpu"
        )
        made.owner, made.cell = owner, Cell(number)
        return made

    @property
    def number(self) -> Tensor | None:
        return self.cell.number

    __torch_function__ = torch._C._disabled_torch_function_impl

    def tolist(self) -> Any:
        if self.number is None:
            _wait(self.owner)
        assert self.number is not None
        return self.number.tolist()

    def numpy(self, *, force: bool = False) -> Any:
        raise NotImplementedError("nothing reads it this way")

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = (args, kwargs or {})
        flat, _ = tree_flatten(given)
        owner = next(each for each in flat if isinstance(each, Late)).owner
        if any(name in func.name() for name in HOST_READS) or _is_masked(func, args):
            _wait(owner)
            return _on_reals(func, _on_cells(given))
        return _queued(func, given, flat, owner)


def _is_masked(func: Any, args: Any) -> bool:
    """Whether it takes the places where a mask holds: how many those are is known on the device alone."""
    return "::index" in func.name() and any(
        isinstance(each, Tensor) and each.dtype == torch.bool for each in tree_flatten(args[1:2])[0]
    )


def _wait(owner: LateDevice) -> None:
    owner.waits += 1
    owner.run(len(owner.queue))


def _queued(func: Any, given: Any, flat: list[Any], owner: LateDevice) -> Any:
    """The result, as far as it is known: its shape."""
    tensors = {id(each): each for each in flat if isinstance(each, Tensor)}
    stands = {number: _meta(each) for number, each in tensors.items()}
    args, kwargs = tree_map_only(Tensor, lambda each: stands[id(each)], given)
    args, kwargs = tree_map_only(torch.device, lambda _: torch.device("meta"), (args, kwargs))
    given_back = {id(meta): tensors[number] for number, meta in stands.items()}
    made: list[Late] = []
    launched = _on_cells(given)

    def result(meta: Tensor) -> Tensor:
        if id(meta) in given_back:
            return given_back[id(meta)]
        made.append(Late(meta, owner))
        return made[-1]

    out = tree_map_only(Tensor, result, func(*args, **kwargs))

    cells = [late.cell for late in made]

    def compute() -> None:
        results = [each for each in tree_flatten(_on_reals(func, launched))[0] if isinstance(each, Tensor)]
        for cell, result in zip(cells, results, strict=False):
            cell.number = result

    owner.launch(compute)
    for each in flat:
        if isinstance(each, Late):
            each.cell.used = len(owner.queue)
    return out


def _meta(tensor: Tensor) -> Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


def _on_cells(given: Any) -> Any:
    return tree_map_only(Late, lambda late: late.cell, given)


def _on_reals(func: Any, launched: Any) -> Any:
    args, kwargs = tree_map_only(Cell, lambda cell: cell.number, launched)
    return func(*args, **kwargs)
