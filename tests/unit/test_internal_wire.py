"""The channels inside a deployment carry every record whole: plans, results, events, loads, ranks' records."""

import re
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from records import (
    ballots,
    beams,
    ids,
    kept,
    params,
    preempted,
    real,
    rules,
    scores,
    sint32,
    text,
    top,
    uint32,
    uint64,
    usages,
)

from rayline.cluster.parallel import Parallel
from rayline.kernels.choice import KernelOptions
from rayline.protos import internal_pb2 as pb
from rayline.protos.blame import Presence, Record, Suspect
from rayline.protos.blame_wire import suspects_of, suspects_to_pb
from rayline.protos.channel_wire import (
    add_event,
    failed_of,
    finished_of,
    info_of,
    info_to_pb,
    load_of,
    load_to_pb,
    prompt_scores_of,
    request_of,
    searched_of,
    submit_to_pb,
    token_of,
)
from rayline.protos.errors import LEAVES, InternalError, error_of
from rayline.protos.events import Begun, EngineEvent, Failed, Finished, FinishReason, PromptScores, Searched, TokenEvent
from rayline.protos.group import GroupInfo, GroupLoad
from rayline.protos.journal import Act, JournalAnswer, JournalCall, Trace
from rayline.protos.journal_wire import answer_of, answer_to_pb, call_of, call_to_pb
from rayline.protos.plan import (
    Admission,
    Candidates,
    Copy,
    Fork,
    Gain,
    Plan,
    Refused,
    Sampled,
    Scored,
    Slice,
    StepResult,
)
from rayline.protos.plan_wire import plan_of, plan_to_pb, result_of, result_to_pb
from rayline.protos.token_ids import packed, unpacked
from rayline.protos.types import EngineRequest
from rayline.workers.pipeline import RankStats
from rayline.workers.rank_wire import loaded_of, loaded_to_pb, spec_of, spec_to_pb, stats_of, stats_to_pb
from rayline.workers.spec import Loaded, RankSpec

PROTO = Path(__file__).parents[2] / "protos/internal.proto"

numbers = st.lists(uint64, max_size=3).map(tuple)
plans = st.builds(
    Plan,
    uint32,
    uint64,
    st.lists(st.builds(Admission, uint64, ids, ids, params, rules), max_size=3).map(tuple),
    st.lists(
        st.builds(Slice, uint64, uint32, uint32, uint32, ids, st.booleans(), numbers, st.booleans()), max_size=3
    ).map(tuple),
    numbers,
    st.lists(st.builds(Fork, uint64, uint64, params), max_size=3).map(tuple),
    st.lists(st.builds(Gain, uint64, uint32), max_size=3).map(tuple),
    st.lists(st.builds(Copy, uint32, uint32), max_size=3).map(tuple),
)
results = st.builds(
    StepResult,
    uint32,
    uint64,
    st.lists(st.builds(Sampled, uint64, uint32, st.none() | real, top), max_size=3).map(tuple),
    real,
    real,
    st.lists(st.builds(Candidates, uint64, top), max_size=3).map(tuple),
    st.lists(st.builds(Scored, uint64, uint32, scores), max_size=3).map(tuple),
    st.lists(st.builds(Refused, uint64, text), max_size=3).map(tuple),
)
timeouts = st.none() | real
requests = st.builds(
    EngineRequest,
    text,
    ids,
    params,
    ids,
    sint32,
    text,
    text,
    text,
    rules,
    st.none() | real,
    st.none() | uint32,
    st.booleans(),
    st.none() | kept,
)
infos = st.builds(
    GroupInfo, text, text, text, st.booleans(), uint32, uint32, uint32, uint32, uint32, uint32, uint64, text
)
loads = st.builds(
    GroupLoad,
    uint32,
    uint32,
    uint64,
    uint32,
    uint32,
    st.booleans(),
    st.lists(uint64, max_size=3).map(tuple),
    uint64,
    real,
    uint64,
)
begun = st.none() | st.builds(Begun, uint32, real)
tokens = st.builds(TokenEvent, text, uint32, uint32, st.none() | real, top, begun)
finishes = st.builds(
    Finished,
    text,
    st.sampled_from(FinishReason),
    usages,
    real,
    stop_reason=st.none() | uint32,
    preempted=preempted,
    beams=beams,
)
failures = st.builds(
    Failed,
    text,
    st.builds(
        error_of,
        st.sampled_from(sorted(LEAVES)),
        text,
        field=st.none() | text.filter(bool),
        retry_after_s=st.none() | real.filter(bool),
    ),
    st.none() | st.sampled_from(Presence),
)
suspects = st.lists(st.builds(Suspect, text, st.builds(Record, uint32, uint32, st.booleans()), real), max_size=3)
no_name = st.just("")  # requests' names stay out of traces
traces = st.builds(
    Trace,
    uint32,
    st.lists(st.builds(TokenEvent, no_name, uint32, uint32, st.none() | real, top, begun), max_size=3).map(tuple),
    st.lists(st.builds(PromptScores, no_name, uint32, scores), max_size=2).map(tuple),
    st.none() | finishes.map(lambda finished: replace(finished, request_id="")),
    st.booleans(),
    uint64,
)
records = st.binary(max_size=8)
calls = st.builds(JournalCall, st.sampled_from(get_args(Act)), text, ballots, records, st.none() | traces)
answers = st.builds(JournalAnswer, st.booleans(), st.none() | ballots, records, st.lists(traces, max_size=2).map(tuple))
specs = st.builds(
    RankSpec,
    path=st.text("abc/", min_size=1).map(Path),
    dtype=text,
    device=text,
    parallel=st.builds(Parallel, uint32, uint32, uint32, uint32),
    threads=uint32,
    block_tokens=uint32,
    epoch=uint32,
    kernels=st.builds(KernelOptions, text, text, text, st.booleans()),
    async_scheduling=text,
    store_host=text,
    store_port=uint32,
)


@given(plans)
def test_a_plan_comes_back_as_it_was(plan: Plan) -> None:
    assert plan_of(pb.Plan.FromString(plan_to_pb(plan).SerializeToString())) == plan


@given(results)
def test_a_result_comes_back_as_it_was(result: StepResult) -> None:
    assert result_of(pb.StepResult.FromString(result_to_pb(result).SerializeToString())) == result


@given(uint64, requests)
def test_a_request_comes_back_as_it_was(stream: int, request: EngineRequest) -> None:
    message = pb.Submit.FromString(submit_to_pb(stream, request).SerializeToString())
    assert message.stream == stream
    assert request_of(message) == request


@given(ids)
def test_ids_are_four_bytes_each_on_every_machine(token_ids: tuple[int, ...]) -> None:
    assert unpacked(packed(token_ids)) == token_ids
    assert packed(token_ids) == b"".join(token_id.to_bytes(4, "little") for token_id in token_ids)


@pytest.mark.parametrize("wrong", [-1, 2**32])
def test_what_is_no_id_is_not_cut_to_one(wrong: int) -> None:
    with pytest.raises(OverflowError):
        packed((1, wrong))


@given(uint64, calls)
def test_a_call_of_the_journal_comes_back_as_it_was(number: int, call: JournalCall) -> None:
    message = pb.JournalCall.FromString(call_to_pb(number, call).SerializeToString())
    assert (message.number, call_of(message)) == (number, call)


@given(uint64, answers)
def test_an_answer_of_the_journal_comes_back_as_it_was(number: int, answer: JournalAnswer) -> None:
    message = pb.JournalAnswer.FromString(answer_to_pb(number, answer).SerializeToString())
    assert (message.number, answer_of(message)) == (number, answer)


def test_an_act_of_a_newer_router_is_refused() -> None:
    with pytest.raises(InternalError, match="burn"):
        call_of(pb.JournalCall(act="burn"))


@given(infos)
def test_what_a_group_is_comes_back_as_it_was(info: GroupInfo) -> None:
    assert info_of(pb.Welcome.FromString(info_to_pb(info).SerializeToString())) == info


@given(loads)
def test_a_load_comes_back_as_it_was(load: GroupLoad) -> None:
    assert load_of(pb.Load.FromString(load_to_pb(load).SerializeToString())) == load


@given(
    uint64,
    st.lists(st.builds(PromptScores, text, uint32, scores), max_size=2),
    st.lists(tokens, max_size=4),
    st.lists(st.builds(Searched, text, uint32), max_size=2),
    st.lists(finishes, max_size=4),
    st.lists(failures, max_size=4),
)
def test_the_events_of_a_step_come_back_as_they_were(
    stream: int,
    scored: list[PromptScores],
    sent_tokens: list[TokenEvent],
    searched: list[Searched],
    ends: list[Finished],
    failed: list[Failed],
) -> None:
    step = pb.Step()
    events: list[EngineEvent] = [*scored, *sent_tokens, *searched, *ends, *failed]
    for event in events:
        add_event(step, stream, event)
    step = pb.Step.FromString(step.SerializeToString())
    sent = [*step.scores, *step.tokens, *step.searched, *step.finished, *step.failed]
    assert [message.stream for message in sent] == [stream] * len(events)
    assert [prompt_scores_of(m, e.request_id) for m, e in zip(step.scores, scored, strict=True)] == scored
    assert [token_of(m, e.request_id) for m, e in zip(step.tokens, sent_tokens, strict=True)] == sent_tokens
    assert [searched_of(m, e.request_id) for m, e in zip(step.searched, searched, strict=True)] == searched
    assert [finished_of(m, e.request_id) for m, e in zip(step.finished, ends, strict=True)] == ends
    for message, failure in zip(step.failed, failed, strict=True):
        back = failed_of(message, failure.request_id)
        assert (back.request_id, back.presence) == (failure.request_id, failure.presence)
        assert type(back.error) is type(failure.error) and vars(back.error) == vars(failure.error)


@given(suspects, st.none() | text)
def test_what_is_known_of_suspects_comes_back_as_it_was(known: list[Suspect], apart: str | None) -> None:
    message = pb.RouterMessage(blame=pb.Blame(apart=apart, suspects=suspects_to_pb(known)))
    back = pb.RouterMessage.FromString(message.SerializeToString()).blame
    assert suspects_of(back.suspects) == known
    assert (back.apart if back.HasField("apart") else None) == apart


@given(specs)
def test_the_orders_of_a_rank_come_back_as_they_were(spec: RankSpec) -> None:
    assert spec_of(pb.RankSpec.FromString(spec_to_pb(spec).SerializeToString())) == spec


@given(st.builds(Loaded, text, uint64, uint64, uint64, uint64))
def test_what_a_rank_loaded_comes_back_as_it_was(loaded: Loaded) -> None:
    assert loaded_of(pb.Loaded.FromString(loaded_to_pb(loaded).SerializeToString())) == loaded


@given(st.builds(RankStats, uint32, uint32, real, real, uint64, uint64, uint64, uint64, uint64, real, uint64))
def test_the_statistics_of_a_rank_come_back_as_they_were(stats: RankStats) -> None:
    assert stats_of(pb.RankStats.FromString(stats_to_pb(stats).SerializeToString())) == stats


def test_a_plan_of_a_decode_step_takes_a_few_hundred_bytes() -> None:
    slices = tuple(Slice(number, 1000 + number, 1, 62, (), True) for number in range(32))
    assert plan_to_pb(Plan(1_700_000_000, 10**6, slices=slices)).ByteSize() < 600


def test_every_message_of_the_proto_is_explained() -> None:
    lines = PROTO.read_text().splitlines()
    heads = [n for n, line in enumerate(lines) if re.match(r"(message|enum|service) ", line)]
    assert len(heads) > 20
    assert [lines[n] for n in heads if not lines[n - 1].startswith("//")] == []
