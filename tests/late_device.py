"""A device that computes later than it is told to, on the CPU: no number is there before somebody waits for it.

What touches one of its tensors is queued, with shapes known and nothing computed. The queue runs up to a mark that is
waited for. Whatever reads a number earlier, as `item` or `nonzero` do, runs all of it, and is counted as a wait.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map_only

HOST_READS = ("_local_scalar_dense", "::item", "nonzero", "equal", "is_nonzero", "masked_select", "unique")


@dataclass
class LateDevice:
    """waits: numbers that were read before a mark behind them was waited for. behind: of each mark that was waited for,
    how many operations had been launched behind it by then."""

    queue: list[Callable[[], None]] = field(default_factory=list)
    done: int = 0
    waits: int = 0
    behind: list[int] = field(default_factory=list)

    @torch.inference_mode()
    def own(self, tensor: Tensor) -> "Late":
        """A tensor that lies on this device from now on."""
        return Late(tensor, self, tensor)

    def mark(self) -> "LateMark":
        return LateMark(self, len(self.queue))

    @torch.inference_mode()
    def run(self, to: int) -> None:
        while self.done < to:
            self.queue[self.done]()
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
    """`number` is None until the device has computed it."""

    owner: LateDevice
    number: Tensor | None

    @staticmethod
    def __new__(cls, like: Tensor, owner: LateDevice, number: Tensor | None = None) -> "Late":
        made: Late = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, like.shape, strides=like.stride(), storage_offset=like.storage_offset(), dtype=like.dtype, device="cpu"
        )
        made.owner, made.number = owner, number
        return made

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
            return _on_reals(func, given)
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

    def result(meta: Tensor) -> Tensor:
        if id(meta) in given_back:
            return given_back[id(meta)]
        made.append(Late(meta, owner))
        return made[-1]

    out = tree_map_only(Tensor, result, func(*args, **kwargs))

    def compute() -> None:
        results = [each for each in tree_flatten(_on_reals(func, given))[0] if isinstance(each, Tensor)]
        for late, result in zip(made, results, strict=False):
            late.number = result

    owner.queue.append(compute)
    return out


def _meta(tensor: Tensor) -> Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


def _on_reals(func: Any, given: Any) -> Any:
    args, kwargs = tree_map_only(Late, lambda late: late.number, given)
    return func(*args, **kwargs)
