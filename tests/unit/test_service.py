"""A request's life in the router, over fake groups: limits, streams, failures, drain."""

import asyncio
import time
from collections.abc import AsyncGenerator
from dataclasses import replace
from itertools import count

import pytest
from fakes import FakeGroup, info, saying, service_of
from hypothesis import given
from hypothesis import strategies as st

from rayline.deploy.model_path import resolve_model
from rayline.protos.conversation import ChatMessage, Conversation
from rayline.protos.errors import (
    DeadlineExceeded,
    InternalError,
    InvalidRequest,
    ModelNotFound,
    Overloaded,
    PromptTooLong,
    RaylineError,
    Unavailable,
)
from rayline.protos.events import ChoiceEnded, Delta, Failed, Finished, FinishReason, Started, StreamEvent, Usage
from rayline.protos.group import GroupLoad
from rayline.protos.types import SamplingParams, Spec
from rayline.router.service import ServedModel, Service
from rayline.router.tokenizer import Tokenizer

SAYING = "the quick brown fox jumps"


def spec(**changes: object) -> Spec:
    plain = Spec("r1", "tiny", SamplingParams(max_tokens=20), prompt="the dog")
    return replace(plain, **changes)  # type: ignore[arg-type]


async def collect(service: Service, wanted: Spec) -> list[StreamEvent]:
    return [event async for event in service.generate(wanted)]


def run(service: Service, wanted: Spec) -> list[StreamEvent]:
    return asyncio.run(collect(service, wanted))


def refusal(service: Service, wanted: Spec) -> RaylineError:
    with pytest.raises(RaylineError) as caught:
        run(service, wanted)
    assert service.running == 0
    return caught.value


def text_of(events: list[StreamEvent]) -> str:
    return "".join(event.text for event in events if isinstance(event, Delta))


def test_a_stream_is_started_then_deltas_then_one_finished() -> None:
    group = FakeGroup(saying(SAYING))
    first, *deltas, ended, last = run(service_of(group), spec())
    assert first == Started("r1", "fake", True, len(group.requests[0].prompt_ids))
    assert all(isinstance(delta, Delta) for delta in deltas) and text_of(deltas) == SAYING
    assert ended == ChoiceEnded(0, FinishReason.STOP)
    assert isinstance(last, Finished) and last.reason == FinishReason.STOP
    assert last.usage == Usage(len(group.requests[0].prompt_ids), len(deltas), cached_tokens=1)
    assert group.finished == ["r1"] and group.aborted == []


def test_a_group_gets_ids_a_seed_and_a_token_budget() -> None:
    group = FakeGroup(saying("x"))
    service = service_of(group)
    run(service, spec(params=SamplingParams(), priority=-3))
    (request,) = group.requests
    assert request.prompt_ids == asyncio.run(service.tokenize("tiny", "the dog"))
    assert request.params.seed == 42 and request.priority == -3
    assert request.params.max_tokens == 64 - len(request.prompt_ids)
    run(service, spec(params=SamplingParams(seed=7, max_tokens=5)))
    assert (group.requests[1].params.seed, group.requests[1].params.max_tokens) == (7, 5)


def test_messages_go_through_the_chat_template() -> None:
    group = FakeGroup(saying("x"))
    service = service_of(group)
    messages = (ChatMessage("user", "hi"),)
    run(service, spec(prompt=None, conversation=Conversation(messages)))
    (request,) = group.requests
    assert service.detokenize("tiny", request.prompt_ids) == "<s>user: hi\n"
    assert asyncio.run(service.tokenize_chat("tiny", Conversation(messages))) == request.prompt_ids


def test_a_long_prompt_tokenises_to_the_same_ids_beside_the_loop() -> None:
    service = service_of(FakeGroup(saying("x"), info=info(max_model_len=10**6)))
    short = asyncio.run(service.tokenize("tiny", "the dog\n"))
    assert asyncio.run(service.tokenize("tiny", "the dog\n" * 9000)) == short * 9000


def test_time_is_reported_for_each_part() -> None:
    ticks = count()
    group = FakeGroup(saying("the"))
    *_, last = run(service_of(group, clock=lambda: float(next(ticks))), spec())
    assert isinstance(last, Finished) and last.overhead is not None
    assert (last.overhead.tokenize_s, last.overhead.queue_s) == (1.0, 0.25)
    assert 0 < last.overhead.first_token_s < last.overhead.total_s


def test_a_stop_string_ends_the_stream_and_aborts_the_group() -> None:
    group = FakeGroup(saying(SAYING))
    events = run(service_of(group), spec(params=SamplingParams(max_tokens=20, stop=("n f",))))
    last = events[-1]
    assert text_of(events) == "the quick brow"
    assert isinstance(last, Finished) and last.reason == FinishReason.STOP and last.stop_reason == "n f"
    assert last.usage.output_tokens == sum(len(e.token_ids) for e in events if isinstance(e, Delta))
    assert group.aborted == ["r1"] and group.finished == []


def test_text_held_for_a_stop_string_is_said_before_the_end() -> None:
    events = run(service_of(FakeGroup(saying(SAYING))), spec(params=SamplingParams(max_tokens=20, stop=("jumps!",))))
    assert text_of(events) == SAYING
    assert isinstance(events[-1], Finished) and events[-1].stop_reason is None


def test_the_budget_ends_a_stream_with_length() -> None:
    last = run(service_of(FakeGroup(saying(SAYING))), spec(params=SamplingParams(max_tokens=2)))[-1]
    assert isinstance(last, Finished) and last.reason == FinishReason.LENGTH and last.usage.output_tokens == 2


@pytest.mark.parametrize(
    ("changes", "kind", "field", "words"),
    [
        ({"model": "huge"}, ModelNotFound, "model", "'huge' is not served: there is ['tiny']"),
        ({"prompt": "the dog " * 200}, PromptTooLong, "prompt", "context is 64 tokens"),
        ({"params": SamplingParams(max_tokens=64)}, PromptTooLong, "max_tokens", "max_tokens = 64"),
        ({"params": SamplingParams(min_tokens=64)}, PromptTooLong, "max_tokens", "min_tokens = 64"),
        ({"params": SamplingParams(temperature=-1.0)}, InvalidRequest, "temperature", "0 to 100"),
        ({"params": SamplingParams(stop_token_ids=(400,))}, InvalidRequest, "stop_token_ids", "ids from 0 to 399"),
        ({"prompt": None}, InvalidRequest, "prompt", "exactly one"),
        ({"prompt": None, "prompt_ids": (1, 400)}, InvalidRequest, "prompt", "prompt = 400"),
        ({"prompt": None, "prompt_ids": (-1,)}, InvalidRequest, "prompt", "ids from 0 to 399"),
        ({"prompt": None, "conversation": Conversation(())}, InvalidRequest, "messages", "at least one"),
        ({"priority": 101}, InvalidRequest, "priority", "-100"),
    ],
)
def test_what_is_wrong_is_raised_with_field_and_range(
    changes: dict[str, object], kind: type[RaylineError], field: str, words: str
) -> None:
    group = FakeGroup(saying("x"))
    error = refusal(service_of(group), spec(**changes))
    assert type(error) is kind and error.field == field and words in error.message
    assert group.requests == []


def test_a_prompt_that_just_fits_is_served() -> None:
    group = FakeGroup(saying(SAYING * 20))
    service = service_of(group)
    prompt = asyncio.run(service.tokenize("tiny", "the dog"))
    last = run(service, spec(params=SamplingParams(max_tokens=64 - len(prompt))))[-1]
    assert isinstance(last, Finished) and last.usage.output_tokens == 64 - len(prompt)


def test_an_empty_prompt_begins_with_bos() -> None:
    group = FakeGroup(saying("x"))
    run(service_of(group), spec(prompt=""))
    assert group.requests[0].prompt_ids == (1,)


def test_the_only_model_needs_no_name() -> None:
    assert text_of(run(service_of(FakeGroup(saying("x"))), spec(model=""))) == "x"


def test_chat_without_a_template_is_refused() -> None:
    service = service_of(FakeGroup(saying("x")), template=None)
    error = refusal(service, spec(prompt=None, conversation=Conversation((ChatMessage("user", "hi"),))))
    assert type(error) is InvalidRequest and "no chat template" in error.message


def test_equal_groups_share_requests_evenly() -> None:
    groups = [FakeGroup(saying("x"), info=info(f"g{n}")) for n in range(3)]
    service = service_of(*groups)
    for n in range(9):
        run(service, spec(request_id=f"r{n}"))
    assert [len(group.requests) for group in groups] == [3, 3, 3]


def test_a_running_request_counts_against_its_group_until_it_ends() -> None:
    groups = [FakeGroup(saying(SAYING), info=info(f"g{n}")) for n in range(2)]
    service = service_of(*groups)

    async def scenario() -> None:
        first = service.generate(spec())
        await anext(first)
        (busy,) = [group for group in groups if group.requests]
        (free,) = [group for group in groups if not group.requests]
        for n in range(4):
            await collect(service, spec(request_id=f"s{n}"))
        assert len(free.requests) == 4 and len(busy.requests) == 1
        await first.aclose()
        assert busy.aborted == ["r1"]
        for n in range(4):
            await collect(service, spec(request_id=f"t{n}"))
        assert len(busy.requests) == 3 and len(free.requests) == 6

    asyncio.run(scenario())


def test_a_full_group_is_passed_over_before_anything_is_promised() -> None:
    full = FakeGroup(saying("x"), info=info("g0"), refusal=Overloaded("full", retry_after_s=3.0))
    free = FakeGroup(saying("ok"), info=info("g1"), load=GroupLoad(outstanding_tokens=10**6))
    assert text_of(run(service_of(full, free), spec())) == "ok"
    assert len(full.requests) == 1
    error = refusal(service_of(full), spec())
    assert type(error) is Overloaded and error.retry_after_s == 3.0


def test_a_group_lost_before_its_first_token_is_passed_over() -> None:
    lost = FakeGroup(saying("x"), info=info("g0"), loss=Unavailable("gone"))
    free = FakeGroup(saying("ok"), info=info("g1"), load=GroupLoad(outstanding_tokens=10**6))
    assert text_of(run(service_of(lost, free), spec())) == "ok"
    assert type(refusal(service_of(lost), spec(request_id="another"))) is Unavailable


def test_a_request_the_group_calls_invalid_is_not_tried_elsewhere() -> None:
    strict = FakeGroup(saying("x"), info=info("g0"), refusal=InvalidRequest("no", field="seed"))
    other = FakeGroup(saying("x"), info=info("g1"), load=GroupLoad(outstanding_tokens=10**6))
    assert refusal(service_of(strict, other), spec()).field == "seed"
    assert other.requests == []


def test_full_draining_and_dead_groups_are_not_asked() -> None:
    for group in (
        FakeGroup(saying("x"), load=GroupLoad(waiting=4)),
        FakeGroup(saying("x"), load=GroupLoad(draining=True)),
        FakeGroup(saying("x"), alive=False),
    ):
        expected = Overloaded if group.load.waiting else Unavailable
        assert type(refusal(service_of(group), spec())) is expected
        assert group.requests == []


@pytest.mark.parametrize(
    ("loss", "kind"),
    [(Unavailable("gone"), Unavailable), (ConnectionResetError("reset"), InternalError), (ValueError(), InternalError)],
)
def test_a_group_lost_in_mid_stream_ends_it_in_failed(loss: Exception, kind: type[RaylineError]) -> None:
    events = run(service_of(FakeGroup(saying(SAYING), loss=loss, loss_after=2)), spec())
    assert sum(isinstance(event, Delta) for event in events) == 2
    assert isinstance(events[-1], Failed) and type(events[-1].error) is kind


def test_a_group_that_ends_without_a_result_counts_as_lost() -> None:
    last = run(service_of(FakeGroup(saying("the dog"), silent=True)), spec())[-1]
    assert isinstance(last, Failed) and type(last.error) is Unavailable


losses = st.sampled_from([None, Unavailable("gone"), Overloaded("full"), ValueError("bug"), InvalidRequest("no")])
fakes = st.builds(
    FakeGroup,
    script=st.sampled_from([saying(SAYING), saying(""), saying("é😀")]),
    alive=st.booleans(),
    refusal=losses.filter(lambda loss: not isinstance(loss, ValueError)),
    loss=losses,
    loss_after=st.integers(0, 4),
    silent=st.booleans(),
)


@given(
    st.lists(fakes, max_size=3),
    st.builds(
        SamplingParams,
        max_tokens=st.none() | st.integers(-1, 70),
        min_tokens=st.integers(0, 3),
        stop=st.sampled_from([(), ("qu",), ("",), ("fox", "é")]),
    ),
    st.none() | st.integers(0, 6),
)
def test_every_accepted_request_ends_in_exactly_one_terminal_event(
    groups: list[FakeGroup], params: SamplingParams, walks_away_after: int | None
) -> None:
    groups = [replace(group, info=info(f"g{n}"), requests=[]) for n, group in enumerate(groups)]
    service = service_of(*groups)

    async def scenario() -> list[StreamEvent]:
        stream = service.generate(spec(params=params))
        seen: list[StreamEvent] = []
        async for event in stream:
            seen.append(event)
            if len(seen) == walks_away_after:
                break
        await stream.aclose()
        return seen

    try:
        events = asyncio.run(scenario())
    except RaylineError:
        pass
    else:
        terminal = [isinstance(event, Finished | Failed) for event in events]
        assert isinstance(events[0], Started) and not any(terminal[:-1])
        assert terminal[-1] or len(events) == walks_away_after
    assert service.running == 0
    ledger = service._ledger
    assert not any(ledger.outstanding_tokens(group.info.group_id) for group in groups)


def test_a_reader_that_does_not_read_holds_the_group_back() -> None:
    group = FakeGroup(saying(SAYING))
    pulled: list[int] = []

    async def counting(request: object) -> AsyncGenerator[object, None]:
        async for event in FakeGroup.generate(group, request):  # type: ignore[arg-type]
            pulled.append(1)
            yield event

    async def scenario() -> None:
        group.generate = counting  # type: ignore[method-assign, assignment]
        stream = service_of(group).generate(spec())
        await anext(stream)
        await asyncio.sleep(0.01)
        assert len(pulled) == 1
        await stream.aclose()

    asyncio.run(scenario())


def test_a_cancelled_reader_aborts_the_request_in_the_same_turn_of_the_loop() -> None:
    group = FakeGroup(saying(SAYING), delay_s=30.0)

    async def scenario() -> None:
        service = service_of(group)
        reader = asyncio.create_task(collect(service, spec()))
        while not group.requests:
            await asyncio.sleep(0)
        reader.cancel()
        await asyncio.sleep(0)
        assert group.aborted == ["r1"] and service.running == 0

    asyncio.run(scenario())


def test_draining_refuses_new_requests_and_waits_for_the_running_ones() -> None:
    group = FakeGroup(saying(SAYING), holds_at=2)

    async def scenario() -> None:
        service = service_of(group)
        running = asyncio.create_task(collect(service, spec()))
        while not group.requests:
            await asyncio.sleep(0)
        assert service.running == 1 and service.ready
        drained = asyncio.create_task(service.drain(60.0))
        await asyncio.sleep(0)
        assert service.draining and not service.ready
        with pytest.raises(Unavailable, match="shutting down"):
            await collect(service, spec(request_id="late"))
        assert not drained.done()
        group.holds_at = None
        assert await drained
        assert isinstance((await running)[-1], Finished) and service.running == 0

    asyncio.run(scenario())


def test_draining_gives_up_after_its_time() -> None:
    group = FakeGroup(saying(SAYING), delay_s=30.0)

    async def scenario() -> None:
        service = service_of(group)
        running = asyncio.create_task(collect(service, spec()))
        while not service.running:
            await asyncio.sleep(0)
        assert not await service.drain(0.02)
        running.cancel()

    asyncio.run(scenario())


def test_draining_an_idle_service_is_done_at_once() -> None:
    assert asyncio.run(service_of(FakeGroup(saying("x"))).drain(0.0))


def test_ids_outside_the_vocabulary_do_not_detokenise() -> None:
    service = service_of(FakeGroup(saying("x")))
    size = service.models()[0].tokenizer.vocab_size
    with pytest.raises(InvalidRequest, match=f"token_ids = {size}"):
        service.detokenize("tiny", [1, size])


def test_other_work_goes_on_while_a_long_prompt_is_prepared() -> None:
    service = service_of(FakeGroup(saying("x"), info=info(max_model_len=10**6)))
    turns: list[int] = []

    async def beside() -> None:
        while True:
            await asyncio.sleep(0.001)
            turns.append(1)

    async def scenario() -> None:
        other = asyncio.create_task(beside())
        await collect(service, spec(prompt="the quick brown fox jumps over " * 8000))
        other.cancel()

    asyncio.run(scenario())
    assert len(turns) > 10, "tokenising held the loop, or the interpreter's lock"


async def test_a_text_of_100_000_tokens_does_not_stall_the_loop() -> None:
    """The bound is generous: on the loop itself it would stand still for as long as the text takes, each time.

    Where other processes take the cores away it may stand still as well, but not in every one of many attempts.
    """
    tokenizer = Tokenizer.load(resolve_model("embedded"))
    text = " ".join(f"def f{number}(x): return x + {number}" for number in range(12_000))
    service = Service({"m": ServedModel("m", tokenizer, {}, 0)}, time.monotonic, lambda: 0)
    tokenizer.encode(text)
    for _ in range(20):
        began_s = time.perf_counter()
        tokenizer.encode(text)
        alone_s = time.perf_counter() - began_s
        stalls_s, work = [], asyncio.create_task(service.tokenize("m", text))
        while not work.done():
            before_s = time.perf_counter()
            await asyncio.sleep(0.001)
            stalls_s.append(time.perf_counter() - before_s)
        assert len(await work) > 100_000
        if len(stalls_s) > 5 and max(stalls_s) < max(0.1, alone_s / 2):
            return
    pytest.fail(f"the loop stood still for {max(stalls_s):.3f} s, tokenising alone takes {alone_s:.3f} s")


# ---- time limits and full groups


def test_what_is_left_of_the_time_goes_to_the_group() -> None:
    group = FakeGroup(saying(SAYING))
    service = service_of(group)
    run(service, spec())
    run(service, spec(request_id="r2", timeout_s=5.0))
    asyncio.run(_collect_within(service, spec(request_id="r3", timeout_s=5.0), 2.0))
    asyncio.run(_collect_within(service, spec(request_id="r4", timeout_s=5.0), 20.0))
    assert [request.timeout_s for request in group.requests] == [None, 5.0, 2.0, 5.0]


async def _collect_within(service: Service, wanted: Spec, within_s: float) -> list[StreamEvent]:
    return [event async for event in service.generate(wanted, within_s=within_s)]


def test_another_group_gets_what_the_first_one_left_of_the_time() -> None:
    seconds = count(0.0, 0.5)
    lost = FakeGroup(saying(SAYING), info=info("g0"), loss=Unavailable("lost"), loss_after=2)
    other = FakeGroup(saying(SAYING), info=info("g1"), load=GroupLoad(outstanding_tokens=10**6))
    run(service_of(lost, other, clock=lambda: next(seconds), patience_s=1.0), spec(timeout_s=100.0))
    (first,), (second,) = lost.requests, other.requests
    assert first.timeout_s is not None and second.timeout_s is not None
    assert second.output_ids and second.timeout_s < first.timeout_s < 100.0


def test_a_stream_without_a_group_waits_no_longer_than_its_time() -> None:
    seconds = count(0.0, 0.5)
    lost = FakeGroup(saying(SAYING), loss=Unavailable("lost"), loss_after=2)
    began_s = time.monotonic()
    *_, last = run(service_of(lost, clock=lambda: next(seconds), patience_s=600.0), spec(timeout_s=20.0))
    assert isinstance(last, Failed) and isinstance(last.error, DeadlineExceeded)
    assert time.monotonic() - began_s < 60.0


def test_refused_clients_are_told_to_come_when_there_is_room_one_behind_the_other() -> None:
    full = GroupLoad(waiting=4, waiting_tokens=400, tokens_per_s=50.0)
    service = service_of(FakeGroup(saying("x"), load=full))
    hints = [refusal(service, spec(request_id=f"r{number}")).retry_after_s or 0.0 for number in range(3)]
    own = len(asyncio.run(service.tokenize("tiny", "the dog"))) / 50.0
    assert hints == pytest.approx([2.0, 2.0 + own, 2.0 + 2 * own])


def test_the_rates_of_all_groups_count_for_the_hint() -> None:
    loads = [GroupLoad(waiting=4, waiting_tokens=tokens, tokens_per_s=50.0) for tokens in (400, 200)]
    groups = [FakeGroup(saying("x"), info=info(f"g{n}"), load=load) for n, load in enumerate(loads)]
    assert refusal(service_of(*groups), spec()).retry_after_s == pytest.approx(50 / 100)


def test_a_group_whose_queue_is_full_of_tokens_takes_nothing() -> None:
    group = FakeGroup(saying("x"), load=GroupLoad(waiting=1, waiting_tokens=100))
    group.info = replace(group.info, max_waiting_tokens=100)
    assert isinstance(refusal(service_of(group), spec()), Overloaded) and not group.requests
