"""What a process asks of the cores between two looks: counted by Linux, and seen by the state of its threads."""

import os
import shutil
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayline.workers.thread_times import TICK_NS, ThreadTime, thread_times, wanted_s

counted = st.integers(0, 10**10)
looks = st.dictionaries(st.integers(1, 9), st.builds(ThreadTime, counted, st.booleans()))


@given(looks)
def test_threads_that_sleep_at_both_looks_want_nothing(look: dict[int, ThreadTime]) -> None:
    asleep = {thread: ThreadTime(time.wanted_ns, is_runnable=False) for thread, time in look.items()}
    assert wanted_s(asleep, asleep, 0.5) == 0.0
    assert wanted_s(look, asleep, 0.5) == 0.0
    assert wanted_s(asleep, look, 0.5) == 0.0, "it may have become ready just now"


@given(looks)
def test_a_thread_that_is_ready_at_both_looks_and_was_given_nothing_has_waited_all_the_time(
    look: dict[int, ThreadTime],
) -> None:
    assert wanted_s(look, look, 0.5) == 0.5 * sum(time.is_runnable for time in look.values())


@given(looks, st.lists(st.integers(1, 10**9), min_size=9, max_size=9), st.booleans())
def test_what_is_counted_is_what_was_wanted(look: dict[int, ThreadTime], more: list[int], is_runnable: bool) -> None:
    later = {t: ThreadTime(time.wanted_ns + more[t - 1], is_runnable) for t, time in look.items()}
    assert wanted_s(look, later, 0.5) == pytest.approx(sum(more[t - 1] for t in look) * 1e-9)


def test_threads_that_are_new_count_from_their_beginning_and_those_that_ended_no_more() -> None:
    assert wanted_s({}, {1: ThreadTime(3 * 10**8, False)}, 0.5) == pytest.approx(0.3)
    assert wanted_s({1: ThreadTime(3 * 10**8, True)}, {}, 0.5) == 0.0


def test_each_thread_of_a_process_is_seen() -> None:
    ready, over = threading.Event(), threading.Event()

    def sleep() -> None:
        ready.set()
        over.wait()

    sleeper = threading.Thread(target=sleep)
    sleeper.start()
    ready.wait()
    try:
        times = thread_times(os.getpid())
        assert sleeper.native_id is not None
        assert times[threading.get_native_id()].is_runnable, "it is the one that looks"
        assert times[sleeper.native_id].wanted_ns >= 0
    finally:
        over.set()
        sleeper.join()
    assert sleeper.native_id not in thread_times(os.getpid())


def test_a_thread_that_computes_is_seen_to() -> None:
    before, began = thread_times(os.getpid()), time.thread_time()
    while time.thread_time() - began < 0.05:
        pass
    assert wanted_s(before, thread_times(os.getpid()), 0.05) >= 0.05


def test_a_process_that_has_ended_has_no_threads() -> None:
    child = os.fork()
    if not child:
        os._exit(0)
    os.waitpid(child, 0)
    assert thread_times(child) == {}


@pytest.mark.parametrize("name", ["python", "a (b) R", ") S 1 ("])
def test_a_name_cannot_pass_for_a_state_and_without_sched_stats_used_time_is_left(tmp_path: Path, name: str) -> None:
    task = Path(f"/proc/self/task/{threading.get_native_id()}/stat").read_text()
    fields = task.rpartition(")")[2].split()
    fields[0], fields[11], fields[12] = "S", "7", "5"
    (tmp_path / "stat").write_text(f"12 ({name}) {' '.join(fields)}")
    assert ThreadTime.read(tmp_path) == ThreadTime(12 * TICK_NS, is_runnable=False)
    (tmp_path / "schedstat").write_text("100 20 3\n")
    assert ThreadTime.read(tmp_path) == ThreadTime(120, is_runnable=False)
    shutil.rmtree(tmp_path)
    with pytest.raises(OSError, match="stat"):
        ThreadTime.read(tmp_path)
