"""How the ranks of a stage come to sum by each other's memory, or to do without: all of them alike."""

from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from threaded_ranks import ThreadedRank, on_all_ranks
from torch import Tensor

from rayline.kernels import choice
from rayline.kernels.choice import KernelOptions, Unfit, choose
from rayline.kernels.gpu import Gpu
from rayline.kernels.peer_memory import FOR_EVER, PeerMemory, words_of
from rayline.kernels.torch_kernels import TorchKernels
from rayline.protos.errors import ConfigError
from rayline.workers import symmetric_group
from rayline.workers.agreement import TRIAL_COLUMNS, TRIAL_ROWS
from rayline.workers.collectives import Collective
from rayline.workers.symmetric_group import CAPACITY, SymmetricGroup, TorchMeeting, fastest_group

CPU = torch.device("cpu")
F32 = torch.float32


@dataclass
class Kernels:
    """Sums that are right because they are gathered, and a place for what goes wrong on one rank."""

    group: ThreadedRank
    wrong: Callable[[Tensor], Tensor] | None = None
    events: list[str] = field(default_factory=list)

    def can_sum(self, ranks: int) -> bool:
        return ranks == 2

    def sum_ranks(
        self, partial: Tensor, bias: Tensor | None, dtype: torch.dtype, memory: PeerMemory, polls: int = FOR_EVER
    ) -> Tensor:
        assert memory.holds(partial)
        if polls == 1:
            self.events.append("compiled" if bias is None else "compiled with bias")
            return partial
        self.events.append("summed")
        total = self.group.sum_tree(partial, bias, dtype)
        return total if self.wrong is None else self.wrong(total)


@dataclass
class Memory:
    kernels: Kernels
    failure: str = ""

    def allocate(self) -> Tensor:
        if self.failure:
            raise RuntimeError(self.failure)
        return torch.zeros(words_of(CAPACITY))

    def meet(self, mine: Tensor) -> PeerMemory:
        self.kernels.events.append("met")
        return PeerMemory.of(self.kernels.group.rank, [mine] * self.kernels.group.tp_size)


@dataclass
class Outcome:
    group: Collective | ConfigError
    kernels: Kernels


def outcomes(
    ranks: int = 2,
    wish: str = "auto",
    wrong: Callable[[Tensor], Tensor] | None = None,
    failure: str = "",
    by_host: bool = False,
) -> list[Outcome]:
    """What goes wrong goes wrong on rank 1."""

    def run(rank: ThreadedRank) -> Outcome:
        rank.is_by_host = by_host
        kernels = Kernels(rank, wrong if rank.rank == 1 else None)
        memory = Memory(kernels, failure if rank.rank == 1 else "")
        try:
            return Outcome(fastest_group(rank, kernels, wish, memory, F32, CPU), kernels)
        except ConfigError as error:
            return Outcome(error, kernels)

    return on_all_ranks(ranks, run)


@pytest.mark.parametrize("wish", ["auto", "symmetric"])
def test_ranks_whose_sums_are_right_sum_by_symmetric_memory(wish: str) -> None:
    for each in outcomes(wish=wish):
        assert isinstance(each.group, SymmetricGroup)


def test_every_form_is_compiled_before_ranks_wait_for_each_other() -> None:
    for each in outcomes():
        first = each.kernels.events.index("met")
        assert each.kernels.events[:first] == ["compiled", "compiled with bias"] * 3
        assert set(each.kernels.events[first + 1 :]) == {"summed"}


@pytest.mark.parametrize(
    ("problem", "events"),
    [
        ({"wrong": lambda total: total + 1e-3}, {"compiled", "compiled with bias", "met", "summed"}),
        (
            {"wrong": lambda total: torch.full_like(total, torch.nan)},
            {"compiled", "compiled with bias", "met", "summed"},
        ),
        ({"failure": "no peer access"}, {"compiled", "compiled with bias"}),
        ({"ranks": 3}, set()),
        ({"by_host": True}, set()),
    ],
    ids=["wrong on one rank", "no numbers on one rank", "no memory on one rank", "three ranks", "by way of the host"],
)
def test_what_one_rank_cannot_do_all_do_without(problem: dict[str, Any], events: set[str]) -> None:
    """And none waits for another that has given up."""
    found = outcomes(**problem)
    assert all(isinstance(each.group, ThreadedRank) for each in found)
    assert set().union(*(each.kernels.events for each in found)) == events
    for each in outcomes(wish="symmetric", **problem):
        assert isinstance(each.group, ConfigError) and each.group.field == "all_reduce"


def test_gathering_can_be_wished_for() -> None:
    for each in outcomes(wish="gather"):
        assert isinstance(each.group, ThreadedRank) and each.kernels.events == []


def test_kernels_that_cannot_sum_so_gather() -> None:
    memory: Any = None
    groups = on_all_ranks(2, lambda rank: fastest_group(rank, TorchKernels(), "auto", memory, F32, CPU))
    assert all(isinstance(group, ThreadedRank) for group in groups)


def test_large_sums_and_columns_are_gathered() -> None:
    def run(rank: ThreadedRank) -> list[str]:
        kernels = Kernels(rank)
        group = SymmetricGroup(rank, kernels, Memory(kernels).meet(torch.zeros(words_of(CAPACITY))))
        kernels.events.clear()
        few, many = (torch.full((rows, 64), rank.rank + 1.0) for rows in (CAPACITY // 64, CAPACITY // 64 + 1))
        for partial in (few, many):
            assert group.sum_tree(partial, None, F32).equal(torch.full_like(partial, 3.0))
        assert group.gather_columns(few[:1]).tolist() == [[1.0] * 64 + [2.0] * 64]
        return kernels.events

    assert on_all_ranks(2, run) == [["summed"]] * 2


def test_both_ways_of_summing_are_tried_in_captured_steps() -> None:
    small, large = (rows * TRIAL_COLUMNS for rows in TRIAL_ROWS)
    assert small <= CAPACITY < large


# ---- torch's symmetric memory


class Torch:
    """torch.distributed._symmetric_memory over two ranks, of which this is the second."""

    def __init__(self, rank: int = 1, moved: int = 0) -> None:
        self.rank, self.moved = rank, moved

    def empty(self, words: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        assert device == torch.device("cuda", 3)
        return torch.full((words,), 7.0, dtype=dtype)

    def rendezvous(self, mine: Tensor, group: str) -> Any:
        assert group == "the stage"
        parts = [torch.zeros_like(mine), mine[self.moved :]]
        return SimpleNamespace(rank=self.rank, world_size=2, get_buffer=lambda rank, sizes, dtype: parts[rank])


def met(monkeypatch: pytest.MonkeyPatch, module: Torch) -> PeerMemory:
    monkeypatch.setattr(symmetric_group.importlib, "import_module", lambda name: module)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    stage: Any = "the stage"
    meeting = TorchMeeting(stage, 1)
    mine = meeting.allocate()
    assert mine.numel() == words_of(CAPACITY) and not mine.any()
    memory = meeting.meet(mine)
    assert int(memory.addresses[1]) == mine.data_ptr() != int(memory.addresses[0])
    return memory


def test_torch_is_asked_for_memory_that_all_ranks_see(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = met(monkeypatch, Torch())
    assert (memory.rank, memory.ranks, memory.capacity) == (1, 2, CAPACITY)


@pytest.mark.parametrize("module", [Torch(rank=0), Torch(moved=4)], ids=["another rank", "another place"])
def test_other_memory_than_was_asked_for_is_refused(module: Torch, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeError, match="other memory"):
        met(monkeypatch, module)


def test_this_torch_has_what_is_asked_of_it() -> None:
    module = symmetric_group._symmetric_memory()
    assert callable(module.empty) and callable(module.rendezvous)
    assert {"rank", "world_size", "get_buffer"} <= set(dir(module._SymmetricMemory))


# ---- the option


def test_the_option_is_of_the_triton_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "gpu_of", lambda device: Gpu(132, "sm90", 90))
    for kernels in ("auto", "triton-exact"):
        options = KernelOptions(kernels, all_reduce="symmetric")
        assert choose(torch.device("cuda"), torch.bfloat16, options).gpu is not None
    for device, kernels in (("cpu", "auto"), ("cuda", "torch")):
        with pytest.raises(Unfit, match="others compute here") as refused:
            choose(torch.device(device), torch.bfloat16, KernelOptions(kernels, all_reduce="gather"))
        assert refused.value.field == "all_reduce"
