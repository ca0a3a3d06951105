"""What the ranks of a stage agree on before they compute together, by gathers that are known to work."""

import logging
from collections.abc import Callable, Sequence

import torch

from rayline.kernels.graphs import Recorder
from rayline.protos.errors import InternalError
from rayline.workers.collectives import Collective

log = logging.getLogger(__name__)

ROUNDS = 3  # of replays, each over other numbers
TRIAL_ROWS, TRIAL_COLUMNS = (1, 16384), 64  # a sum as small as a decode step's, and one as large as a prompt's


def all_succeed(collective: Collective, device: torch.device, attempt: Callable[[], str]) -> bool:
    """Whether no rank has anything against it, the same answer on all. attempt: what this rank has against it, "" for
    nothing; an exception counts as a reason and is not raised."""
    try:
        why = attempt()
    except Exception as error:  # whatever torch, NCCL or the driver raise for what they cannot do
        why = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    if why:
        log.info("this rank says: %s", why)
    votes = collective.gather_columns(torch.full((1, 1), 0.0 if why else 1.0, device=device))
    return bool(votes.all())


def check_alike(collective: Collective, device: torch.device, what: str, numbers: Sequence[int]) -> None:
    """Raises InternalError unless all ranks have the same numbers, each below 2^24."""
    mine = torch.tensor([numbers], dtype=torch.float32, device=device)
    everyone = collective.gather_columns(mine).view(collective.tp_size, -1)
    if not bool((everyone == mine).all()):
        raise InternalError(f"the ranks of a stage differ in {what}: {everyone.int().tolist()}")


def sums_are_captured(collective: Collective, recorder: Recorder, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether sums between ranks can be part of captured steps: some are captured, replayed over other numbers and held
    against launched ones. The same answer on all ranks; none replays before all have captured."""
    if collective.is_by_host:
        log.info("no decode graphs: sums between these ranks go by way of the host, which cannot be captured")
        return False
    trial = _Trial(collective, dtype, device)
    if not all_succeed(collective, device, lambda: trial.capture(recorder)):
        log.info("no decode graphs: sums between ranks cannot be captured")
        return False
    if not all_succeed(collective, device, trial.replays):
        log.info("no decode graphs: captured sums between ranks are not right")
        return False
    return True


class _Trial:
    """Sums of both sizes, in memory that stays."""

    def __init__(self, collective: Collective, dtype: torch.dtype, device: torch.device) -> None:
        self._collective = collective
        self._random = torch.Generator(device)
        self._inputs = [torch.zeros(rows, TRIAL_COLUMNS, device=device) for rows in TRIAL_ROWS]
        self._sums = [torch.zeros_like(each, dtype=dtype) for each in self._inputs]

    def capture(self, recorder: Recorder) -> str:
        self._replay = recorder.record(self._launch)
        return ""

    def replays(self) -> str:
        for seed in range(ROUNDS):
            for each in self._inputs:
                each.normal_(generator=self._random.manual_seed(seed))
            self._replay()
            replayed = [each.clone() for each in self._sums]
            self._launch()
            if not all(ours.equal(theirs) for ours, theirs in zip(replayed, self._sums, strict=True)):
                return "a replayed sum is not the launched one"
        return ""

    def _launch(self) -> None:
        for each, total in zip(self._inputs, self._sums, strict=True):
            total.copy_(self._collective.sum_tree(each, None, total.dtype))
