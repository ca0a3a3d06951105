"""GPUs of ranks, what carries their messages, and the way by the host's memory."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.distributed import HashStore  # type: ignore[attr-defined]

from rayline.workers import collectives, lines
from rayline.workers.collectives import TensorParallelGroup
from rayline.workers.deadline import FIRST_LIMIT_S
from rayline.workers.devices import (
    COLLECTIVE_LIMIT,
    NCCL_SETTINGS,
    Staging,
    agree_on_backend,
    backend_of,
    device_of_rank,
    set_up_nccl,
)
from rayline.workers.lines import Line
from rayline.workers.stages import Lines, StageLinks

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("gpus", "backend"),
    [
        (["a", "b"], "nccl"),
        (["a", "a"], "gloo"),
        (["a", "b", "c", "a"], "gloo"),
        (["", ""], "gloo"),
        (["a", ""], "gloo"),
    ],
)
def test_nccl_carries_ranks_that_have_a_gpu_each(gpus: list[str], backend: str) -> None:
    assert backend_of(gpus) == backend


@given(st.integers(1, 16), st.integers(1, 8))
def test_gpus_are_taken_in_turn(ranks: int, devices: int) -> None:
    taken = [device_of_rank(rank, devices) for rank in range(ranks)]
    assert set(taken) == set(range(min(ranks, devices)))
    shares = [taken.count(device) for device in set(taken)]
    assert max(shares) - min(shares) <= 1


@pytest.mark.parametrize(
    ("gpus", "backend"), [(["x", "y", "z"], "nccl"), (["x", "y", "x"], "gloo"), ([""] * 3, "gloo")]
)
def test_all_ranks_agree_whoever_comes_first(gpus: list[str], backend: str) -> None:
    store = HashStore()
    with ThreadPoolExecutor(3) as pool:
        answers = pool.map(lambda rank: agree_on_backend(store, rank, 3, gpus[rank]), (2, 0, 1))
        assert list(answers) == [backend] * 3


def test_the_leaders_deadline_acts_before_nccl_does() -> None:
    assert COLLECTIVE_LIMIT.total_seconds() > 10 * FIRST_LIMIT_S


def test_settings_of_the_operator_stay() -> None:
    environment = {"TORCH_NCCL_ENABLE_MONITORING": "1"}
    set_up_nccl(environment)
    assert environment == NCCL_SETTINGS | {"TORCH_NCCL_ENABLE_MONITORING": "1"}


@dataclass
class FakeWork:
    def wait(self) -> None: ...

    def is_completed(self) -> bool:
        return True


@dataclass
class Wire:
    """torch.distributed in one process: what is sent is there to be received; only tensors on the host go."""

    sent: list[Tensor] = field(default_factory=list)

    def isend(self, tensor: Tensor, target: int, group: Any) -> FakeWork:
        assert tensor.device == CPU and tensor.is_contiguous()
        self.sent.append(tensor)
        return FakeWork()

    def irecv(self, tensor: Tensor, source: int, group: Any) -> FakeWork:
        assert tensor.device == CPU
        tensor.copy_(self.sent.pop(0))
        return FakeWork()

    def all_gather(self, out: list[Tensor], mine: Tensor, group: Any) -> None:
        assert mine.device == CPU and mine.is_contiguous()
        for at, tensor in enumerate(out):
            assert tensor.device == CPU
            tensor.copy_(mine + at)


@pytest.fixture
def wire(monkeypatch: pytest.MonkeyPatch) -> Iterator[Wire]:
    wire = Wire()
    for module in (lines, collectives):
        fake = type("dist", (), {"isend": wire.isend, "irecv": wire.irecv, "all_gather": wire.all_gather})
        monkeypatch.setattr(module, "dist", fake)
    yield wire


@dataclass(frozen=True, slots=True)
class Counting(Staging):
    """Counts what goes to the host and what comes back: a CPU is the device."""

    moves: list[str] = field(default_factory=list)

    def out(self, tensor: Tensor) -> Tensor:
        self.moves.append("out")
        return Staging.out(self, tensor)

    def back(self, tensor: Tensor) -> Tensor:
        self.moves.append("back")
        return Staging.back(self, tensor)


def test_hidden_states_and_tokens_go_by_way_of_the_host(wire: Wire) -> None:
    staging = Counting(CPU, True)
    group: Any = None
    first, last = Line(group, 1, staging), Line(group, 0, staging)
    at_first, at_last = StageLinks(Lines(None, first, first)), StageLinks(Lines(last, None, last))
    assert not at_first.are_of_device and not at_last.are_of_device
    hidden = torch.arange(12.0).view(4, 3).T  # in pieces, as a view can be
    at_first.send_hidden(hidden)
    at_last.foresee((3, 4), torch.float32)
    assert at_last.next_hidden((3, 4), torch.float32).equal(hidden)
    at_last.send_tokens(torch.tensor([7, 9]))
    at_first.expect_tokens((4, 2))
    fresh = at_first.next_tokens()
    assert (fresh.sequences, fresh.on_host) == ((4, 2), [7, 9])
    assert staging.moves == ["out", "back", "out", "back"]


def test_gathers_go_by_way_of_the_host(wire: Wire) -> None:
    staging = Counting(CPU, True)
    group: Any = None
    whole = TensorParallelGroup(group, 2, staging).gather_columns(torch.ones(2, 3))
    assert whole.tolist() == [[1.0] * 3 + [2.0] * 3] * 2
    assert staging.moves == ["out", "back"]


def test_where_each_rank_has_a_device_nothing_is_moved() -> None:
    x = torch.ones(2, 3, device="meta")
    staging = Staging(torch.device("meta"))
    assert staging.place == torch.device("meta") and staging.out(x) is x and staging.back(x) is x
    assert Staging(torch.device("cuda"), is_on=True).place == CPU
