"""Stream events <-> the messages of inference.proto: total both ways, checked by round-trip property tests."""

from rayline.protos import inference_pb2 as pb
from rayline.protos.errors import InternalError, RaylineError, error_of
from rayline.protos.events import (
    ChoiceEnded,
    Delta,
    DeltaLogprob,
    Failed,
    Finished,
    FinishReason,
    Overhead,
    Preempted,
    PromptScored,
    Started,
    StreamEvent,
    ToolCallDelta,
    Usage,
)

REASON_TO_PB = {
    FinishReason.STOP: pb.FINISH_REASON_STOP,
    FinishReason.LENGTH: pb.FINISH_REASON_LENGTH,
    FinishReason.TOOL_CALLS: pb.FINISH_REASON_TOOL_CALLS,
    FinishReason.ABORT: pb.FINISH_REASON_ABORT,
}
REASON_OF = {number: reason for reason, number in REASON_TO_PB.items()}


def event_to_pb(index: int, event: StreamEvent) -> pb.StreamResponse:
    """`index` counts the stream's events from 0."""
    match event:
        case Delta():
            return pb.StreamResponse(index=index, delta=_delta_to_pb(event))
        case Started():
            return pb.StreamResponse(index=index, started=_started_to_pb(event))
        case PromptScored():
            scored = pb.PromptScored(tokens=[_logprob_to_pb(entry) for entry in event.tokens])
            return pb.StreamResponse(index=index, prompt_scored=scored)
        case ChoiceEnded():
            return pb.StreamResponse(index=index, choice_ended=_ended_to_pb(event))
        case Finished():
            return pb.StreamResponse(index=index, finished=_finished_to_pb(event))
        case Failed():
            failed = pb.Failed(request_id=event.request_id, error=error_to_pb(event.error))
            return pb.StreamResponse(index=index, failed=failed)


def event_of(message: pb.StreamResponse) -> StreamEvent:
    """Raises InternalError for an event this version does not know."""
    match message.WhichOneof("event"):
        case "delta":
            return _delta_of(message.delta)
        case "started":
            m = message.started
            return Started(m.request_id, m.numerics, m.exact, m.prompt_tokens, tuple(m.prompt_ids), m.created_s)
        case "prompt_scored":
            return PromptScored(tuple(_logprob_of(entry) for entry in message.prompt_scored.tokens))
        case "choice_ended":
            return _ended_of(message.choice_ended)
        case "finished":
            return _finished_of(message.finished)
        case "failed":
            return Failed(message.failed.request_id, error_from_pb(message.failed.error))
        case other:
            raise InternalError(f"event {message.index} of the stream is of an unknown kind: {other}")


def error_to_pb(error: RaylineError) -> pb.Error:
    return pb.Error(kind=error.kind, message=error.message, field=error.field, retry_after_s=error.retry_after_s)


def error_from_pb(message: pb.Error) -> RaylineError:
    return error_of(
        message.kind,
        message.message,
        field=message.field if message.HasField("field") else None,
        retry_after_s=message.retry_after_s if message.HasField("retry_after_s") else None,
    )


def _started_to_pb(event: Started) -> pb.Started:
    return pb.Started(
        request_id=event.request_id,
        numerics=event.numerics,
        exact=event.exact,
        prompt_tokens=event.prompt_tokens,
        prompt_ids=event.prompt_ids,
        created_s=event.created_s,
    )


def _delta_to_pb(event: Delta) -> pb.Delta:
    return pb.Delta(
        choice=event.choice,
        token_ids=event.token_ids,
        text=event.text,
        logprobs=[_logprob_to_pb(entry) for entry in event.logprobs],
        reasoning=event.reasoning,
        tool_calls=[
            pb.ToolCallDelta(index=call.index, id=call.id, name=call.name, arguments=call.arguments)
            for call in event.tool_calls
        ],
        is_echo=event.is_echo,
    )


def _delta_of(message: pb.Delta) -> Delta:
    return Delta(
        message.choice,
        tuple(message.token_ids),
        message.text,
        tuple(_logprob_of(entry) for entry in message.logprobs),
        message.reasoning,
        tuple(ToolCallDelta(call.index, call.id, call.name, call.arguments) for call in message.tool_calls),
        message.is_echo,
    )


def _logprob_to_pb(entry: DeltaLogprob) -> pb.Logprob:
    chosen = pb.Candidate(token_id=entry.token_id, text=entry.text, logprob=entry.logprob)
    top = [pb.Candidate(token_id=token_id, text=text, logprob=logprob) for token_id, text, logprob in entry.top]
    return pb.Logprob(chosen=chosen, top=top)


def _logprob_of(message: pb.Logprob) -> DeltaLogprob:
    chosen = message.chosen
    return DeltaLogprob(
        chosen.token_id,
        chosen.text,
        chosen.logprob if chosen.HasField("logprob") else None,
        tuple((c.token_id, c.text, c.logprob) for c in message.top),
    )


def _ended_to_pb(event: ChoiceEnded) -> pb.ChoiceEnded:
    why = event.stop_reason
    return pb.ChoiceEnded(
        choice=event.choice,
        reason=REASON_TO_PB[event.reason],
        stop_string=why if isinstance(why, str) else None,
        stop_token_id=why if isinstance(why, int) else None,
        score=event.score,
    )


def _ended_of(message: pb.ChoiceEnded) -> ChoiceEnded:
    score = message.score if message.HasField("score") else None
    return ChoiceEnded(message.choice, _reason_of(message.reason), _stop_reason_of(message), score)


def _stop_reason_of(message: pb.ChoiceEnded | pb.Finished) -> str | int | None:
    match message.WhichOneof("stop_reason"):
        case "stop_string":
            return message.stop_string
        case "stop_token_id":
            return message.stop_token_id
        case _:
            return None


def _reason_of(number: pb.FinishReason) -> FinishReason:
    """A reason of a newer peer counts as a stop: it did end well."""
    return REASON_OF.get(number, FinishReason.STOP)


def _finished_to_pb(event: Finished) -> pb.Finished:
    usage, time, why = event.usage, event.overhead, event.stop_reason
    return pb.Finished(
        request_id=event.request_id,
        reason=REASON_TO_PB[event.reason],
        usage=pb.Usage(
            prompt_tokens=usage.prompt_tokens,
            output_tokens=usage.output_tokens,
            cached_tokens=usage.cached_tokens,
            reasoning_tokens=usage.reasoning_tokens,
        ),
        queue_s=event.queue_s,
        inexact=not event.exact,
        overhead=None
        if time is None
        else pb.Overhead(
            tokenize_s=time.tokenize_s,
            queue_s=time.queue_s,
            first_token_s=time.first_token_s,
            total_s=time.total_s,
            preemptions=time.preempted.times,
            recomputed_tokens=time.preempted.recomputed_tokens,
            moves=time.moves,
            losses=time.losses,
        ),
        stop_string=why if isinstance(why, str) else None,
        stop_token_id=why if isinstance(why, int) else None,
    )


def _finished_of(message: pb.Finished) -> Finished:
    usage, time = message.usage, message.overhead
    preempted = Preempted(time.preemptions, time.recomputed_tokens)
    return Finished(
        message.request_id,
        _reason_of(message.reason),
        Usage(usage.prompt_tokens, usage.output_tokens, usage.cached_tokens, usage.reasoning_tokens),
        queue_s=message.queue_s,
        overhead=Overhead(
            time.tokenize_s, time.queue_s, time.first_token_s, time.total_s, preempted, time.moves, time.losses
        )
        if message.HasField("overhead")
        else None,
        stop_reason=_stop_reason_of(message),
        exact=not message.inexact,
    )
