"""The public messages carry the public types whole, and say what each of their fields means."""

import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from records import PARAMS, ids, params, preempted, real, specs, text, uint32, uint64

from rayline.protos import inference_pb2 as pb
from rayline.protos.conversation import ChatMessage, Conversation
from rayline.protos.errors import LEAVES, InternalError, RaylineError, error_of
from rayline.protos.event_wire import error_from_pb, error_to_pb, event_of, event_to_pb
from rayline.protos.events import (
    ChoiceEnded,
    Delta,
    DeltaLogprob,
    Failed,
    Finished,
    FinishReason,
    Overhead,
    PromptScored,
    Started,
    StreamEvent,
    ToolCallDelta,
    Usage,
)
from rayline.protos.params_wire import params_of, params_to_pb
from rayline.protos.request_wire import spec_of, spec_to_pb
from rayline.protos.types import SamplingParams, Spec

ROOT = Path(__file__).parents[2]
PROTO = ROOT / "protos/inference.proto"

errors = st.builds(
    error_of, st.sampled_from(sorted(LEAVES)), text, field=st.none() | text, retry_after_s=st.none() | real
)
logprobs = st.builds(
    DeltaLogprob, uint32, text, st.none() | real, st.lists(st.tuples(uint32, text, real), max_size=3).map(tuple)
)
scored = st.lists(logprobs, max_size=3).map(tuple)
pieces = st.lists(st.builds(ToolCallDelta, uint32, text, text, text), max_size=2).map(tuple)
events = st.one_of(
    st.builds(Started, text, text, st.booleans(), uint32, ids, uint64),
    st.builds(PromptScored, scored),
    st.builds(Delta, uint32, ids, text, scored, text, pieces, st.booleans()),
    st.builds(ChoiceEnded, uint32, st.sampled_from(FinishReason), st.none() | text | uint32, st.none() | real),
    st.builds(
        Finished,
        text,
        st.sampled_from(FinishReason),
        st.builds(Usage, uint32, uint32, uint32, uint32),
        real,
        st.none() | st.builds(Overhead, real, real, real, real, preempted),
        st.none() | text | uint32,
    ),
    st.builds(Failed, text, errors),
)


def same(one: object, other: object) -> bool:
    """Equality that looks into errors, which compare by identity."""
    if isinstance(one, Failed) and isinstance(other, Failed):
        return one.request_id == other.request_id and same(one.error, other.error)
    if isinstance(one, RaylineError) and isinstance(other, RaylineError):
        return type(one) is type(other) and vars(one) == vars(other)
    return one == other


def test_no_parameter_and_no_field_of_a_request_is_left_out_of_these_tests() -> None:
    assert set(PARAMS) == {f.name for f in fields(SamplingParams)}
    covered = {"request_id", "model", "params", "prompt", "suffix", "prompt_ids", "conversation"}
    options = {"echo", "truncate_prompt_tokens", "priority", "tenant", "cache_salt", "return_prompt_ids", "timeout_s"}
    assert covered | options == {f.name for f in fields(Spec)}


@given(params)
def test_parameters_come_back_as_they_were(given_params: SamplingParams) -> None:
    message = pb.SamplingParams.FromString(params_to_pb(given_params).SerializeToString())
    assert params_of(message) == given_params


@given(specs)
def test_a_request_comes_back_as_it_was(spec: Spec) -> None:
    sent = spec_to_pb(spec)
    assert spec_of(type(sent).FromString(sent.SerializeToString()), lambda: "new") == spec


@given(uint32, events)
def test_an_event_comes_back_as_it_was(index: int, event: StreamEvent) -> None:
    message = pb.StreamResponse.FromString(event_to_pb(index, event).SerializeToString())
    assert message.index == index and same(event_of(message), event)


@given(errors)
def test_an_error_comes_back_as_it_was(error: RaylineError) -> None:
    assert same(error_from_pb(pb.Error.FromString(error_to_pb(error).SerializeToString())), error)


def test_an_empty_message_means_the_defaults() -> None:
    assert params_of(pb.SamplingParams()) == SamplingParams()
    assert spec_of(pb.GenerateRequest(model="m", text=""), lambda: "new") == Spec(
        "new", "m", SamplingParams(), prompt=""
    )


def test_a_conversation_ends_where_the_assistant_speaks_unless_it_is_to_be_continued() -> None:
    turn = pb.ChatMessage(role="user", content="hi")
    plain = spec_of(pb.ChatRequest(messages=[turn]), lambda: "new").conversation
    assert plain == Conversation((ChatMessage("user", "hi"),))
    left_open = spec_of(pb.ChatRequest(messages=[turn], continue_final_message=True), lambda: "new").conversation
    assert left_open is not None and not left_open.add_generation_prompt
    left_open.check()


def test_parameters_that_are_defaults_take_no_room() -> None:
    assert params_to_pb(SamplingParams()).ByteSize() == 0


def test_no_tokens_differ_from_no_prompt() -> None:
    empty = pb.GenerateRequest(token_ids=pb.TokenIds())
    assert spec_of(empty, lambda: "new").prompt_ids == ()
    assert spec_of(pb.GenerateRequest(), lambda: "new").prompt_ids is None


def test_events_and_kinds_of_a_newer_peer_are_survived() -> None:
    with pytest.raises(InternalError, match=r"event 3 .* unknown kind"):
        event_of(pb.StreamResponse(index=3))
    assert type(error_from_pb(pb.Error(kind="TooCold", message="m"))) is InternalError
    newer = pb.StreamResponse(finished=pb.Finished(reason=9))  # type: ignore[arg-type]
    assert event_of(newer) == Finished("", FinishReason.STOP, Usage(0, 0))


def test_every_field_of_the_proto_has_a_comment() -> None:
    fields = [line for line in PROTO.read_text().splitlines() if re.search(r"= \d+;", line)]
    assert len(fields) > 60
    assert [line for line in fields if not re.search(r"; +// \S", line)] == []


def test_every_message_and_rpc_of_the_proto_is_explained() -> None:
    lines = PROTO.read_text().splitlines()
    heads = [n for n, line in enumerate(lines) if re.match(r"(message|enum|service) |  rpc ", line)]
    assert len(heads) > 20
    assert [lines[n] for n in heads if not lines[n - 1].lstrip().startswith("//")] == []


@pytest.mark.parametrize("name", ["inference", "internal"])
def test_the_generated_code_is_that_of_the_proto(name: str, tmp_path: Path) -> None:
    out = [f"--{kind}={tmp_path}" for kind in ("python_out", "pyi_out", "grpc_python_out")]
    command = [sys.executable, "-m", "grpc_tools.protoc", "-Itests/typing", *out, f"rayline/protos/{name}.proto"]
    subprocess.run(command, cwd=ROOT, check=True)
    made = sorted((tmp_path / "rayline/protos").iterdir())
    assert [path.name for path in made] == [f"{name}_pb2.py", f"{name}_pb2.pyi", f"{name}_pb2_grpc.py"]
    for path in made:
        assert path.read_text() == (ROOT / "protos" / path.name).read_text(), f"{path.name} is out of date"
