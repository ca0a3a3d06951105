"""What a client does next, as a pure function of what it has read and what became of its calls."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted_router import events_of

from rayline.protos import inference_pb2 as pb
from rayline.protos.addresses import AVOID_S, Addresses, addresses_of
from rayline.protos.errors import (
    ConfigError,
    DeadlineExceeded,
    InternalError,
    InvalidRequest,
    Overloaded,
    RaylineError,
    StreamNotFound,
    TakenOver,
    Unavailable,
)
from rayline.protos.resuming import LONGEST_PAUSE_S, MAX_SEED, Patience, ResumingStream, signed

GONE = Unavailable("the connection broke")
FORGOTTEN = StreamNotFound("nobody knows it")
REQUEST = pb.GenerateRequest(text="a", request_id="r", tenant="t", params=pb.SamplingParams(seed=1))


def reading(**patience: float) -> ResumingStream:
    return ResumingStream(REQUEST, Patience(**patience), 0.0)


def position(call: Any) -> tuple[int, list[int]]:
    assert isinstance(call, pb.ResumeRequest) and (call.request_id, call.tenant) == ("r", "t")
    return call.next_index, list(call.seen)


def test_a_request_is_signed_with_an_id_and_a_seed_once() -> None:
    first, second = signed(pb.GenerateRequest(text="a")), signed(pb.GenerateRequest(text="a"))
    assert first.request_id and first.request_id != second.request_id
    assert 0 <= first.params.seed <= MAX_SEED and first.params.seed != second.params.seed
    assert signed(REQUEST) == REQUEST and signed(REQUEST) is not REQUEST
    assert signed(pb.ChatRequest(request_id="c")).request_id == "c"


def test_the_position_counts_events_of_the_stream_and_of_each_choice() -> None:
    request = pb.GenerateRequest(request_id="r", tenant="t", params=pb.SamplingParams(n=3, seed=1))
    stream = ResumingStream(request, Patience(), 0.0)
    events = events_of([0, 2, 0, 1])
    assert stream.call() is request
    seen = [[0, 0, 0], [0, 0, 0], [1, 0, 0], [1, 0, 1], [2, 0, 1], [2, 1, 1], [3, 1, 1]]
    for event, expected in zip(events, seen, strict=False):
        assert stream.take(event)
        assert position(stream.call()) == (event.index + 1, expected)
    for event in events[7:]:
        assert not stream.ended and stream.take(event)
    assert stream.ended


@given(st.lists(st.integers(0, 3), max_size=12), st.lists(st.integers(0, 30), max_size=6), st.randoms())
def test_however_often_it_is_lost_every_event_is_shown_once(choices: list[int], cuts: list[int], random: Any) -> None:
    """By resuming, and by running again where the choices come in another order."""
    events, shown, stream = events_of(choices), [], reading()
    while not stream.ended:
        match call := stream.call():
            case pb.ResumeRequest() as resume:
                coming = [event for event in events if event.index >= resume.next_index]
            case _:
                random.shuffle(choices)
                events = _numbered_after(shown, events_of(choices)) if shown else events
                coming = events if not shown else events_of(choices)
        cut = cuts.pop() if cuts else len(coming)
        for event in coming[:cut]:
            if stream.take(event):
                shown.append(event)
        if not stream.ended:
            is_forgotten = isinstance(call, pb.ResumeRequest) and not cut and random.random() < 0.5
            stream.lost(FORGOTTEN if is_forgotten else GONE, 1, 0.0, 0.0)
    assert [event.index for event in shown] == list(range(len(events)))
    assert shown[-1].HasField("finished")
    for choice in set(choices):
        said = [event.delta.text for event in shown if event.HasField("delta") and event.delta.choice == choice]
        assert said == [str(number) for number in range(choices.count(choice))]


def _numbered_after(shown: list[pb.StreamResponse], events: list[pb.StreamResponse]) -> list[pb.StreamResponse]:
    """What a server that runs the stream again would resume with: what was shown, then the rest in its new order."""
    seen = [_name(event) for event in shown]
    rest = [event for event in events if _name(event) not in seen]
    for index, event in enumerate(rest, len(shown)):
        event.index = index
    return [*shown, *rest]


def _name(event: pb.StreamResponse) -> tuple[str | None, int, str]:
    return event.WhichOneof("event"), event.delta.choice + event.choice_ended.choice, event.delta.text


def test_an_event_that_was_shown_is_not_shown_again_and_none_may_be_missing() -> None:
    stream, events = reading(), events_of([0, 0, 0])
    assert stream.take(events[0]) and stream.take(events[1]) and not stream.take(events[1])
    with pytest.raises(InternalError, match="event 2 of the stream is missing: 3 came"):
        stream.take(events[3])


def test_a_stream_that_nobody_remembers_runs_again_if_its_bits_are_the_same() -> None:
    stream, events = reading(), events_of([0, 0])
    for event in events[:3]:
        stream.take(event)
    stream.lost(FORGOTTEN, 1, 0.0, 0.0)
    assert stream.call() is REQUEST
    assert [stream.take(event) for event in events[:4]] == [False, False, False, True]
    other = reading()
    other.take(events[0])
    other.lost(FORGOTTEN, 1, 0.0, 0.0)
    with pytest.raises(Unavailable, match="computes other bits"):
        other.take(events_of([0], numerics="another")[0])
    inexact = reading()
    inexact.take(pb.StreamResponse(started=pb.Started(exact=False)))
    with pytest.raises(StreamNotFound):
        inexact.lost(FORGOTTEN, 1, 0.0, 0.0)


def test_each_router_is_asked_at_once_then_pauses_grow_to_a_limit() -> None:
    stream = reading(connect_s=1000.0)
    pauses = [stream.lost(GONE, 2, 0.0, 1.0) for _ in range(12)]
    assert pauses[:2] == [0.0, 0.0] and pauses[2:6] == [0.1, 0.2, 0.4, 0.8] and pauses[-1] == LONGEST_PAUSE_S
    assert stream.lost(GONE, 2, 0.0, 0.0) == LONGEST_PAUSE_S / 2, "clients do not come back at one instant"
    stream.take(events_of([])[0])
    assert stream.lost(GONE, 2, 0.0, 0.0) == 0.0, "what went on begins anew"


def test_patience_is_counted_from_the_loss_and_shorter_before_the_first_event() -> None:
    stream = reading(connect_s=5.0, resume_s=60.0)
    for now_s in (100.0, 100.0, 104.9):
        stream.lost(GONE, 1, now_s, 0.0)
    with pytest.raises(Unavailable):
        stream.lost(GONE, 1, 105.0, 0.0)
    begun = reading(connect_s=5.0, resume_s=60.0)
    begun.take(events_of([])[0])
    for now_s in (500.0, 559.9):
        begun.lost(GONE, 1, now_s, 0.0)
    with pytest.raises(Unavailable):
        begun.lost(GONE, 1, 560.0, 0.0)


def test_without_patience_every_router_is_still_asked_once() -> None:
    stream = reading(connect_s=0.0)
    assert [stream.lost(GONE, 3, 0.0, 0.0) for _ in range(2)] == [0.0, 0.0]
    with pytest.raises(Unavailable):
        stream.lost(GONE, 3, 0.0, 0.0)


@pytest.mark.parametrize("error", [InvalidRequest("no"), TakenOver("read elsewhere"), InternalError("burnt")])
@pytest.mark.parametrize("events", [0, 2])
def test_what_another_call_would_not_change_is_raised(error: RaylineError, events: int) -> None:
    stream = reading()
    for event in events_of([0])[:events]:
        stream.take(event)
    with pytest.raises(type(error)):
        stream.lost(error, 2, 0.0, 0.0)


def test_a_full_server_refuses_new_requests_and_is_waited_for_by_streams_it_accepted() -> None:
    stream = reading()
    with pytest.raises(Overloaded):
        stream.lost(Overloaded("full", retry_after_s=0.5), 1, 0.0, 0.0)
    stream.take(events_of([0])[0])
    stream.lost(GONE, 1, 0.0, 0.0)
    assert stream.lost(Overloaded("full", retry_after_s=0.5), 1, 0.0, 1.0) == 0.5


def test_the_time_limit_is_over_all_calls() -> None:
    request = pb.GenerateRequest(text="a", request_id="r", timeout_s=2.0, params=pb.SamplingParams(seed=1))
    stream = ResumingStream(request, Patience(), 10.0)
    assert stream.left_s(10.5) == 1.5 and reading().left_s(1e9) is None
    with pytest.raises(DeadlineExceeded, match="timeout_s = 2"):
        stream.left_s(12.0)


def test_routers_take_turns_and_one_that_failed_is_left_out_for_a_while() -> None:
    routers = Addresses(["a:1", "b:1", "c:1", "a:1"])
    assert len(routers) == 3
    assert [routers.choose(0.0) for _ in range(4)] == ["a:1", "b:1", "c:1", "a:1"]
    routers.failed("b:1", 1.0)
    assert {routers.choose(2.0) for _ in range(6)} == {"a:1", "c:1"}
    routers.failed("a:1", 2.0)
    routers.failed("c:1", 3.0)
    assert routers.choose(3.0) == "b:1", "of those that all failed the one that has had the longest time to recover"
    assert {routers.choose(1.0 + AVOID_S) for _ in range(3)} == {"b:1"}
    assert {routers.choose(3.0 + AVOID_S) for _ in range(6)} == {"a:1", "b:1", "c:1"}


def test_routers_that_others_name_are_learnt_once_and_asked_when_the_own_ones_fail() -> None:
    routers = Addresses(["a:1"])
    for _ in range(2):
        routers.learn(["a:1", "b:2", "nonsense"])
    assert {routers.choose(0.0) for _ in range(4)} == {"a:1"} and len(routers) == 2
    routers.failed("a:1", 1.0)
    assert {routers.choose(1.0) for _ in range(4)} == {"b:2"}
    assert {routers.choose(1.0 + AVOID_S) for _ in range(4)} == {"a:1"}


def test_addresses_are_read_from_a_list_with_commas() -> None:
    assert addresses_of("a:1, b:2") == ("a:1", "b:2")
    for text in ("", "a:1,", "a:1,b"):
        with pytest.raises(ConfigError, match="host:port"):
            addresses_of(text)
    with pytest.raises(ConfigError, match="at least one"):
        Addresses([])
