"""One-way lines between two ranks: tensors over a group of torch.distributed of their own, in the order of plans.

NCCL gives each group a queue of the device, so nothing on a line waits for another line:

    computing    [-- forward 1 --][-- forward 2 --][-- forward 3 --]        on stage 1 of 3
    line from 0  ..receives 2     |..receives 3    |..receives 4
    line to 2                     | sends 1 ..     | sends 2 ..

gloo's messages are the host's: it waits for what it takes.
"""

from collections import deque
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from rayline.workers.devices import Staging


class Line:
    """One end of a line, which either sends or receives. `peer`: the rank at the other end."""

    def __init__(self, group: dist.ProcessGroup, peer: int, staging: Staging) -> None:
        self._group = group
        self._peer = peer
        self._staging = staging
        self._sending: deque[tuple[dist.Work | None, Tensor]] = deque()
        self._coming: deque[tuple[dist.Work | None, Tensor]] = deque()
        # NCCL begins a receive behind what the current queue holds: in this one that is nothing.
        self._aside = torch.cuda.Stream() if staging.place.type == "cuda" else None  # type: ignore[no-untyped-call]

    @property
    def is_of_device(self) -> bool:
        return self._staging.is_of_device

    @property
    def expects(self) -> bool:
        return bool(self._coming)

    def send(self, tensor: Tensor) -> None:
        """Behind what was launched to compute it. It is kept until it is sent; nobody may write to it."""
        sent = self._staging.out(tensor)
        self._sending.append((dist.isend(sent, self._peer, group=self._group), sent))
        while self._sending and (self._sending[0][0] is None or self._sending[0][0].is_completed()):
            self._sending.popleft()

    def expect(self, shape: Sequence[int], dtype: torch.dtype) -> None:
        """Ask for the next tensor. Waits for nothing."""
        with torch.cuda.stream(self._aside):
            room = self._staging.room(shape, dtype)
            self._coming.append((dist.irecv(room, self._peer, group=self._group), room))

    def take(self) -> Tensor:
        """The oldest tensor that was asked for: the host waits for it, or on a line of the device all that is launched
        from now on. Its memory is another queue's: who takes it keeps it until the device has read it."""
        work, tensor = self._coming.popleft()
        if work is not None:
            work.wait()
        return self._staging.back(tensor)
