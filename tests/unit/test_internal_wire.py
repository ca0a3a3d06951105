"""The channels inside a deployment carry every record whole: plans, results, events, loads, ranks' records."""

import re
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from rayline.cluster.parallel import Parallel
from rayline.kernels.choice import KernelOptions
from rayline.protos import internal_pb2 as pb
from rayline.protos.channel_wire import (
    add_event,
    failed_of,
    finished_of,
    info_of,
    info_to_pb,
    load_of,
    load_to_pb,
    request_of,
    submit_to_pb,
    token_of,
)
from rayline.protos.errors import LEAVES, error_of
from rayline.protos.events import Begun, EngineEvent, Failed, Finished, FinishReason, TokenEvent, TokenLogprob, Usage
from rayline.protos.group import GroupInfo, GroupLoad
from rayline.protos.plan import Admission, Plan, Sampled, Slice, StepResult
from rayline.protos.plan_wire import plan_of, plan_to_pb, result_of, result_to_pb
from rayline.protos.types import EngineRequest, SamplingParams
from rayline.workers.pipeline import RankStats
from rayline.workers.rank_wire import loaded_of, loaded_to_pb, spec_of, spec_to_pb, stats_of, stats_to_pb
from rayline.workers.spec import Loaded, RankSpec

PROTO = Path(__file__).parents[2] / "protos/internal.proto"

uint32 = st.integers(0, 2**32 - 1)
uint64 = st.integers(0, 2**64 - 1)
ids = st.lists(uint32, max_size=5).map(tuple)
text = st.text(max_size=8)
real = st.floats(allow_nan=False)
params = st.builds(
    SamplingParams,
    temperature=real,
    top_k=uint32,
    top_p=real,
    min_p=real,
    seed=st.none() | uint64,
    max_tokens=st.none() | uint32,
    min_tokens=uint32,
    stop=st.lists(text, max_size=3).map(tuple),
    stop_token_ids=ids,
    ignore_eos=st.booleans(),
    logprobs=st.none() | uint32,
)
top = st.lists(st.builds(TokenLogprob, uint32, real), max_size=3).map(tuple)
plans = st.builds(
    Plan,
    uint32,
    uint64,
    st.lists(st.builds(Admission, uint64, ids, ids, params), max_size=3).map(tuple),
    st.lists(st.builds(Slice, uint64, uint32, uint32, uint32, ids, st.booleans()), max_size=3).map(tuple),
    st.lists(uint64, max_size=3).map(tuple),
)
results = st.builds(
    StepResult,
    uint32,
    uint64,
    st.lists(st.builds(Sampled, uint64, uint32, st.none() | real, top), max_size=3).map(tuple),
    real,
)
requests = st.builds(EngineRequest, text, ids, params, ids, st.integers(-(2**31), 2**31 - 1))
infos = st.builds(GroupInfo, text, text, text, st.booleans(), uint32, uint32, uint32, uint32, uint32, uint32)
loads = st.builds(GroupLoad, uint32, uint32, uint64, uint32, uint32, st.booleans())
begun = st.none() | st.builds(Begun, uint32, real)
tokens = st.builds(TokenEvent, text, uint32, uint32, st.none() | real, top, begun)
finishes = st.builds(
    Finished,
    text,
    st.sampled_from(FinishReason),
    st.builds(Usage, uint32, uint32, uint32),
    real,
    stop_reason=st.none() | uint32,
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
)
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


@given(infos)
def test_what_a_group_is_comes_back_as_it_was(info: GroupInfo) -> None:
    assert info_of(pb.Welcome.FromString(info_to_pb(info).SerializeToString())) == info


@given(loads)
def test_a_load_comes_back_as_it_was(load: GroupLoad) -> None:
    assert load_of(pb.Load.FromString(load_to_pb(load).SerializeToString())) == load


@given(uint64, st.lists(tokens, max_size=4), st.lists(finishes, max_size=4), st.lists(failures, max_size=4))
def test_the_events_of_a_step_come_back_as_they_were(
    stream: int, sent_tokens: list[TokenEvent], ends: list[Finished], failed: list[Failed]
) -> None:
    step = pb.Step()
    events: list[EngineEvent] = [*sent_tokens, *ends, *failed]
    for event in events:
        add_event(step, stream, event)
    step = pb.Step.FromString(step.SerializeToString())
    streams = [*(m.stream for m in step.tokens), *(m.stream for m in step.finished), *(m.stream for m in step.failed)]
    assert streams == [stream] * len(events)
    assert [token_of(m, e.request_id) for m, e in zip(step.tokens, sent_tokens, strict=True)] == sent_tokens
    assert [finished_of(m, e.request_id) for m, e in zip(step.finished, ends, strict=True)] == ends
    for message, failure in zip(step.failed, failed, strict=True):
        back = failed_of(message, failure.request_id)
        assert back.request_id == failure.request_id
        assert type(back.error) is type(failure.error) and vars(back.error) == vars(failure.error)


@given(specs)
def test_the_orders_of_a_rank_come_back_as_they_were(spec: RankSpec) -> None:
    assert spec_of(pb.RankSpec.FromString(spec_to_pb(spec).SerializeToString())) == spec


@given(st.builds(Loaded, text, uint64, uint64, uint64, uint64))
def test_what_a_rank_loaded_comes_back_as_it_was(loaded: Loaded) -> None:
    assert loaded_of(pb.Loaded.FromString(loaded_to_pb(loaded).SerializeToString())) == loaded


@given(st.builds(RankStats, uint32, uint32, real, real, uint64, uint64, uint64, uint64, uint64))
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
