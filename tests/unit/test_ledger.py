"""The router's own count of outstanding tokens, and the keys that let callers in."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayline.router.ledger import Ledger

requests = st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 50), st.lists(st.integers(0, 20), max_size=5)))


@given(requests)
def test_the_count_is_what_open_leases_have_left(work: list[tuple[str, int, list[int]]]) -> None:
    ledger = Ledger()
    left = {"a": 0, "b": 0}
    leases = []
    for group_id, tokens, steps in work:
        lease = ledger.lease(group_id, tokens)
        for step in steps:
            lease.done(step)
        remaining = max(0, tokens - sum(steps))
        left[group_id] += remaining
        leases.append((group_id, remaining, lease))
        assert {group_id: ledger.outstanding_tokens(group_id) for group_id in "ab"} == left
    for group_id, remaining, lease in leases:
        with lease:
            assert ledger.outstanding_tokens(group_id) == left[group_id]
        left[group_id] -= remaining
        assert ledger.outstanding_tokens(group_id) == left[group_id]
    assert left == {"a": 0, "b": 0}


def test_an_error_gives_the_lease_back() -> None:
    ledger = Ledger()
    with pytest.raises(ValueError, match="x"), ledger.lease("a", 10):
        raise ValueError("x")
    assert ledger.outstanding_tokens("a") == 0
