"""The size of the KV cache: never more than is free, never less than one context, the poorest rank decides."""

from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from rayline.cluster.kv_memory import KvPlan, KvWish, RankMemory, plan_kv
from rayline.protos.errors import NotEnoughMemory

WISH = KvWish(
    kv_bytes=0, memory_fraction=0.5, block_tokens=16, max_model_len=0, model_limit=1024, max_running=8, groups=1
)
RANK = RankMemory(host="a", free_bytes=1_000_000, block_bytes=1000)


def test_the_share_of_the_free_memory_is_cut_into_blocks() -> None:
    plan = plan_kv([RANK], replace(WISH, max_running=64))
    assert plan == KvPlan(blocks=500, tokens=8000, bytes=500_000, max_model_len=1024)


def test_no_more_blocks_are_made_than_the_running_sequences_can_use() -> None:
    assert plan_kv([RANK], replace(WISH, max_running=2)).blocks == 2 * 1024 // 16


def test_a_shorter_context_needs_fewer_blocks() -> None:
    assert plan_kv([RANK], replace(WISH, max_running=2, max_model_len=100)).blocks == 2 * 7


def test_given_bytes_are_used_whatever_the_fraction_says() -> None:
    assert plan_kv([RANK], replace(WISH, kv_bytes=123_456)).blocks == 123


def test_ranks_on_one_host_share_its_memory() -> None:
    plan = plan_kv([RANK, RANK], replace(WISH, max_running=64))
    assert plan.blocks == 250
    assert plan.bytes == 500_000


def test_ranks_on_other_hosts_do_not() -> None:
    assert plan_kv([RANK, replace(RANK, host="b")], replace(WISH, max_running=64)).blocks == 500


def test_groups_on_a_host_share_its_memory() -> None:
    assert plan_kv([RANK], replace(WISH, max_running=64, groups=5)).blocks == 100


def test_the_rank_with_the_least_room_decides() -> None:
    poor = RankMemory("b", 100_000, 1000)
    assert plan_kv([RANK, poor], replace(WISH, max_running=64)).blocks == 50


def test_the_largest_block_decides_what_given_bytes_hold() -> None:
    assert plan_kv([RANK, RankMemory("b", 1_000_000, 2000)], replace(WISH, kv_bytes=100_000)).blocks == 50


def test_a_model_whose_context_does_not_fit_is_served_with_a_shorter_one() -> None:
    assert plan_kv([RANK], replace(WISH, kv_bytes=10_000)).max_model_len == 160


def test_more_bytes_than_are_free_are_refused_with_the_largest_allowed() -> None:
    with pytest.raises(NotEnoughMemory, match=r"kv_bytes = 500001 .* at most 500000 bytes are free") as refused:
        plan_kv([RANK, RANK], replace(WISH, kv_bytes=500_001))
    assert refused.value.field == "kv_bytes"
    assert plan_kv([RANK, RANK], replace(WISH, kv_bytes=500_000)).blocks == 500


def test_too_few_bytes_for_one_context_are_refused_with_the_least_allowed() -> None:
    wish = replace(WISH, kv_bytes=5_999, max_model_len=96)
    with pytest.raises(NotEnoughMemory, match=r"room for 80 tokens, max_model_len = 96 needs .* at least 6000 "):
        plan_kv([RANK], wish)
    assert plan_kv([RANK], replace(wish, kv_bytes=6_000)).max_model_len == 96


def test_no_room_at_all_is_refused_without_naming_a_context_nobody_asked_for() -> None:
    with pytest.raises(NotEnoughMemory, match=r"room for 0 tokens, the shortest request needs .* at least 1000 "):
        plan_kv([RANK], replace(WISH, kv_bytes=999))


def test_a_context_holds_at_least_one_token_of_prompt_and_one_of_output() -> None:
    with pytest.raises(NotEnoughMemory, match="at least 2000 "):
        plan_kv([RANK], replace(WISH, block_tokens=1, kv_bytes=1000))


@given(
    memories=st.lists(
        st.builds(RankMemory, st.sampled_from("abc"), st.integers(0, 10**7), st.integers(1, 10**4)), min_size=1
    ),
    wish=st.builds(
        KvWish,
        kv_bytes=st.just(0) | st.integers(1, 10**6),
        memory_fraction=st.floats(0.01, 0.95),
        block_tokens=st.integers(1, 64),
        max_model_len=st.just(0) | st.integers(2, 2048),
        model_limit=st.just(2048),
        max_running=st.integers(1, 64),
        groups=st.integers(1, 4),
    ),
)
def test_a_plan_fits_every_host_and_holds_one_full_context(memories: list[RankMemory], wish: KvWish) -> None:
    try:
        plan = plan_kv(memories, wish)
    except NotEnoughMemory:
        assume(False)
    for rank in memories:
        neighbours = sum(other.host == rank.host for other in memories)
        assert plan.blocks * rank.block_bytes * neighbours * wish.groups <= rank.free_bytes
        assert not wish.kv_bytes or plan.blocks * rank.block_bytes <= wish.kv_bytes
    assert plan.tokens == plan.blocks * wish.block_tokens
    assert 2 <= plan.max_model_len <= min(plan.tokens, wish.max_model_len or wish.model_limit)
    assert not wish.max_model_len or plan.max_model_len == wish.max_model_len
