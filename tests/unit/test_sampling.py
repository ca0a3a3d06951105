"""Sampling against its definition, the exact distribution, and the warpers of `transformers`."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from rayline.kernels.edits import Edit, edited
from rayline.kernels.philox import SAMPLE, gumbel, noise_words
from rayline.kernels.sampling import SamplingRows, sample
from rayline.kernels.truncation import Rules, kept, least_score

INF = float("inf")
DRAWS = 5_000  # by which a probability of a tenth is known to a twentieth of it
RULES = ("temperature", "top_k", "top_p", "min_p", "typical_p", "top_n_sigma")
SETTINGS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.6},
    {"temperature": 1.8, "top_k": 5},
    {"top_k": 1},
    {"top_p": 0.8},
    {"min_p": 0.1},
    {"typical_p": 0.7, "temperature": 1.5},
    {"top_n_sigma": 1.2},
    {"top_k": 30, "top_p": 0.95, "typical_p": 0.6, "top_n_sigma": 2.0, "temperature": 1.3},
    {"temperature": 0.7, "top_k": 20, "top_p": 0.9, "min_p": 0.02},
]


def rows(count: int, **same: Any) -> SamplingRows:
    """`count` rows with the same parameters, at positions 0, 1, ..."""
    one = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "typical_p": 1.0, "top_n_sigma": 0.0}
    one |= {"seed": 7, "edits": None, "logprobs": None}
    columns = {name: (value,) * count for name, value in (one | same).items()}
    return SamplingRows(position=tuple(range(count)), **columns)


def mixed(*each: dict[str, Any]) -> SamplingRows:
    """One row for each setting, with its own seed and position."""
    single = [rows(1, **({"seed": 100 + i} | setting)) for i, setting in enumerate(each)]
    fields = SamplingRows.__dataclass_fields__
    columns = {name: tuple(getattr(row, name)[0] for row in single) for name in fields}
    return SamplingRows(**(columns | {"position": tuple(range(40, 40 + len(each)))}))


def row_of(batch: SamplingRows, at: int) -> SamplingRows:
    return SamplingRows(**{name: (getattr(batch, name)[at],) for name in SamplingRows.__dataclass_fields__})


def kept_ids(
    logits: Tensor,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    typical_p: float = 1.0,
    top_n_sigma: float = 0.0,
) -> list[list[int]]:
    """Kept ids of each row of [R, V], by (logit desc, id asc) within a row."""
    count = len(logits)
    each = [
        torch.full((count,), value, dtype=torch.float64)
        for value in (temperature, top_n_sigma, top_p, least_score(min_p), typical_p)
    ]
    rules = Rules(each[0], each[1], torch.full((count,), top_k), *each[2:])
    found: list[list[int]] = [[] for _ in range(count)]
    for row, token, _score in kept(logits, rules):
        for r, t in zip(row.tolist(), token.tolist(), strict=True):
            found[r].append(t)
    return found


def by_definition(logits: Tensor, rows: SamplingRows, at: int) -> int:
    """The definition, on one row, without any pruning: argmax(logits / temperature + noise)."""
    vocab = len(logits)
    keep = (
        kept_ids(logits[None], *(getattr(rows, name)[at] for name in RULES))[0]
        if rows.is_truncated(at)
        else list(range(vocab))
    )
    blocks = torch.arange(-(-vocab // 4))
    words = noise_words(torch.tensor(rows.seed[at]), torch.tensor(rows.position[at]), blocks, SAMPLE)
    value = logits.double() / rows.temperature[at] + gumbel(words.flatten()[:vocab])
    masked = torch.full_like(value, -INF)
    masked[keep] = value[keep]
    return int(masked.argmax())


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
@pytest.mark.parametrize("vocab", [1, 7, 258, 5001])
def test_pruning_changes_no_token(vocab: int, setting: dict[str, Any]) -> None:
    logits = torch.randn(40, vocab, generator=torch.Generator().manual_seed(vocab)) * 4
    batch = rows(40, **setting)
    assert sample(logits, batch).token_ids.tolist() == [by_definition(logits[i], batch, i) for i in range(40)]


@given(st.integers(0, 2**63 - 1), st.floats(0.01, 100.0), st.floats(0.0, 30.0), st.integers(1, 300))
@settings(max_examples=60, deadline=None)
def test_pruning_changes_no_token_at_any_temperature_and_spread(
    seed: int, temperature: float, spread: float, vocab: int
) -> None:
    logits = torch.randn(4, vocab, generator=torch.Generator().manual_seed(seed % 2**31)) * spread
    batch = rows(4, seed=seed, temperature=temperature)
    assert sample(logits, batch).token_ids.tolist() == [by_definition(logits[i], batch, i) for i in range(4)]


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_sampled_tokens_follow_the_softmax_of_what_is_kept(setting: dict[str, Any]) -> None:
    logits = torch.randn(50, generator=torch.Generator().manual_seed(5)) * 2
    tokens = sample(logits.expand(DRAWS, -1), rows(DRAWS, **setting)).token_ids
    wanted = np.exp(warped(logits[None], setting)[0].double().log_softmax(-1).numpy())
    counts = np.bincount(tokens.numpy(), minlength=50)
    assert counts[wanted == 0].sum() == 0
    if (wanted > 0).sum() == 1:
        return
    common = wanted * DRAWS >= 5  # rarer tokens share one bin
    observed = [*counts[common], counts[~common].sum()]
    expected = [*(wanted[common] * DRAWS), wanted[~common].sum() * DRAWS]
    if expected[-1] == 0:
        observed, expected = observed[:-1], expected[:-1]
    assert stats.chisquare(observed, expected).pvalue > 1e-3


@pytest.mark.parametrize("setting", [{}, {"top_p": 0.9, "temperature": 1.4}, {"typical_p": 0.8}], ids=str)
def test_sampled_tokens_follow_the_softmax_of_the_edited_logits(setting: dict[str, Any]) -> None:
    logits = torch.randn(20, generator=torch.Generator().manual_seed(8)) * 2
    seen, counts = torch.arange(0, 20, 3), torch.tensor([1.0, 0, 2, 1, 0, 5, 1])
    edit = Edit(seen, counts, 1.4, 0.2, 0.3, (torch.tensor([1, 2]), torch.tensor([1.5, -0.5])), (4, 9))
    tokens = sample(logits.expand(DRAWS, -1), rows(DRAWS, edits=edit, **setting)).token_ids
    wanted = np.exp(warped(edited(logits[None], [edit]), setting)[0].double().log_softmax(-1).numpy())
    counted = np.bincount(tokens.numpy(), minlength=20)
    common = wanted * DRAWS >= 5
    assert counted[wanted == 0].sum() == 0
    share = wanted[common] / wanted[common].sum()
    assert stats.chisquare(counted[common], share * counted[common].sum()).pvalue > 1e-3


def warped(logits: Tensor, setting: dict[str, Any]) -> Tensor:
    """The same rules by `transformers`, in the order its generate() applies them; top-n-sigma as llama.cpp has it."""
    ids = torch.zeros(len(logits), 1, dtype=torch.int64)
    warpers = LogitsProcessorList([TemperatureLogitsWarper(setting.get("temperature", 1.0))])
    if setting.get("top_k"):
        warpers.append(TopKLogitsWarper(setting["top_k"]))
    if setting.get("top_p", 1.0) < 1:
        warpers.append(TopPLogitsWarper(setting["top_p"]))
    if setting.get("min_p"):
        warpers.append(MinPLogitsWarper(setting["min_p"]))
    if setting.get("typical_p", 1.0) < 1:
        warpers.append(TypicalLogitsWarper(setting["typical_p"]))
    if setting.get("top_n_sigma"):
        floor = logits.max(-1).values - setting["top_n_sigma"] * logits.std(-1, unbiased=False)
        logits = logits.masked_fill(logits < floor[:, None], -INF)
    result: Tensor = warpers(ids, logits)
    return result


@pytest.mark.parametrize("vocab", [10, 300, 6000])
@pytest.mark.parametrize(
    "setting",
    [
        {"typical_p": 0.5},
        {"typical_p": 0.95, "temperature": 2.0},
        {"typical_p": 0.2, "temperature": 0.4},
        {"typical_p": 0.9, "top_k": 100, "top_p": 0.9, "min_p": 0.001},
        {"top_n_sigma": 1.0},
        {"top_n_sigma": 0.1, "temperature": 5.0},
        {"top_n_sigma": 2.0, "top_p": 0.8},
        {"top_n_sigma": 1.5, "top_k": 40, "top_p": 0.9, "typical_p": 0.8, "temperature": 1.7},
        {"temperature": 1.0, "top_k": 1, "top_p": 1.0, "min_p": 0.0},
        {"temperature": 1.0, "top_k": 50, "top_p": 1.0, "min_p": 0.0},
        {"temperature": 1.0, "top_k": 5000, "top_p": 1.0, "min_p": 0.0},
        {"temperature": 0.7, "top_k": 0, "top_p": 0.9, "min_p": 0.0},
        {"temperature": 2.0, "top_k": 0, "top_p": 0.5, "min_p": 0.0},
        {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.05},
        {"temperature": 1.5, "top_k": 0, "top_p": 1.0, "min_p": 0.0001},
        {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.01},
        {"temperature": 3.0, "top_k": 300, "top_p": 0.999, "min_p": 0.001},
    ],
)
def test_the_kept_sets_equal_those_of_transformers(vocab: int, setting: dict[str, Any]) -> None:
    logits = torch.randn(12, vocab, generator=torch.Generator().manual_seed(vocab), dtype=torch.float32) * 3
    setting = setting | {"top_k": min(setting.get("top_k", 0), vocab)}
    oracle = [row.isfinite().nonzero()[:, 0].tolist() for row in warped(logits.double(), setting)]
    ours = kept_ids(logits, **setting)
    assert [sorted(ids) for ids in ours] == oracle


def test_top_k_keeps_exactly_k_and_ties_go_to_the_lowest_ids() -> None:
    logits = torch.zeros(2, 5000)
    logits[1, [4000, 17, 901]] = 1.0
    assert kept_ids(logits, 1.0, 4, 1.0, 0.0) == [[0, 1, 2, 3], [17, 901, 4000, 0]]


def test_top_p_keeps_the_smallest_prefix_that_reaches_it_and_at_least_one() -> None:
    logits = torch.tensor([[0.5, 0.25, 0.125, 0.125]]).log()
    assert kept_ids(logits, 1.0, 0, 0.74, 0.0) == [[0, 1]]
    assert kept_ids(logits, 1.0, 0, 0.76, 0.0) == [[0, 1, 2]]
    assert kept_ids(logits, 1.0, 0, 1e-9, 0.0) == [[0]]


def test_top_p_counts_only_what_top_k_kept() -> None:
    logits = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log()
    assert kept_ids(logits, 1.0, 2, 0.55, 0.0) == [[0]]
    assert kept_ids(logits, 1.0, 2, 0.6, 0.0) == [[0, 1]]


def test_a_row_does_not_depend_on_the_rows_beside_it() -> None:
    each = [{"temperature": 0.0, "logprobs": 3}, *SETTINGS, {"logprobs": 2}, {"edits": Edit(banned=(1, 2))}] * 5
    batch = mixed(*each)
    logits = torch.randn(len(batch), 3001, generator=torch.Generator().manual_seed(1)) * 2
    together = sample(logits, batch)
    for at in range(len(batch)):
        alone = sample(logits[at : at + 1].clone(), row_of(batch, at))
        assert alone.token_ids[0] == together.token_ids[at]
        assert alone.logprobs[0] == together.logprobs[at]


def test_the_number_of_threads_changes_nothing() -> None:
    logits = torch.randn(6, 40_000, generator=torch.Generator().manual_seed(2))
    batch = mixed({}, {"top_p": 0.9}, {"top_k": 9}, {"min_p": 0.1}, {"temperature": 0.0}, {"logprobs": 4})
    before, threads = sample(logits, batch), torch.get_num_threads()
    torch.set_num_threads(3 - min(threads, 2))
    try:
        after = sample(logits, batch)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(before.token_ids, after.token_ids)
    assert before.logprobs == after.logprobs


def test_the_same_seed_and_position_give_the_same_token_and_others_do_not() -> None:
    logits = torch.zeros(64, 1000)
    first = sample(logits, rows(64)).token_ids
    assert torch.equal(first, sample(logits, rows(64)).token_ids)
    assert first.unique().numel() > 40  # 64 positions
    assert not torch.equal(first, sample(logits, rows(64, seed=8)).token_ids)


@pytest.mark.parametrize("low", [0, 2**32 - 1])
def test_all_63_bits_of_the_seed_matter(low: int) -> None:
    logits = torch.zeros(32, 1000)
    high_bit = sample(logits, rows(32, seed=low + 2**62)).token_ids
    assert not torch.equal(sample(logits, rows(32, seed=low)).token_ids, high_bit)


def test_greedy_is_argmax_and_ties_go_to_the_lowest_id() -> None:
    logits = torch.randn(20, 997, generator=torch.Generator().manual_seed(3))
    logits[4, [10, 500, 900]] = 9.0
    tokens = sample(logits, rows(20, temperature=0.0)).token_ids
    assert torch.equal(tokens, logits.argmax(-1))
    assert tokens[4] == 10


def test_a_tiny_temperature_is_greedy_too() -> None:
    logits = torch.randn(20, 997, generator=torch.Generator().manual_seed(4))
    assert torch.equal(sample(logits, rows(20, temperature=1e-300)).token_ids, logits.argmax(-1))


def test_banned_ids_are_never_sampled_and_the_logits_stay_as_they_were() -> None:
    logits = torch.zeros(200, 6)
    logits[:, 2] = 50.0
    before = logits.clone()
    for setting in ({}, {"temperature": 0.0}, {"top_p": 0.5}, {"top_k": 3}):
        tokens = sample(logits, rows(200, edits=Edit(banned=(2, 5)), **setting)).token_ids
        assert not set(tokens.tolist()) & {2, 5}
    assert torch.equal(logits, before)


@pytest.mark.parametrize("setting", [*SETTINGS, {"temperature": 0.0}], ids=str)
def test_extreme_logits_still_give_a_possible_token(setting: dict[str, Any]) -> None:
    big = torch.finfo(torch.float32).max
    logits = torch.tensor(
        [
            [0.0, INF, 1.0, -INF, 2.0],
            [-INF, -INF, -INF, 3.0, -INF],
            [big, -big, 0.0, -big, -INF],
            [-big, -big, -INF, -big, -big],
            [-INF, -INF, -INF, -INF, -INF],
        ]
    )
    result = sample(logits, rows(5, logprobs=2, **setting))
    tokens = result.token_ids.tolist()
    assert tokens[:3] == [1, 3, 0]
    assert tokens[3] in {0, 1, 3, 4}
    assert 0 <= tokens[4] < 5
    assert all(part is not None and part.logprob == part.logprob for part in result.logprobs)


def test_two_infinite_logits_share_the_probability() -> None:
    logits = torch.tensor([0.0, INF, 1.0, INF]).expand(400, -1)
    counts = np.bincount(sample(logits, rows(400)).token_ids.numpy(), minlength=4)
    assert counts[0] == counts[2] == 0
    assert 150 < counts[1] < 250


def test_logprobs_are_the_log_softmax_of_the_raw_logits() -> None:
    logits = torch.randn(8, 1003, generator=torch.Generator().manual_seed(6)) * 3
    result = sample(logits, rows(8, temperature=0.3, top_k=2, edits=Edit(banned=(5,)), logprobs=4))
    oracle = logits.log_softmax(-1)
    for row, logprobs in enumerate(result.logprobs):
        assert logprobs is not None
        assert logprobs.logprob == float(oracle[row, result.token_ids[row]])
        values, ids = oracle[row].topk(4)
        assert logprobs.top == tuple(zip(ids.tolist(), values.tolist(), strict=True))


def test_equal_logprobs_are_listed_by_id() -> None:
    logits = torch.tensor([[0.0, 2.0, 0.0, 2.0, 0.0]])
    (logprobs,) = sample(logits, rows(1, logprobs=4)).logprobs
    assert logprobs is not None
    assert [token for token, _ in logprobs.top] == [1, 3, 0, 2]


def test_logprobs_zero_reports_the_sampled_token_alone() -> None:
    (logprobs,) = sample(torch.zeros(1, 3), rows(1, logprobs=0)).logprobs
    assert logprobs is not None
    assert logprobs.logprob == pytest.approx(-np.log(3))
    assert logprobs.top == ()


def test_more_logprobs_than_tokens_list_every_token() -> None:
    (logprobs,) = sample(torch.zeros(1, 3), rows(1, logprobs=20)).logprobs
    assert logprobs is not None
    assert len(logprobs.top) == 3
