"""Who starts next: priorities that age, tenants, arrival."""

from itertools import count

from hypothesis import given
from hypothesis import strategies as st

from rayline.protos.types import EngineRequest, SamplingParams
from rayline.workers.scheduling.queue import WaitingQueue, effective_priority
from rayline.workers.scheduling.sequence import Sequence
from rayline.workers.scheduling.tenants import TenantCounters

NUMBERS = count()


def sequence(priority: int = 0, arrived_s: float = 0.0, tenant: str = "", width: int = 0, name: str = "") -> Sequence:
    number = next(NUMBERS)
    params = SamplingParams(beam_width=width, seed=0)
    request = EngineRequest(name or str(number), (1,), params, priority=priority, tenant=tenant)
    return Sequence(number, request, 8, arrived_s, number)


def queue_of(*sequences: Sequence, aging_s: float = 0.0, tenants: TenantCounters | None = None) -> WaitingQueue:
    queue = WaitingQueue(tenants or TenantCounters(), aging_s)
    for each in sequences:
        queue.push(each)
    return queue


@given(st.integers(-100, 100), st.floats(0, 1e6), st.floats(0, 1e6), st.floats(0.1, 100))
def test_a_priority_improves_by_one_for_each_period_of_waiting(
    priority: int, arrived_s: float, waited_s: float, aging_s: float
) -> None:
    now_s = arrived_s + waited_s
    aged = effective_priority(priority, arrived_s, now_s, aging_s)
    assert aged <= priority
    assert abs((priority - aged) - waited_s / aging_s) <= 1.001
    assert effective_priority(priority, arrived_s, now_s, 0.0) == priority
    assert effective_priority(priority, arrived_s, now_s + aging_s, aging_s) < aged + 1


def test_the_clock_of_a_request_never_runs_backwards() -> None:
    assert effective_priority(5, arrived_s=10.0, now_s=9.0, aging_s=1.0) == 5


def test_lower_numbers_start_first_then_earlier_arrivals() -> None:
    late, early, urgent = sequence(arrived_s=2.0), sequence(arrived_s=1.0), sequence(-1, arrived_s=9.0)
    queue = queue_of(late, early, urgent)
    order = []
    while (first := queue.first(10.0)) is not None:
        queue.remove(first)
        order.append(first)
    assert order == [urgent, early, late]
    assert len(queue) == 0


def test_without_aging_an_important_request_is_always_first() -> None:
    old, new = sequence(100, arrived_s=0.0), sequence(99, arrived_s=1e9)
    assert queue_of(old, new).first(1e9) is new


def test_with_aging_a_request_of_the_last_class_passes_new_ones_of_the_first() -> None:
    old, new = sequence(100, arrived_s=0.0), sequence(-100, arrived_s=1001.0)
    assert queue_of(old, new, aging_s=5.0).first(999.0) is new
    assert queue_of(old, new, aging_s=5.0).first(1001.0) is old


def test_age_passes_no_class_that_was_given_to_nobody() -> None:
    """Otherwise the older queue of one tenant would be in a class of its own, before all others."""
    tenants = TenantCounters()
    tenants.charge("heavy", 100.0)
    old, new = sequence(0, 0.0, "heavy"), sequence(0, 999.0, "light")
    queue = queue_of(new, old, aging_s=1.0, tenants=tenants)
    tenants.charge("heavy", 1.0)
    assert queue.first(1000.0) is new


def test_within_a_class_the_tenant_with_the_smallest_counter_is_next() -> None:
    tenants = TenantCounters({"b": 2.0})
    a, b = sequence(arrived_s=0.0, tenant="a"), sequence(arrived_s=1.0, tenant="b")
    queue = queue_of(a, b, tenants=tenants)
    assert queue.first(2.0) is a
    tenants.charge("a", 1.0)
    tenants.charge("b", 1.0)
    assert queue.first(2.0) is b


def test_a_beam_of_a_search_that_runs_comes_before_everybody() -> None:
    """The others of its request hold blocks and wait for it."""
    beam, urgent = sequence(50, arrived_s=5.0, width=2, name="search"), sequence(-100)
    queue = queue_of(beam, urgent)
    assert queue.first(9.0, {"other"}) is urgent
    assert queue.first(9.0, {"search"}) is beam


@given(
    st.lists(st.tuples(st.integers(-3, 3), st.floats(0, 50), st.sampled_from("abc")), min_size=1, max_size=20),
    st.randoms(use_true_random=False),
)
def test_what_is_pushed_comes_out_once(entries: list[tuple[int, float, str]], source: object) -> None:
    sequences = [sequence(*entry) for entry in entries]
    queue = queue_of(*sequences, aging_s=2.0)
    gone = sequences[::3]
    for each in gone:
        queue.remove(each)
    out = []
    while (first := queue.first(60.0)) is not None:
        queue.remove(first)
        out.append(first)
    assert sorted(s.number for s in out) == sorted(s.number for s in sequences if s not in gone)


@given(st.integers(-100, 100), st.lists(st.integers(-100, 100), max_size=30))
def test_nobody_waits_longer_than_its_class_is_below_the_best_while_new_requests_keep_coming(
    priority: int, others: list[int]
) -> None:
    """One request leaves each second and a new one comes: after (priority + 100) * aging_s seconds none of its own
    tenant that came later is served before it."""
    aging_s = 0.25
    old = sequence(priority, arrived_s=0.0)
    queue, now_s, after = queue_of(old, aging_s=aging_s), 0.0, 0
    newcomers = [*others, *[-100] * 70]
    for asked in newcomers:
        now_s += 1.0
        queue.push(sequence(asked, arrived_s=now_s))
        first = queue.first(now_s)
        assert first is not None
        queue.remove(first)
        if first is old:
            break
        after += now_s > (priority + 100) * aging_s
    assert first is old and after == 0
