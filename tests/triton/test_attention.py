"""Paged attention in Triton's interpreter against the torch reference, and its bits against themselves."""

from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rayline.kernels import triton_attention
from rayline.kernels.attention import paged_attention
from rayline.kernels.backend import AttentionShape, KvLayer
from rayline.kernels.context import ForwardContext
from rayline.kernels.torch_kernels import paged
from rayline.kernels.triton_attention import EXACT, ORDINARY, PagedAttention

UNITS = 50  # processors of a device that is not there: enough to split every decode step


@dataclass(frozen=True)
class Case:
    """slices: (keys, queries) of each sequence, queries being its newest tokens."""

    slices: list[tuple[int, int]]
    kv_heads: int = 2
    group: int = 2
    head_dim: int = 64
    block_tokens: int = 16
    window: int | None = None
    soft_cap: float | None = None
    has_sinks: bool = False
    seed: int = 0

    @property
    def shape(self) -> AttentionShape:
        heads = self.kv_heads * self.group
        return AttentionShape(heads, self.kv_heads, self.head_dim, 0.2, self.window, self.soft_cap)

    @property
    def sinks(self) -> Tensor | None:
        return torch.linspace(-2, 3, self.shape.heads) if self.has_sinks else None


LENGTHS = st.integers(1, 600)
ONE_TOKEN = st.tuples(LENGTHS, st.just(1))
ANY_NUMBER = LENGTHS.flatmap(lambda n: st.tuples(st.just(n), st.integers(0, min(n, 70))))
CASES = st.builds(
    Case,
    slices=st.lists(ONE_TOKEN, min_size=1, max_size=4) | st.lists(ANY_NUMBER, min_size=1, max_size=3),
    kv_heads=st.integers(1, 2),
    group=st.sampled_from([1, 2, 3, 7, 20]),
    head_dim=st.sampled_from([16, 64, 80, 128, 256]),
    block_tokens=st.sampled_from([3, 16, 64]),
    window=st.none() | st.integers(1, 600),
    soft_cap=st.none() | st.just(2.0),
    has_sinks=st.booleans(),
    seed=st.integers(0, 999),
)


class Paged:
    """Keys and values of some sequences in scattered blocks, and the newest queries of each."""

    def __init__(self, case: Case, dtype: torch.dtype) -> None:
        self.case = case
        random = torch.Generator().manual_seed(case.seed)
        lens = [length for length, _ in case.slices]
        widths = [-(-length // case.block_tokens) for length in lens]
        order = torch.randperm(sum(widths) + 3, generator=random)
        size = (len(order), case.block_tokens * case.kv_heads * case.head_dim)
        # Numbers in slots behind a sequence's end, which nobody may see, are large.
        keys, values = (torch.full(size, 100.0) for _ in range(2))
        self.tables = torch.zeros((len(widths), max(widths)), dtype=torch.int32)
        self.queries = []
        used = 0
        for s, (length, width) in enumerate(zip(lens, widths, strict=True)):
            self.tables[s, :width] = order[used : used + width]
            used += width
            at = torch.arange(length)
            slots = self.tables[s, at // case.block_tokens] * case.block_tokens + at % case.block_tokens
            for cache in (keys, values):
                rows = torch.randn(length, case.kv_heads * case.head_dim, generator=random)
                cache.view(-1, case.kv_heads * case.head_dim)[slots.long()] = rows
            self.queries.append(torch.randn(length, case.shape.heads * case.head_dim, generator=random).to(dtype))
        self.layer = KvLayer(keys.to(dtype), values.to(dtype), case.block_tokens, case.kv_heads, case.head_dim)

    def step(self, slices: dict[int, range]) -> tuple[Tensor, ForwardContext]:
        """Queries and context of the positions `slices[s]` of sequences s."""
        positions = torch.cat([torch.arange(at.start, at.stop) for at in slices.values()])
        starts = tuple(sum(map(len, list(slices.values())[:s])) for s in range(len(slices) + 1))
        nothing = torch.empty(0, dtype=torch.int64)
        lens = tuple(at.stop for at in slices.values())
        context = ForwardContext(positions, nothing, starts, lens, self.tables[list(slices)], nothing)
        return torch.cat([self.queries[s][at.start : at.stop] for s, at in slices.items()]), context

    def newest(self) -> tuple[Tensor, ForwardContext]:
        return self.step({s: range(n - count, n) for s, (n, count) in enumerate(self.case.slices)})

    def attended(self, attention: PagedAttention, slices: dict[int, range]) -> Tensor:
        q, context = self.step(slices)
        return attention.attend(q, self.case.shape, self.layer, context, self.case.sinks)


def expect_parity(case: Case, dtype: torch.dtype, attention: PagedAttention, tolerance: float) -> None:
    step = Paged(case, dtype)
    q, context = step.newest()
    ours = attention.attend(q, case.shape, step.layer, context, case.sinks)
    assert ours.shape == q.shape and ours.dtype == dtype
    if not len(q):
        return
    heads = q.view(len(q), case.shape.heads, case.head_dim)
    theirs = paged_attention(heads, paged(step.layer), context, case.shape, case.sinks).flatten(1)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance)


@given(CASES, st.sampled_from([0, UNITS]))
@settings(max_examples=10)
def test_ordinary_attention_is_the_reference(case: Case, units: int) -> None:
    expect_parity(case, torch.float32, PagedAttention(ORDINARY, units), 2e-5)


@given(CASES, st.sampled_from([0, UNITS]))
@settings(max_examples=10)
def test_exact_attention_is_the_reference(case: Case, units: int) -> None:
    expect_parity(case, torch.float32, PagedAttention(EXACT, units), 2e-5)


@given(CASES)
@settings(max_examples=10)
def test_attention_in_fp16_is_the_reference_within_its_roundings(case: Case) -> None:
    expect_parity(case, torch.float16, PagedAttention(ORDINARY, UNITS), 1e-2)


@pytest.mark.parametrize("head_dim", [64, 128, 256])
@pytest.mark.parametrize("has_cap", [False, True])
@pytest.mark.parametrize("tiles", [ORDINARY, EXACT], ids=["ordinary", "exact"])
def test_every_variant_is_the_reference(tiles: dict[int, triton_attention.Tiles], head_dim: int, has_cap: bool) -> None:
    """A long slice, two decode steps; alone, and split."""
    cap = 2.0 if has_cap else None
    case = Case([(280, 70), (530, 1), (40, 1)], head_dim=head_dim, soft_cap=cap, has_sinks=True)
    for units in (0, UNITS):
        expect_parity(case, torch.float32, PagedAttention(tiles, units), 2e-5)


@given(st.data(), st.none() | st.integers(1, 700), st.booleans(), st.sampled_from([None, 2.0]))
@settings(max_examples=8)
def test_a_row_of_the_exact_class_has_the_same_bits_in_any_step(
    data: st.DataObject, window: int | None, has_sinks: bool, soft_cap: float | None
) -> None:
    """Computed with its whole prompt, in a chunk beside others, and alone with the keys split over programs."""
    case = Case([(1100, 1), (130, 1), (530, 1)], window=window, has_sinks=has_sinks, soft_cap=soft_cap, group=3)
    step = Paged(case, torch.float32)
    length = case.slices[0][0]
    first = data.draw(st.integers(0, length - 1))
    last = data.draw(st.integers(first + 1, min(first + 60, length)))
    chunk = step.attended(PagedAttention(EXACT, 0), {1: range(90, 130), 0: range(first, last), 2: range(529, 530)})
    mine = chunk[40 : 40 + last - first]
    at = data.draw(st.integers(first, last - 1))
    alone = step.attended(PagedAttention(EXACT, UNITS), {0: range(at, at + 1)})
    assert mine[at - first].equal(alone[0])
    wider = step.attended(PagedAttention(EXACT, UNITS), {0: range(max(0, first - 30), last)})
    assert wider[-(last - first) :].equal(mine)


def test_the_ordinary_class_is_not_exact_so_the_property_can_fail() -> None:
    step = Paged(Case([(1100, 1)]), torch.float32)
    at = {0: range(1099, 1100)}
    split, whole = (step.attended(PagedAttention(ORDINARY, units), at) for units in (UNITS, 0))
    assert not split.equal(whole)


def test_all_layers_of_a_step_share_what_the_first_one_made() -> None:
    step = Paged(Case([(40, 1), (30, 9)]), torch.float32)
    q, context = step.newest()
    attention = PagedAttention(ORDINARY, 0)
    batches = []
    for again in (context, context, replace(context)):
        attention.attend(q, step.case.shape, step.layer, again, None)
        batches.append(attention._batches[step.case.group])
    assert batches[0] is batches[1] and batches[0] is not batches[2]


def test_heads_that_are_too_wide_are_refused() -> None:
    with pytest.raises(ValueError, match="at most 256, not 288"):
        triton_attention.block_d(288)
