"""Who moves when, and where to: no herd, no ping-pong, never to a fuller group."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from rayline.router.moves import (
    LEAST_LEFT_TOKENS,
    MOST_MOVING,
    MOVING_TOKENS,
    MUCH_FULLER,
    NEAR_TOKENS,
    SETTLED_S,
    Move,
    Place,
    Standing,
    is_near,
    leave,
    rebalance,
)

SAME, OTHER = ("cpu", "a"), ("gpu", "a")
ROOM = 10**6


def place(group_id: str, ahead: int = 0, **changes: object) -> Place:
    plain = Place(group_id, SAME, True, False, ahead, ahead, 0, ROOM)
    return replace(plain, **changes)  # type: ignore[arg-type]


def leaving(group_id: str, ahead: int = 0, **changes: object) -> Place:
    return place(group_id, ahead, is_open=False, is_leaving=True, **changes)


def stream(lane: int, group_id: str, left: int = 1000, held: int = 100, **changes: object) -> Standing:
    plain = Standing(lane, group_id, held, left, settled_s=60.0)
    return replace(plain, **changes)  # type: ignore[arg-type]


sizes = st.integers(0, 4000)
places = st.builds(
    Place,
    group_id=st.just(""),
    bits=st.sampled_from([SAME, SAME, OTHER, None]),
    is_open=st.booleans(),
    is_leaving=st.booleans(),
    tokens_ahead=sizes,
    own_tokens=sizes,
    waiting=st.integers(0, 2),
    room_tokens=sizes,
)
systems = st.lists(places, min_size=1, max_size=5).map(
    lambda found: [
        replace(
            p, group_id=f"g{i}", is_open=p.is_open and not p.is_leaving, own_tokens=min(p.own_tokens, p.tokens_ahead)
        )
        for i, p in enumerate(found)
    ]
)
standings = st.lists(
    st.builds(
        Standing,
        lane=st.just(0),
        group_id=st.sampled_from([f"g{i}" for i in range(6)]),
        held_tokens=st.integers(1, 3000),
        left_tokens=st.integers(1, 2000),
        settled_s=st.floats(0, 20),
        is_moving=st.sampled_from([False, False, False, True]),
        is_search=st.booleans(),
    ),
    max_size=30,
).map(lambda found: [replace(s, lane=i) for i, s in enumerate(found)])


# ---- leaving


@given(systems, standings)
def test_streams_leave_only_groups_that_end_and_only_for_open_ones(system: list[Place], all_: list[Standing]) -> None:
    by_id = {p.group_id: p for p in system}
    moves = leave(system, all_)
    assert len({move.lane for move in moves}) == len(moves)
    for move in moves:
        standing, target = all_[move.lane], by_id[move.target]
        assert by_id[standing.group_id].is_leaving and not standing.is_moving
        assert target.is_open and not target.is_leaving and target.group_id != standing.group_id


@given(systems, standings)
def test_there_is_never_a_crowd_under_way(system: list[Place], all_: list[Standing]) -> None:
    moves = leave(system, all_)
    before = [s for s in all_ if s.is_moving]
    if not moves:
        return
    tokens = sum(s.held_tokens for s in before) + sum(all_[move.lane].held_tokens for move in moves)
    assert len(before) + len(moves) <= MOST_MOVING
    assert tokens <= MOVING_TOKENS or len(before) + len(moves) == 1, "a stream longer than the bound goes alone"


@given(systems, standings)
def test_a_stream_that_must_be_interrupted_goes_only_where_it_is_computed_at_once(
    system: list[Place], all_: list[Standing]
) -> None:
    by_id = {p.group_id: p for p in system}
    for move in leave(system, all_):
        here, target = by_id[all_[move.lane].group_id], by_id[move.target]
        if here.bits is None or here.bits != target.bits:
            assert target.waiting == 0 and target.room_tokens > 0
            assert not any(p.is_open and p.bits == here.bits is not None for p in system), "its bits come first"


def test_streams_of_a_group_that_ends_spread_over_the_others() -> None:
    system = [leaving("a"), place("b"), place("c"), place("d")]
    moves = leave(system, [stream(n, "a") for n in range(6)])
    assert Counter(move.target for move in moves) == {"b": 2, "c": 2, "d": 2}


def test_streams_that_will_soon_end_by_themselves_go_last() -> None:
    lefts = [5, 500, 50, 900, 9, 700, 70, 300, 3, 100, 1]
    moves = leave([leaving("a"), place("b")], [stream(n, "a", left) for n, left in enumerate(lefts)])
    gone = {lefts[move.lane] for move in moves}
    assert len(moves) == MOST_MOVING and min(gone) > max(set(lefts) - gone)


def test_whoever_has_nowhere_to_go_stays() -> None:
    assert leave([leaving("a"), leaving("b")], [stream(0, "a")]) == []
    assert leave([leaving("a"), place("b", waiting=1, bits=OTHER)], [stream(0, "a")]) == []
    assert leave([leaving("a"), place("b", waiting=1)], [stream(0, "a")]) == [Move(0, "b")]


@given(st.lists(st.tuples(st.integers(1, 3000), st.integers(1, 2000)), max_size=60), st.integers(1, 4))
def test_a_leaving_group_is_empty_after_a_bounded_number_of_rounds(streams: list[tuple[int, int]], others: int) -> None:
    left = [stream(n, "a", left, held) for n, (held, left) in enumerate(streams)]
    system = [leaving("a"), *(place(f"b{n}") for n in range(others))]
    rounds = 0
    while left:
        gone = {move.lane for move in leave(system, left)}
        assert gone
        left = [s for s in left if s.lane not in gone]
        rounds += 1
    assert rounds <= len(streams)


# ---- balance


@given(systems, standings)
def test_balance_never_moves_a_stream_to_a_fuller_group(system: list[Place], all_: list[Standing]) -> None:
    move = rebalance(system, all_)
    if move is None:
        return
    by_id = {p.group_id: p for p in system}
    standing = all_[move.lane]
    here, there = by_id[standing.group_id], by_id[move.target]
    assert here.tokens_ahead >= MUCH_FULLER * there.tokens_ahead
    assert here.tokens_ahead - there.tokens_ahead >= standing.left_tokens + standing.held_tokens / 8
    assert there.is_open and not there.is_leaving and there.bits == here.bits is not None
    assert there.waiting == 0 and there.room_tokens >= standing.held_tokens + standing.left_tokens
    assert standing.settled_s >= SETTLED_S and standing.left_tokens >= LEAST_LEFT_TOKENS and not standing.is_search
    assert not any(s.is_moving for s in all_)


def loads(groups: Sequence[str], all_: Sequence[Standing]) -> list[Place]:
    return [place(g, sum(s.left_tokens for s in all_ if s.group_id == g)) for g in groups]


def squares(system: Sequence[Place]) -> int:
    return sum(p.tokens_ahead**2 for p in system)


crowds = st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 2000), st.integers(1, 3000)), max_size=25)


@given(crowds)
def test_balance_comes_to_rest_and_no_stream_goes_to_and_fro(crowd: list[tuple[str, int, int]]) -> None:
    """Nothing else changes meanwhile: each move makes the groups more even, so there can be no circle."""
    all_ = [stream(n, group, left, held) for n, (group, left, held) in enumerate(crowd)]
    before, seen = squares(loads("abc", all_)), {tuple(s.group_id for s in all_)}
    for _ in range(len(all_) ** 2 + 1):
        move = rebalance(loads("abc", all_), all_)
        if move is None:
            return
        all_[move.lane] = replace(all_[move.lane], group_id=move.target)
        where = tuple(s.group_id for s in all_)
        assert where not in seen
        seen.add(where)
        after = squares(loads("abc", all_))
        assert after < before
        before = after
    raise AssertionError("it never comes to rest")


@given(crowds, st.integers(2, 4))
def test_routers_that_act_on_the_same_reports_do_not_turn_the_difference_around(
    crowd: list[tuple[str, int, int]], routers: int
) -> None:
    """Each sees all of the load and moves one stream of its own at the same moment."""
    all_ = [stream(n, group, left, held) for n, (group, left, held) in enumerate(crowd)]
    system = loads("ab", [s for s in all_ if s.group_id != "c"])
    moved = 0.0
    for router in range(routers):
        own = [s for s in all_ if s.lane % routers == router and s.group_id != "c"]
        mine = [replace(p, own_tokens=sum(s.left_tokens for s in own if s.group_id == p.group_id)) for p in system]
        if (move := rebalance(mine, own)) is not None:
            standing = all_[move.lane]
            moved += (standing.left_tokens + standing.held_tokens / 8) * (1 if standing.group_id == "a" else -1)
    gap = system[0].tokens_ahead - system[1].tokens_ahead
    assert abs(moved) * 1.5 <= abs(gap) and moved * gap >= 0


def test_a_long_stream_leaves_the_group_that_is_much_fuller() -> None:
    all_ = [stream(n, "a", 900) for n in range(4)]
    move = rebalance(loads("ab", all_), all_)
    assert move is not None and move.target == "b"
    assert rebalance(loads("ab", all_), [replace(s, settled_s=SETTLED_S - 1) for s in all_]) is None
    assert rebalance(loads("ab", all_), [replace(s, is_search=True) for s in all_]) is None
    assert rebalance(loads("ab", all_), [*all_, stream(9, "b", is_moving=True)]) is None


def test_the_only_stream_of_a_group_stays() -> None:
    all_ = [stream(0, "a", 2000)]
    assert rebalance(loads("ab", all_), all_) is None


# ---- near


@given(st.integers(0, 10**5))
def test_coming_near_takes_few_rounds_whatever_the_distance(behind: int) -> None:
    before, rounds = None, 0
    while not is_near(behind, before):
        before, behind, rounds = behind, behind // 2, rounds + 1
    assert rounds <= 17


def test_a_group_that_gains_nothing_by_another_round_takes_over() -> None:
    assert is_near(NEAR_TOKENS, None) and not is_near(NEAR_TOKENS + 1, None)
    assert is_near(40, 41) and is_near(40, 40) and not is_near(20, 41)
