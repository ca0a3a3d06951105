"""Where the ids of a step come from: the host's records, and tokens that only the device has, in any order."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from rayline.kernels.sampling import NO_TOKEN
from rayline.protos.plan import Admission, Plan, Slice
from rayline.protos.types import SamplingParams
from rayline.workers.resident import Residents
from rayline.workers.token_feed import FreshTokens, TokenFeed

CPU = torch.device("cpu")


def knowing(**prompts: range) -> tuple[Residents, TokenFeed]:
    """Sequences s0, s1 .. and their prompts."""
    residents = Residents()
    admitted = tuple(Admission(int(name[1:]), tuple(ids), (), SamplingParams()) for name, ids in prompts.items())
    residents.follow(Plan(0, 0, admitted))
    return residents, TokenFeed(residents, CPU)


def fresh(**tokens: int) -> FreshTokens:
    return FreshTokens(tuple(int(name[1:]) for name in tokens), torch.tensor(list(tokens.values())))


def compute(sequence: int, start: int, count: int = 1) -> Slice:
    return Slice(sequence, start, count, 0, (), True)


def test_a_decode_step_takes_its_tokens_from_the_device_in_its_own_order() -> None:
    residents, feed = knowing(s0=range(3), s1=range(5), s2=range(2))
    feed.push(fresh(s0=40, s1=41, s2=42))
    assert feed.inputs((compute(2, 2), compute(0, 3), compute(1, 5))).tolist() == [42, 40, 41]
    assert len(residents[0].token_ids) == 3, "the host knows none of them"


def test_a_prompt_beside_it_comes_from_the_host() -> None:
    _, feed = knowing(s0=range(3), s1=range(10, 15))
    feed.push(fresh(s0=40))
    assert feed.inputs((compute(1, 0, 3), compute(0, 3), compute(1, 3, 2))).tolist() == [10, 11, 12, 40, 13, 14]


def test_what_is_computed_again_ends_with_the_fresh_token() -> None:
    _, feed = knowing(s0=range(4))
    feed.push(fresh(s0=40))
    assert feed.inputs((compute(0, 0, 5),)).tolist() == [0, 1, 2, 3, 40]


def test_settled_tokens_are_in_the_records_and_the_next_ones_come_anew() -> None:
    residents, feed = knowing(s0=range(2), s1=range(2))
    feed.push(fresh(s0=40, s1=41))
    feed.settle(feed.pushed)
    assert residents[0].token_ids == [0, 1, 40]
    feed.push(fresh(s1=51))
    assert feed.inputs((compute(0, 2), compute(1, 3))).tolist() == [40, 51]


def test_a_sequence_has_a_fresh_token_for_each_step_in_flight() -> None:
    residents, feed = knowing(s0=range(2), s1=range(2))
    feed.push(fresh(s1=50, s0=40))
    first = feed.pushed
    feed.push(fresh(s0=41))
    assert feed.inputs((compute(0, 3), compute(1, 2))).tolist() == [41, 50]
    assert feed.inputs((compute(0, 0, 4),)).tolist() == [0, 1, 40, 41], "computed anew"
    feed.settle(first)
    assert (residents[0].token_ids, residents[1].token_ids) == ([0, 1, 40], [0, 1, 50])
    assert len(feed.held) == 1 and feed.inputs((compute(0, 3), compute(1, 2))).tolist() == [41, 50]
    feed.settle(feed.pushed)
    assert residents[0].token_ids == [0, 1, 40, 41] and not feed.held


def test_a_released_sequence_is_passed_over() -> None:
    residents, feed = knowing(s0=range(2), s1=range(2))
    feed.push(fresh(s0=40, s1=41))
    residents.follow(Plan(0, 1, released=(0,)))
    assert feed.inputs((compute(1, 2),)).tolist() == [41]
    feed.settle(feed.pushed)
    assert residents[1].token_ids == [0, 1, 41] and len(residents) == 1


def test_a_row_that_found_no_token_counts_as_one() -> None:
    residents, feed = knowing(s0=range(2))
    feed.push(fresh(s0=NO_TOKEN))
    assert feed.inputs((compute(0, 2),)).tolist() == [0]
    feed.settle(feed.pushed)
    assert residents[0].token_ids == [0, 1, 0]


def test_tokens_that_another_stage_samples_are_lacking_until_they_come() -> None:
    _, feed = knowing(s0=range(2), s1=range(2))
    wanted = (compute(0, 2), compute(1, 0, 2))
    assert feed.lacks(wanted) and not feed.lacks(wanted[1:])
    feed.push(fresh(s1=41))
    assert feed.lacks(wanted)
    feed.push(fresh(s0=40))
    assert not feed.lacks(wanted)
    assert feed.inputs(wanted).tolist() == [40, 0, 1]


@given(st.data())
def test_whatever_the_host_knows_the_ids_are_those_of_the_sequences(data: st.DataObject) -> None:
    """Sequences of any length, up to three of their last tokens on the device, pushed and settled in any batches."""
    lengths = data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=6))
    tokens = [[100 * number + at for at in range(length + 3)] for number, length in enumerate(lengths)]
    residents, feed = knowing(**{f"s{n}": range(100 * n, 100 * n + length) for n, length in enumerate(lengths)})
    pushes = [0]
    for _ in range(data.draw(st.integers(0, 3))):
        some = [number for number in data.draw(st.permutations(range(len(lengths)))) if data.draw(st.booleans())]
        feed.push(fresh(**{f"s{number}": tokens[number][lengths[number]] for number in some}))
        for number in some:
            lengths[number] += 1
        pushes.append(feed.pushed)
        feed.settle(data.draw(st.sampled_from([at for at in pushes if at >= len(pushes) - 1 - len(feed.held)])))
    slices, expected = [], []
    for number in data.draw(st.permutations(range(len(lengths)))):
        end = lengths[number]
        start = data.draw(st.integers(0, end - 1))
        slices.append(compute(number, start, end - start))
        expected += tokens[number][start:end]
    assert not feed.lacks(slices)
    assert feed.lacks((compute(0, 0, lengths[0] + 1),))
    assert feed.inputs(slices).tolist() == expected
    feed.settle(feed.pushed)
    assert [residents[number].token_ids for number in range(len(lengths))] == [
        known[:length] for known, length in zip(tokens, lengths, strict=True)
    ]
