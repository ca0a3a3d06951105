"""Tokens that the Triton kernel draws are those of `kernels.sampling`, row by row."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rayline.kernels.edits import Edit
from rayline.kernels.sampling import NO_TOKEN, SamplingRows, sample
from rayline.kernels.triton_kernels import TritonKernels
from rayline.kernels.triton_sampling import BLOCK, LEAST_SEGMENT, draw
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


TEMPERATURES = st.lists(st.sampled_from([0.0, 0.3, 1.0, 7.0]), min_size=1, max_size=3)


@given(TEMPERATURES, st.sampled_from([1, 3, 300, 4097, 9001]), st.integers(0, 2**62), st.sampled_from([0, UNITS]))
@settings(max_examples=12)
def test_the_token_is_the_one_the_cpu_draws(temperatures: list[float], vocab: int, seed: int, units: int) -> None:
    logits, rows = logits_of(len(temperatures), vocab, seed=seed % 1000), rows_of(temperatures, seed)
    tokens, values = draw(logits, rows, units)
    assert tokens.equal(sample(logits, rows).token_ids)
    assert bool(values.isfinite().all())


def test_segments_do_not_change_the_token() -> None:
    vocab = 3 * LEAST_SEGMENT + 5
    logits, rows = logits_of(2, vocab, 0.1), rows_of([1.0, 0.0])
    whole, split = draw(logits, rows, 0), draw(logits, rows, UNITS)
    assert whole[0].equal(split[0]) and whole[1].equal(split[1])
    assert whole[0].equal(sample(logits, rows).token_ids)


def test_of_equal_values_the_lowest_id_wins() -> None:
    logits = torch.full((1, 2 * LEAST_SEGMENT), 1.0)
    logits[0, :7] = 0.0
    assert draw(logits, rows_of([0.0]), UNITS)[0].tolist() == [7]
    assert 4 * BLOCK < LEAST_SEGMENT


@pytest.mark.parametrize("heat", [0.0, 1.0])
def test_what_is_forbidden_is_never_drawn(heat: float) -> None:
    logits = torch.full((2, 300), -torch.inf)
    logits[0, 123] = -5.0
    tokens, values = draw(logits, rows_of([heat, heat]), UNITS)
    assert int(tokens[0]) == 123
    assert float(values[0]) > -torch.inf and float(values[1]) == -torch.inf


def test_infinite_logits_win() -> None:
    logits = logits_of(1, 300)
    logits[0, 200] = torch.inf
    assert draw(logits, rows_of([0.8]), UNITS)[0].tolist() == [200]


@pytest.mark.parametrize("is_cut", [False, True])
def test_the_sampler_of_a_rank_gives_what_torch_gives(is_cut: bool) -> None:
    """Edits, logprobs and rows without any token left; truncated rows beside others."""
    count, vocab = 5, 300
    rows = rows_of([0.0, 1.0, 0.7, 1.0, 0.0])
    nothing = Edit(mask=torch.zeros(-(-vocab // 32), dtype=torch.int32))
    rows = replace(
        rows,
        edits=(None, Edit(banned=tuple(range(250))), None, nothing, nothing),
        logprobs=(None, 3, None, None, None),
        top_p=(1.0, 1.0, 0.4 if is_cut else 1.0, 1.0, 1.0),
    )
    sampler = token_sampler(TritonKernels("triton", False, None, UNITS), Alone(), vocab, 0)
    assert isinstance(sampler, DeviceSampler)
    logits = logits_of(count, vocab)
    ours, theirs = sampler.sample(logits, rows), sample(logits, rows)
    assert ours.token_ids.equal(theirs.token_ids) and ours.token_ids.dtype == torch.int64
    assert ours.logprobs == theirs.logprobs and ours.token_ids[3:].tolist() == [NO_TOKEN, NO_TOKEN]
    assert int(ours.token_ids[:3].min()) >= 0
