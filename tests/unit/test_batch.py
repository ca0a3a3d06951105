"""A plan as tensors, by example: chunks, decode steps, prefix hits, preemption, tokens that come too late."""

import pytest
import torch

from rayline.kernels.context import ForwardContext
from rayline.protos.plan import Admission, Copy, Fork, Gain, Plan, Slice
from rayline.protos.types import SamplingParams
from rayline.workers.batch import ScoredRun, forward_context, wanted
from rayline.workers.cache import KvCache
from rayline.workers.resident import Residents
from rayline.workers.token_feed import TokenFeed

CPU = torch.device("cpu")
BLOCK_TOKENS = 4


def admission(sequence: int, prompt: range, outputs: tuple[int, ...] = ()) -> Admission:
    return Admission(sequence, tuple(prompt), outputs, SamplingParams(max_tokens=8))


def follow(residents: Residents, *slices: Slice, admitted: tuple[Admission, ...] = ()) -> ForwardContext:
    residents.follow(Plan(0, 0, admitted, slices))
    return forward_context(slices, residents, wanted(slices, residents).tokens, BLOCK_TOKENS, CPU)


def test_a_whole_prompt_is_laid_along_its_blocks() -> None:
    context = follow(Residents(), Slice(7, 0, 6, 0, (5, 2), True), admitted=(admission(7, range(10, 16)),))
    assert context.positions.tolist() == [0, 1, 2, 3, 4, 5]
    assert context.slots.tolist() == [20, 21, 22, 23, 8, 9]
    assert (context.starts, context.lens) == ((0, 6), (6,))
    assert context.tables.tolist() == [[5, 2]]
    assert context.wanted.tolist() == [5]


def test_the_tensors_have_the_types_the_kernels_take() -> None:
    context = follow(Residents(), Slice(7, 0, 3, 0, (5,), True), admitted=(admission(7, range(3)),))
    assert context.positions.dtype == context.slots.dtype == context.wanted.dtype == torch.int64
    assert context.tables.dtype == torch.int32


def test_a_chunk_in_the_middle_wants_no_logits() -> None:
    context = follow(Residents(), Slice(7, 0, 4, 0, (5,), False), admitted=(admission(7, range(9)),))
    assert context.wanted.tolist() == []
    assert context.wanted.dtype == torch.int64


def test_the_next_chunk_goes_on_where_the_last_one_ended() -> None:
    residents = Residents()
    follow(residents, Slice(7, 0, 6, 0, (5, 2), False), admitted=(admission(7, range(9)),))
    item = Slice(7, 6, 3, 2, (9,), True)
    context = follow(residents, item)
    assert context.positions.tolist() == [6, 7, 8]
    assert context.slots.tolist() == [2 * 4 + 2, 2 * 4 + 3, 9 * 4]
    assert context.tables.tolist() == [[5, 2, 9]]
    assert (context.starts, context.lens, context.wanted.tolist()) == ((0, 3), (9,), [2])
    assert TokenFeed(residents, CPU).inputs((item,)).tolist() == [6, 7, 8]


def test_a_decode_step_computes_the_token_that_was_sampled_last() -> None:
    residents = Residents()
    follow(residents, Slice(7, 0, 4, 0, (5,), True), admitted=(admission(7, range(4)),))
    residents.gain(7, 42)
    item = Slice(7, 4, 1, 1, (6,), True)
    context = follow(residents, item)
    assert TokenFeed(residents, CPU).inputs((item,)).tolist() == [42]
    assert context.slots.tolist() == [24]
    assert context.lens == (5,)
    assert residents[7].output_tokens == 1


def test_prompts_and_decode_steps_are_packed_in_the_plans_order() -> None:
    residents = Residents()
    follow(residents, Slice(1, 0, 4, 0, (0,), True), admitted=(admission(1, range(4)),))
    residents.gain(1, 42)
    slices = (Slice(1, 4, 1, 1, (3,), True), Slice(2, 0, 3, 0, (8,), False), Slice(3, 0, 2, 0, (9,), True))
    context = follow(residents, *slices, admitted=(admission(2, range(20, 29)), admission(3, range(30, 32))))
    assert TokenFeed(residents, CPU).inputs(slices).tolist() == [42, 20, 21, 22, 30, 31]
    assert context.positions.tolist() == [4, 0, 1, 2, 0, 1]
    assert (context.starts, context.lens) == ((0, 1, 4, 6), (5, 3, 2))
    assert context.wanted.tolist() == [0, 5]


def test_shorter_tables_are_padded_with_block_zero() -> None:
    admitted = (admission(1, range(9)), admission(2, range(2)))
    context = follow(Residents(), Slice(1, 0, 9, 0, (4, 5, 6), True), Slice(2, 0, 2, 0, (7,), True), admitted=admitted)
    assert context.tables.tolist() == [[4, 5, 6], [7, 0, 0]]


def test_blocks_beyond_the_slice_are_left_out_of_the_tables() -> None:
    context = follow(Residents(), Slice(1, 0, 2, 0, (4, 5, 6), False), admitted=(admission(1, range(9)),))
    assert context.tables.tolist() == [[4]]


def test_a_prefix_hit_starts_behind_the_shared_blocks() -> None:
    item = Slice(7, 4, 2, 0, (3, 8), True)
    residents = Residents()
    context = follow(residents, item, admitted=(admission(7, range(10, 16)),))
    assert context.positions.tolist() == [4, 5]
    assert context.slots.tolist() == [32, 33]
    assert context.lens == (6,)
    assert TokenFeed(residents, CPU).inputs((item,)).tolist() == [14, 15]


def test_a_preempted_sequence_gets_a_new_table_and_computes_its_own_outputs_again() -> None:
    residents = Residents()
    follow(residents, Slice(7, 0, 4, 0, (5,), True), admitted=(admission(7, range(4)),))
    residents.gain(7, 42)
    follow(residents, Slice(7, 4, 1, 1, (6,), True))
    residents.gain(7, 43)
    item = Slice(7, 0, 6, 0, (1, 2), True)
    context = follow(residents, item)
    assert TokenFeed(residents, CPU).inputs((item,)).tolist() == [0, 1, 2, 3, 42, 43]
    assert context.tables.tolist() == [[1, 2]]
    assert context.slots.tolist() == [4, 5, 6, 7, 8, 9]


def test_a_resumed_stream_brings_its_outputs_along() -> None:
    residents = Residents()
    item = Slice(7, 0, 5, 0, (0, 1), True)
    follow(residents, item, admitted=(admission(7, range(3), outputs=(40, 41)),))
    assert TokenFeed(residents, CPU).inputs((item,)).tolist() == [0, 1, 2, 40, 41]
    assert residents[7].output_tokens == 2


def test_a_released_sequence_is_forgotten_before_its_number_is_looked_at() -> None:
    residents = Residents()
    follow(residents, Slice(7, 0, 3, 0, (0,), True), admitted=(admission(7, range(3)),))
    residents.follow(Plan(0, 1, released=(7,)))
    assert len(residents) == 0
    with pytest.raises(KeyError):
        residents[7]


def test_a_token_that_comes_after_the_release_is_dropped() -> None:
    residents = Residents()
    residents.gain(7, 42)
    assert len(residents) == 0


def test_a_release_of_a_sequence_this_rank_never_knew_is_ignored() -> None:
    Residents().follow(Plan(0, 0, released=(3,)))


def test_rows_come_in_the_order_samples_beams_prompt_scores() -> None:
    residents = Residents()
    admitted = (
        Admission(1, tuple(range(6)), (), SamplingParams(beam_width=2)),
        Admission(2, tuple(range(5)), (), SamplingParams(prompt_logprobs=1)),
        admission(3, range(2)),
    )
    slices = (
        Slice(1, 0, 6, 0, (0, 1), True),
        Slice(2, 1, 4, 0, (2, 3), True, scores=True),
        Slice(3, 0, 2, 0, (4,), True),
    )
    residents.follow(Plan(0, 0, admitted, slices))
    asked = wanted(slices, residents)
    assert (asked.sampling, asked.beams) == ((2, 3), (1,))
    assert asked.scored == (ScoredRun(2, 2, 5),)
    assert asked.tokens == (9, 11, 5, 6, 7, 8)


def test_choices_that_fork_sample_from_the_row_of_their_trunk() -> None:
    residents = Residents()
    item = Slice(1, 0, 5, 0, (0, 1), True, forks=(2, 3))
    forked = (Fork(2, 1, SamplingParams(seed=2)), Fork(3, 1, SamplingParams(seed=3)))
    residents.follow(Plan(0, 0, (admission(1, range(5)),), (item,), forked=forked))
    asked = wanted((item,), residents)
    assert (asked.sampling, asked.tokens) == ((1, 2, 3), (4, 4, 4))
    assert [residents[number].params.seed for number in (2, 3)] == [2, 3]


def test_the_last_token_of_a_prompt_tells_of_no_prompt_token() -> None:
    residents = Residents()
    item = Slice(1, 4, 1, 0, (0, 1), True, scores=True)
    residents.follow(Plan(0, 0, (admission(1, range(5)),), (item,)))
    assert wanted((item,), residents).scored == ()


def test_a_fork_goes_its_own_way_with_its_own_table() -> None:
    residents = Residents()
    follow(residents, Slice(1, 0, 5, 0, (0, 1), True), admitted=(admission(1, range(5)),))
    plan = Plan(0, 1, forked=(Fork(2, 1, SamplingParams()),), gained=(Gain(1, 70), Gain(2, 80)))
    residents.follow(plan)
    assert [residents[number].token_ids[5:] for number in (1, 2)] == [[70], [80]]
    slices = (Slice(1, 5, 1, 1, (7,), True), Slice(2, 5, 1, 0, (0, 1), True))
    context = follow(residents, *slices)
    assert context.tables.tolist() == [[0, 7], [0, 1]]
    assert context.slots.tolist() == [29, 5]


def test_a_plan_is_followed_in_its_order_so_a_fork_may_outlive_a_parent_released_with_it() -> None:
    residents = Residents()
    follow(residents, Slice(1, 0, 5, 0, (0, 1), True), admitted=(admission(1, range(5)),))
    residents.follow(Plan(0, 1, forked=(Fork(2, 1, SamplingParams()),), gained=(Gain(2, 80),), released=(1,)))
    assert len(residents) == 1 and residents[2].token_ids == [0, 1, 2, 3, 4, 80]


def test_all_sources_are_read_before_a_target_is_written() -> None:
    cache = KvCache(2, 4, 1, 1, 2, torch.float32, CPU)
    for layer in cache.layers:
        layer.keys.copy_(torch.arange(8.0).view(4, 2))
        layer.values.copy_(-torch.arange(8.0).view(4, 2))
    cache.copy((Copy(0, 1), Copy(1, 2), Copy(2, 0)))
    for layer in cache.layers:
        assert layer.keys.view(4, 2).tolist() == [[4, 5], [0, 1], [2, 3], [6, 7]]
        assert layer.values.view(4, 2).tolist() == [[-4, -5], [0, -1], [-2, -3], [-6, -7]]
