"""Which GPU a rank computes on, and what carries torch.distributed between ranks: NCCL where each has a GPU of its own.

NCCL refuses two ranks on one GPU. They talk through gloo then, by way of the host's memory: slow, but the same logic as
on as many GPUs as ranks, so that tp and pp can be tried on a single card.
"""

import os
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

import torch
from torch import Tensor
from torch.distributed import Store  # type: ignore[attr-defined]  # public, but not in its __all__

Backend = Literal["nccl", "gloo"]

# A step that takes too long is the leader's to notice (workers/deadline.py): in seconds, or two minutes at the start.
# NCCL's own watchdog would end the process with a message about a collective; it acts only when no leader is left to.
COLLECTIVE_LIMIT = timedelta(minutes=30)
NCCL_SETTINGS: Mapping[str, str] = {
    "TORCH_NCCL_ENABLE_MONITORING": "0",  # ends a process whose watchdog thread did not run for a while
    "TORCH_NCCL_DUMP_ON_TIMEOUT": "0",  # writes traces for a minute before it lets a process end
    "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1",  # a collective over the limit ends the process: nobody waits for ever
}


@dataclass(frozen=True, slots=True)
class Staging:
    """The way of tensors between a rank's device and torch.distributed. is_on: by way of the host's memory."""

    device: torch.device
    is_on: bool = False

    @property
    def place(self) -> torch.device:
        """Where torch.distributed reads and writes."""
        return torch.device("cpu") if self.is_on else self.device

    @property
    def is_of_device(self) -> bool:
        """Whether the device waits for messages, not the host."""
        return self.place.type == "cuda"

    def room(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Where a message comes in."""
        return torch.empty(tuple(shape), dtype=dtype, device=self.place)

    def out(self, tensor: Tensor) -> Tensor:
        """As it is sent: in one piece, and complete when it lies on the host."""
        return tensor.to(self.place).contiguous()

    def back(self, tensor: Tensor) -> Tensor:
        """As it is computed with."""
        return tensor.to(self.device) if self.is_on else tensor


def device_of_rank(rank: int, devices: int) -> int:
    """GPUs in turn; where there are fewer than ranks, they are shared."""
    return rank % devices


def backend_of(gpus: Sequence[str]) -> Backend:
    """What carries ranks on these GPUs, by their ids; "" is a CPU."""
    return "nccl" if all(gpus) and len(set(gpus)) == len(gpus) else "gloo"


def take_gpu(rank: int) -> str:
    """Compute on this rank's GPU from now on; returns an id that no other GPU has."""
    torch.cuda.set_device(device_of_rank(rank, torch.cuda.device_count()))
    return str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid)


def agree_on_backend(store: Store, rank: int, world_size: int, gpu: str) -> Backend:
    """The same answer on every rank: each says which GPU it has and waits for the others. gpu: "" for a CPU."""
    store.set(f"gpu of {rank}", gpu or "none")
    said = [store.get(f"gpu of {other}").decode() for other in range(world_size)]
    return backend_of(["" if each == "none" else each for each in said])


def set_up_nccl(environment: MutableMapping[str, str] = os.environ) -> None:
    """Settings that torch reads when it makes a group; what somebody has set stays."""
    for name, value in NCCL_SETTINGS.items():
        environment.setdefault(name, value)
