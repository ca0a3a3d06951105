"""Tokens that the Triton kernels draw are those of `kernels.sampling`, row by row; logprobs and candidates too."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from no_waits import no_waits
from torch import Tensor

from rayline.kernels.edits import Edit, mask_of
from rayline.kernels.sampling import NO_TOKEN, RowLogprobs, SamplingRows, best_candidates, sample, score
from rayline.kernels.triton_kernels import TritonKernels
from rayline.kernels.triton_rows import sample as sample_on_device
from rayline.kernels.triton_sampling import BLOCK, LEAST_SEGMENT, draw
from rayline.kernels.triton_truncation import Logits
from rayline.workers.collectives import Alone
from rayline.workers.token_sampler import DeviceSampler, token_sampler

UNITS = 50


def logits_of(rows: int, vocab: int, scale: float = 3.0, seed: int = 0) -> Tensor:
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed)) * scale


def rows_of(temperatures: list[float], seed: int = 0) -> SamplingRows:
    count = len(temperatures)
    off, none = (0.0,) * count, (None,) * count
    return SamplingRows(
        temperature=tuple(temperatures),
        top_k=(0,) * count, top_p=(1.0,) * count, min_p=off, typical_p=(1.0,) * count, top_n_sigma=off,
        seed=tuple(seed + (at << 40) for at in range(count)), position=tuple(range(5, 5 + count)),
        edits=none, logprobs=none,
    )  # fmt: skip


def drawn(logits: Tensor, rows: SamplingRows, units: int) -> tuple[Tensor, Tensor]:
    return draw(Logits.of(logits, units), rows, range(len(rows)))


def expect_near(ours: RowLogprobs | None, theirs: RowLogprobs | None) -> None:
    """The same tokens; logprobs within fp32's roundings of a sum over the vocabulary."""
    if ours is None or theirs is None:
        assert ours is theirs
        return
    assert [token for token, _ in ours.top] == [token for token, _ in theirs.top]
    assert [ours.logprob, *(p for _, p in ours.top)] == pytest.approx(
        [theirs.logprob, *(p for _, p in theirs.top)], rel=1e-6, abs=5e-6
    )


TEMPERATURES = st.lists(st.sampled_from([0.0, 0.3, 1.0, 7.0]), min_size=1, max_size=3)


@given(TEMPERATURES, st.sampled_from([1, 3, 300, 4097, 9001]), st.integers(0, 2**62), st.sampled_from([0, UNITS]))
@settings(max_examples=12)
def test_the_token_is_the_one_the_cpu_draws(temperatures: list[float], vocab: int, seed: int, units: int) -> None:
    logits, rows = logits_of(len(temperatures), vocab, seed=seed % 1000), rows_of(temperatures, seed)
    tokens, values = drawn(logits, rows, units)
    assert tokens.equal(sample(logits, rows).token_ids)
    assert bool(values.isfinite().all())


def test_segments_do_not_change_the_token() -> None:
    vocab = 3 * LEAST_SEGMENT + 5
    logits, rows = logits_of(2, vocab, 0.1), rows_of([1.0, 0.0])
    whole, split = drawn(logits, rows, 0), drawn(logits, rows, UNITS)
    assert whole[0].equal(split[0]) and whole[1].equal(split[1])
    assert whole[0].equal(sample(logits, rows).token_ids)


def test_of_equal_values_the_lowest_id_wins() -> None:
    logits = torch.full((1, 2 * LEAST_SEGMENT), 1.0)
    logits[0, :7] = 0.0
    assert drawn(logits, rows_of([0.0]), UNITS)[0].tolist() == [7]
    assert 4 * BLOCK < LEAST_SEGMENT


@pytest.mark.parametrize("heat", [0.0, 1.0])
def test_what_is_forbidden_is_never_drawn(heat: float) -> None:
    logits = torch.full((2, 300), -torch.inf)
    logits[0, 123] = -5.0
    tokens, values = drawn(logits, rows_of([heat, heat]), UNITS)
    assert int(tokens[0]) == 123
    assert float(values[0]) > -torch.inf and float(values[1]) == -torch.inf


def test_infinite_logits_win() -> None:
    logits = logits_of(1, 300)
    logits[0, 200] = torch.inf
    assert drawn(logits, rows_of([0.8]), UNITS)[0].tolist() == [200]


def mixed_rows(vocab: int) -> SamplingRows:
    """Greedy, noisy and truncated rows, edits, logprobs, and rows without any token left."""
    nothing = Edit(mask=torch.zeros(-(-vocab // 32), dtype=torch.int32))
    rows = rows_of([0.0, 1.0, 0.7, 1.0, 0.0, 0.9])
    return replace(
        rows,
        edits=(None, Edit(banned=tuple(range(250))), Edit(mask=mask_of(range(7, 90), vocab)), nothing, nothing, None),
        logprobs=(None, 3, 0, None, None, 2),
        top_p=(1.0, 1.0, 0.4, 0.5, 1.0, 1.0),
        top_k=(3, 0, 0, 0, 0, 20),
    )


def test_the_sampler_of_a_rank_gives_what_torch_gives() -> None:
    count, vocab = 6, 300
    rows = mixed_rows(vocab)
    sampler = token_sampler(TritonKernels("triton", False, None, UNITS), Alone(), vocab, 0)
    assert isinstance(sampler, DeviceSampler)
    logits = logits_of(count, vocab)
    before = logits.clone()
    ours, theirs = sampler.sample(logits, rows), sample(logits, rows)
    assert logits.equal(before)
    assert ours.token_ids.equal(theirs.token_ids) and ours.token_ids.dtype == torch.int64
    for mine, expected in zip(ours.logprobs, theirs.logprobs, strict=True):
        expect_near(mine, expected)
    assert ours.token_ids[3:5].tolist() == [NO_TOKEN, NO_TOKEN] and int(ours.token_ids[:3].min()) >= 0


def test_nothing_waits_for_the_device_before_tokens_and_logprobs_are_read() -> None:
    logits, rows = logits_of(6, 300), mixed_rows(300)
    with no_waits():
        coming = sample_on_device(logits, rows, UNITS)
        assert len(coming.logprobs) == 6
        with pytest.raises(AssertionError, match="waits for the device"):
            coming.logprobs[1]
    assert coming.token_ids.equal(sample(logits, rows).token_ids)
    assert [found is not None for found in coming.logprobs] == [False, True, True, False, False, True]


def test_a_row_has_the_same_bits_alone_and_beside_others() -> None:
    """Tokens and logprobs, whatever the number of programs."""
    vocab = 9000
    logits = logits_of(3, vocab, 5.0)
    rows = replace(rows_of([0.8, 1.0, 1.2]), logprobs=(2, 2, 2), top_p=(0.9, 1.0, 0.5), top_k=(0, 9, 0))
    whole = sample_on_device(logits, rows, 0)
    for at in range(3):
        one = SamplingRows(*(tuple([column[at]]) for column in (getattr(rows, name) for name in rows.__slots__)))
        alone = sample_on_device(logits[at : at + 1], one, 4 * UNITS)
        assert alone.token_ids.tolist() == [int(whole.token_ids[at])]
        assert list(alone.logprobs) == [whole.logprobs[at]]


def test_logprobs_of_prompts_are_those_of_torch() -> None:
    logits = logits_of(3, 700)
    logits[1, :690] = -torch.inf
    kernels, tokens, tops = TritonKernels("triton", False, None, UNITS), [5, 695, 699], [0, 4, 20]
    with no_waits():
        found = kernels.score(logits, tokens, tops)
    for ours, theirs in zip(found, score(logits, tokens, tops), strict=True):
        real = [pair for pair in theirs.top if pair[1] > -torch.inf]
        expect_near(replace(ours, top=ours.top[: len(real)]), replace(theirs, top=tuple(real)))
        assert all(value == -torch.inf for _, value in ours.top[len(real) :])


def test_candidates_of_beams_are_those_of_torch() -> None:
    logits = logits_of(3, 300)
    edits = (None, Edit(banned=tuple(range(3, 300))), Edit(bias=(torch.tensor([5, 9]), torch.tensor([9.0, 4.0]))))
    rows, most = replace(rows_of([1.0, 1.0, 1.0]), edits=edits), [4, 7, 2]
    kernels = TritonKernels("triton", False, None, UNITS)
    with no_waits():
        found = kernels.candidates(logits, rows, most)
    for ours, theirs in zip(found, best_candidates(logits, rows, most), strict=True):
        assert [token for token, _ in ours] == [token for token, _ in theirs]
        assert [value for _, value in ours] == pytest.approx([value for _, value in theirs], rel=1e-6, abs=5e-6)
