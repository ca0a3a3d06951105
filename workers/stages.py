"""The links of one rank to its pipeline neighbours: hidden states forward, sampled tokens back.

    stage 0 --hidden--> stage 1 --hidden--> ... --hidden--> last
       ^---------------------- token ids ----------------------|

Each tensor-parallel rank talks to the same rank of the other stage; all of a stage hold the same hidden
states, so nothing is scattered. Sends are asynchronous and keep their tensor alive until the next one
of the kind; receives are posted early, because gloo and NCCL sends wait for them.
"""

from collections import deque
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from rayline.cluster.parallel import Parallel
from rayline.workers.devices import Staging
from rayline.workers.token_feed import FreshTokens


@dataclass(frozen=True, slots=True)
class Expected:
    """Token ids on their way to the first stage, one for each of `sequences`."""

    sequences: tuple[int, ...]
    tensor: Tensor
    work: dist.Work | None


class StageLinks:
    """Point-to-point messages of one rank. Between CPUs it waits for what it takes in, on GPUs the device does."""

    def __init__(
        self,
        parallel: Parallel,
        hidden_group: dist.ProcessGroup,
        token_group: dist.ProcessGroup,
        staging: Staging,
    ):
        self._parallel = parallel
        self._hidden_group = hidden_group
        self._token_group = token_group
        self._staging = staging
        self._sending: deque[tuple[dist.Work | None, Tensor]] = deque()
        self._coming: deque[tuple[dist.Work | None, Tensor]] = deque()
        self._expected: deque[Expected] = deque()

    def expect_hidden(self, tokens: int, width: int, dtype: torch.dtype) -> None:
        """Post the receive for hidden states [tokens, width] of the previous stage, in the order of plans."""
        hidden = torch.empty(tokens, width, dtype=dtype, device=self._staging.place)
        source = self._parallel.at_stage(self._parallel.stage - 1).rank
        self._coming.append((dist.irecv(hidden, source, group=self._hidden_group), hidden))

    def next_hidden(self) -> Tensor:
        """Wait for the oldest expected hidden states."""
        work, hidden = self._coming.popleft()
        if work is not None:
            work.wait()
        return self._staging.back(hidden)

    def send_hidden(self, hidden: Tensor) -> None:
        target = self._parallel.at_stage(self._parallel.stage + 1).rank
        sent = self._staging.out(hidden)
        self._post(dist.isend(sent, target, group=self._hidden_group), sent)

    def send_tokens(self, token_ids: Tensor) -> None:
        """Tell the first stage what was sampled, int64 [N] in plan order."""
        target = self._parallel.at_stage(0).rank
        sent = self._staging.out(token_ids)
        self._post(dist.isend(sent, target, group=self._token_group), sent)

    def expect_tokens(self, sequences: tuple[int, ...]) -> None:
        """Post the receive for the tokens that the last stage will sample for `sequences`."""
        tensor = torch.empty(len(sequences), dtype=torch.int64, device=self._staging.place)
        source = self._parallel.at_stage(self._parallel.pp_size - 1).rank
        self._expected.append(Expected(sequences, tensor, dist.irecv(tensor, source, group=self._token_group)))

    def next_tokens(self) -> FreshTokens:
        """Wait for the oldest expected tokens."""
        oldest = self._expected.popleft()
        if oldest.work is not None:
            oldest.work.wait()
        return FreshTokens(oldest.sequences, self._staging.back(oldest.tensor))

    def _post(self, work: dist.Work | None, tensor: Tensor) -> None:
        self._sending.append((work, tensor))
        while self._sending and (self._sending[0][0] is None or self._sending[0][0].is_completed()):
            self._sending.popleft()
