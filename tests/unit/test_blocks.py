"""The block pool: counts, sharing, eviction order, and the invariant under any sequence of operations."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayline.protos.blocks import BlockHash, block_hashes
from rayline.workers.scheduling.blocks import BlockPool


def name(text: str) -> BlockHash:
    return BlockHash(text.encode())


def test_a_new_pool_is_all_available_and_nothing_is_cached() -> None:
    pool = BlockPool(4)
    assert (pool.available, pool.cached) == (4, 0)
    pool.check([])


def test_allocated_blocks_are_distinct_and_no_longer_available() -> None:
    pool = BlockPool(4)
    blocks = pool.allocate(3)
    assert len(set(blocks)) == 3
    assert pool.available == 1
    pool.check([blocks])


def test_a_released_block_without_a_name_is_free_again() -> None:
    pool = BlockPool(2)
    blocks = pool.allocate(2)
    pool.release(blocks)
    assert (pool.available, pool.cached) == (2, 0)


def test_a_released_block_with_a_name_stays_findable() -> None:
    pool = BlockPool(2)
    (block,) = pool.allocate(1)
    pool.publish(block, name("a"))
    pool.release([block])
    assert pool.cached == 1
    assert pool.match([name("a")]) == [block]
    pool.share([block])
    assert pool.cached == 0
    pool.check([[block]])


def test_a_match_ends_at_the_first_unknown_block() -> None:
    pool = BlockPool(3)
    first, second = pool.allocate(2)
    pool.publish(first, name("a"))
    pool.publish(second, name("c"))
    assert pool.match([name("a"), name("b"), name("c")]) == [first]


def test_a_shared_block_is_held_until_its_last_holder_lets_go() -> None:
    pool = BlockPool(1)
    (block,) = pool.allocate(1)
    pool.publish(block, name("a"))
    pool.share([block])
    pool.release([block])
    assert pool.available == 0
    pool.release([block])
    assert pool.available == 1


def test_free_blocks_are_taken_before_cached_ones() -> None:
    pool = BlockPool(2)
    (cached,) = pool.allocate(1)
    pool.publish(cached, name("a"))
    pool.release([cached])
    assert pool.allocate(1) != [cached]
    assert pool.match([name("a")]) == [cached]


def test_the_end_of_a_chain_is_evicted_before_its_head() -> None:
    pool = BlockPool(2)
    head, tail = pool.allocate(2)
    pool.publish(head, name("head"))
    pool.publish(tail, name("tail"))
    pool.release([head, tail])
    assert pool.allocate(1) == [tail]
    assert pool.match([name("head")]) == [head]
    assert pool.match([name("tail")]) == []


def test_of_two_blocks_with_equal_content_the_first_keeps_the_name() -> None:
    pool = BlockPool(2)
    first, second = pool.allocate(2)
    pool.publish(first, name("a"))
    pool.publish(second, name("a"))
    assert pool.match([name("a")]) == [first]
    pool.release([first, second])
    assert pool.cached == 1


def test_idle_counts_the_blocks_whose_sharing_makes_room_scarcer() -> None:
    pool = BlockPool(2)
    held, cached = pool.allocate(2)
    pool.publish(cached, name("a"))
    pool.release([cached])
    assert pool.idle([held, cached]) == 1


def test_the_invariant_notices_a_leaked_block() -> None:
    pool = BlockPool(2)
    pool.allocate(1)
    with pytest.raises(AssertionError, match="reference counts"):
        pool.check([])


@given(st.lists(st.integers(0, 2**32 - 1), max_size=64), st.integers(1, 9))
def test_equal_prefixes_and_only_they_have_equal_hash_chains(tokens: list[int], size: int) -> None:
    whole = list(block_hashes(tokens, size))
    assert len(whole) == len(tokens) // size
    for length in range(len(tokens)):
        assert list(block_hashes(tokens[:length], size)) == whole[: length // size]
    if whole:
        changed = [tokens[0] ^ 1, *tokens[1:]]
        assert not set(block_hashes(changed, size)) & set(whole)


@given(st.data())
def test_the_invariant_holds_after_every_operation(data: st.DataObject) -> None:
    pool = BlockPool(data.draw(st.integers(1, 8)))
    held: list[list[int]] = []
    for _ in range(data.draw(st.integers(0, 40))):
        action = data.draw(st.sampled_from(["allocate", "publish", "share", "release"]))
        if action == "allocate" and pool.available:
            held.append(pool.allocate(data.draw(st.integers(1, pool.available))))
        elif action == "publish" and held:
            block = data.draw(st.sampled_from(data.draw(st.sampled_from(held))))
            pool.publish(block, name(data.draw(st.sampled_from("abcd"))))
        elif action == "share":
            matched = pool.match([name(letter) for letter in data.draw(st.text("abcd", max_size=3))])
            pool.share(matched)
            held += [matched] if matched else []
        elif action == "release" and held:
            pool.release(held.pop(data.draw(st.integers(0, len(held) - 1))))
        pool.check(held)


def test_chains_of_different_salts_have_no_hash_in_common() -> None:
    tokens = list(range(12))
    chains = [list(block_hashes(tokens, 4, salt)) for salt in ("", "a", "b", "salt:", "a")]
    assert chains[1] == chains[4]
    assert len({name for chain in chains for name in chain}) == 4 * 3
    assert chains[0] == list(block_hashes(tokens, 4))


def test_a_block_with_two_holders_is_shared_until_one_lets_go() -> None:
    pool = BlockPool(2)
    (block,) = pool.allocate(1)
    assert not pool.is_shared(block)
    pool.share([block])
    assert pool.is_shared(block)
    pool.release([block])
    assert not pool.is_shared(block)
