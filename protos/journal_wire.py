"""The journal's calls and answers <-> protobuf: total both ways, checked by round-trip property tests.

Request ids of the events in traces stay behind: what is played again belongs to another request.
"""

from typing import get_args

from rayline.protos import internal_pb2 as pb
from rayline.protos.channel_wire import (
    add_event,
    ballot_of,
    ballot_to_pb,
    finished_of,
    prompt_scores_of,
    token_of,
)
from rayline.protos.errors import InternalError
from rayline.protos.journal import Act, JournalAnswer, JournalCall, Trace

ACTS: dict[str, Act] = {act: act for act in get_args(Act)}


def call_to_pb(number: int, call: JournalCall) -> pb.JournalCall:
    """`number`: of the call on its channel, which the answer repeats."""
    return pb.JournalCall(
        number=number,
        act=call.act,
        key=call.key,
        ballot=ballot_to_pb(call.ballot),
        record=call.record,
        trace=None if call.trace is None else _trace_to_pb(call.trace),
    )


def call_of(message: pb.JournalCall) -> JournalCall:
    """Raises InternalError for an act this version does not know."""
    if message.act not in ACTS:
        raise InternalError(f"journal: act = {message.act!r} is unknown: there is {sorted(ACTS)}")
    return JournalCall(
        ACTS[message.act],
        message.key,
        ballot_of(message.ballot),
        message.record,
        _trace_of(message.trace) if message.HasField("trace") else None,
    )


def answer_to_pb(number: int, answer: JournalAnswer) -> pb.JournalAnswer:
    return pb.JournalAnswer(
        number=number,
        accepted=answer.accepted,
        ballot=None if answer.ballot is None else ballot_to_pb(answer.ballot),
        record=answer.record,
        traces=[_trace_to_pb(trace) for trace in answer.traces],
    )


def answer_of(message: pb.JournalAnswer) -> JournalAnswer:
    return JournalAnswer(
        message.accepted,
        ballot_of(message.ballot) if message.HasField("ballot") else None,
        message.record,
        tuple(_trace_of(trace) for trace in message.traces),
    )


def _trace_to_pb(trace: Trace) -> pb.Trace:
    said = pb.Step()
    for event in trace.events:
        add_event(said, 0, event)
    return pb.Trace(choice=trace.choice, said=said, is_ahead=trace.is_ahead, run=trace.run)


def _trace_of(message: pb.Trace) -> Trace:
    said = message.said
    return Trace(
        message.choice,
        tuple(token_of(token, "") for token in said.tokens),
        tuple(prompt_scores_of(scores, "") for scores in said.scores),
        finished_of(said.finished[0], "") if said.finished else None,
        message.is_ahead,
        message.run,
    )
