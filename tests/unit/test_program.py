"""A recorded program computes what its operations compute one by one, for any number of rows, in one arena."""

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from native import native_kernels
from torch import Tensor

from rayline.kernels.context import ForwardContext
from rayline.kernels.library import read_arguments
from rayline.kernels.native_kernels import NativeKernels
from rayline.kernels.program import ALIGNMENT_BYTES, Recorded, plan_arena

NOTHING = torch.empty(0, dtype=torch.int64)
CONTEXT = ForwardContext(NOTHING, NOTHING, (0, 0), (0,), torch.zeros((1, 1), dtype=torch.int32), NOTHING)


def rows_of(count: int, dim: int = 32, seed: int = 0) -> Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed)).bfloat16()


class Block:
    """A residual step with a product, made of operations only."""

    def __init__(self, kernels: NativeKernels) -> None:
        self.kernels = kernels
        self.weight = kernels.pack([rows_of(64, seed=1)])
        self.norm = rows_of(1, seed=2)[0]
        self.calls = 0

    def __call__(self, x: Tensor, context: ForwardContext) -> Tensor:
        self.calls += 1
        for _ in range(3):
            gate_up = self.kernels.linear(self.kernels.rms_norm(x, self.norm, 1e-5), self.weight)
            x = self.kernels.add(x, self.kernels.silu_gate(gate_up))
        return x


def test_a_replayed_function_gives_the_bits_of_the_called_one() -> None:
    block = Block(native_kernels())
    replayed = block.kernels.replay(block)
    for count in (5, 1, 8, 3, 8):
        x = rows_of(count, seed=count)
        assert replayed(x, CONTEXT).equal(block(x, CONTEXT))


def test_it_is_recorded_again_only_when_more_rows_come_than_ever() -> None:
    block = Block(native_kernels())
    replayed = block.kernels.replay(block)
    recorded = []
    for count in (3, 1, 4, 5, 8, 7, 16, 2):
        replayed(rows_of(count), CONTEXT)
        recorded.append(block.calls)
    assert recorded == [1, 1, 1, 2, 2, 2, 3, 3]


def test_no_rows_are_no_work() -> None:
    block = Block(native_kernels())
    assert block.kernels.replay(block)(rows_of(0), CONTEXT).shape == (0, 32)


def test_results_that_never_live_at_once_share_their_place() -> None:
    """Nine results of a block of three rounds, of which four live at once at most."""
    block = Block(native_kernels())
    example = torch.empty((64, 32), dtype=torch.bfloat16, device="meta")
    program = block.kernels.operations.record(lambda x: block(x, CONTEXT), example)
    one_bytes = 64 * 32 * 2
    assert program._arena.nbytes <= 5 * one_bytes + ALIGNMENT_BYTES


def test_a_failed_recording_leaves_the_operations_usable() -> None:
    kernels = native_kernels()

    def broken(x: Tensor) -> Tensor:
        raise KeyError("planted")

    with pytest.raises(KeyError, match="planted"):
        kernels.operations.record(broken, torch.empty((1, 2), device="meta"))
    x = rows_of(2)
    assert kernels.add(x, x).equal(x + x)


def test_tensors_that_are_not_in_one_piece_are_refused() -> None:
    kernels = native_kernels()
    with pytest.raises(ValueError, match=r"Add\.x must be contiguous"):
        kernels.add(rows_of(8)[:, ::2], rows_of(8, 16))


def test_arguments_must_be_those_of_the_struct() -> None:
    kernels = native_kernels()
    with pytest.raises(TypeError, match="Widen takes x, out, dim, got x"):
        kernels.operations.call("Widen", 1, x=rows_of(1))
    with pytest.raises(KeyError):
        kernels.operations.call("Divide", 1)


Uses = list[tuple[int, list[int]]]


@st.composite
def recordings(draw: st.DrawFn) -> tuple[list[int], Uses]:
    """Sizes of buffers, and operations that write one buffer and read some that were written before."""
    sizes = draw(st.lists(st.integers(1, 300), min_size=1, max_size=12))
    uses: Uses = []
    for written in range(1, len(sizes)):
        uses.append((written, draw(st.lists(st.integers(0, written - 1), max_size=3))))
    return sizes, uses


@given(recordings())
@settings(deadline=None, max_examples=200)
def test_no_two_buffers_that_live_at_once_overlap(recording: tuple[list[int], Uses]) -> None:
    """Run on real bytes: whoever reads a buffer finds what was written to it last."""
    sizes, uses = recording
    buffers = [torch.empty(size, dtype=torch.uint8, device="meta") for size in sizes]
    add = read_arguments()["Add"]
    recorded = [Recorded(add, {f"x{n}": buffers[b] for n, b in enumerate((written, *read))}) for written, read in uses]
    places, size_bytes = plan_arena(recorded, buffers[:1], buffers[-1])
    arena = torch.zeros(size_bytes, dtype=torch.uint8)
    at = [places.get(int(buffer.untyped_storage()._cdata)) for buffer in buffers]

    def part(number: int) -> Tensor:
        start = at[number]
        assert start is not None and start % ALIGNMENT_BYTES == 0
        return arena[start : start + sizes[number]]

    def check(numbers: Sequence[int]) -> None:
        assert all(bool((part(number) == number + 1).all()) for number in numbers)

    part(0).fill_(1)
    for written, read in uses:
        check(read)
        part(written).fill_(written + 1)
        check(read)
    check([len(sizes) - 1])
