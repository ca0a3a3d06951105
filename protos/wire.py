"""Public types <-> the messages of inference.proto: total both ways, checked by round-trip property tests."""

from collections.abc import Callable, Iterable

from rayline.protos import inference_pb2 as pb
from rayline.protos.errors import InternalError, RaylineError, error_of
from rayline.protos.types import (
    ChatMessage,
    Delta,
    DeltaLogprob,
    Failed,
    Finished,
    FinishReason,
    Overhead,
    SamplingParams,
    Spec,
    Started,
    StreamEvent,
    Usage,
)

REASON_TO_PB = {
    FinishReason.STOP: pb.FINISH_REASON_STOP,
    FinishReason.LENGTH: pb.FINISH_REASON_LENGTH,
    FinishReason.ABORT: pb.FINISH_REASON_ABORT,
}
REASON_OF = {number: reason for reason, number in REASON_TO_PB.items()}


def params_to_pb(params: SamplingParams) -> pb.SamplingParams:
    return pb.SamplingParams(
        temperature=params.temperature,
        top_k=params.top_k,
        top_p=params.top_p,
        min_p=params.min_p,
        seed=params.seed,
        max_tokens=params.max_tokens,
        min_tokens=params.min_tokens,
        stop=params.stop,
        stop_token_ids=params.stop_token_ids,
        ignore_eos=params.ignore_eos,
        logprobs=params.logprobs,
    )


def params_of(message: pb.SamplingParams) -> SamplingParams:
    """Absent fields take the defaults of SamplingParams."""
    plain = SamplingParams()
    return SamplingParams(
        temperature=message.temperature if message.HasField("temperature") else plain.temperature,
        top_k=message.top_k,
        top_p=message.top_p if message.HasField("top_p") else plain.top_p,
        min_p=message.min_p,
        seed=message.seed if message.HasField("seed") else None,
        max_tokens=message.max_tokens if message.HasField("max_tokens") else None,
        min_tokens=message.min_tokens,
        stop=tuple(message.stop),
        stop_token_ids=tuple(message.stop_token_ids),
        ignore_eos=message.ignore_eos,
        logprobs=message.logprobs if message.HasField("logprobs") else None,
    )


def spec_to_pb(spec: Spec) -> pb.GenerateRequest | pb.ChatRequest:
    """A ChatRequest when the spec holds messages, a GenerateRequest otherwise."""
    params = params_to_pb(spec.params)
    if spec.messages is not None:
        return pb.ChatRequest(
            model=spec.model,
            messages=messages_to_pb(spec.messages),
            params=params,
            priority=spec.priority,
            request_id=spec.request_id,
        )
    ids = None if spec.prompt_ids is None else pb.TokenIds(ids=spec.prompt_ids)
    return pb.GenerateRequest(
        model=spec.model,
        text=spec.prompt,
        token_ids=ids,
        params=params,
        priority=spec.priority,
        request_id=spec.request_id,
    )


def spec_of(message: pb.GenerateRequest | pb.ChatRequest, new_id: Callable[[], str]) -> Spec:
    """The spec of either request; `new_id` names one that comes without a name."""
    request_id = message.request_id or new_id()
    params = params_of(message.params)
    if isinstance(message, pb.ChatRequest):
        messages = messages_of(message.messages)
        return Spec(request_id, message.model, params, messages=messages, priority=message.priority)
    form = message.WhichOneof("prompt")
    return Spec(
        request_id,
        message.model,
        params,
        prompt=message.text if form == "text" else None,
        prompt_ids=tuple(message.token_ids.ids) if form == "token_ids" else None,
        priority=message.priority,
    )


def messages_to_pb(messages: tuple[ChatMessage, ...]) -> list[pb.ChatMessage]:
    return [pb.ChatMessage(role=message.role, content=message.content) for message in messages]


def messages_of(messages: Iterable[pb.ChatMessage]) -> tuple[ChatMessage, ...]:
    return tuple(ChatMessage(message.role, message.content) for message in messages)


def event_to_pb(index: int, event: StreamEvent) -> pb.StreamResponse:
    """`index` counts the stream's events from 0."""
    match event:
        case Delta():
            return pb.StreamResponse(index=index, delta=_delta_to_pb(event))
        case Started():
            return pb.StreamResponse(index=index, started=_started_to_pb(event))
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
            return Started(m.request_id, m.numerics, m.exact, m.prompt_tokens)
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
        request_id=event.request_id, numerics=event.numerics, exact=event.exact, prompt_tokens=event.prompt_tokens
    )


def _delta_to_pb(event: Delta) -> pb.Delta:
    return pb.Delta(
        choice=event.choice,
        token_ids=event.token_ids,
        text=event.text,
        logprobs=[
            pb.Logprob(
                chosen=_candidate(entry.token_id, entry.text, entry.logprob), top=[_candidate(*c) for c in entry.top]
            )
            for entry in event.logprobs
        ],
    )


def _candidate(token_id: int, text: str, logprob: float) -> pb.Candidate:
    return pb.Candidate(token_id=token_id, text=text, logprob=logprob)


def _delta_of(message: pb.Delta) -> Delta:
    logprobs = tuple(
        DeltaLogprob(
            entry.chosen.token_id,
            entry.chosen.text,
            entry.chosen.logprob,
            tuple((c.token_id, c.text, c.logprob) for c in entry.top),
        )
        for entry in message.logprobs
    )
    return Delta(message.choice, tuple(message.token_ids), message.text, logprobs)


def _finished_to_pb(event: Finished) -> pb.Finished:
    usage, time, why = event.usage, event.overhead, event.stop_reason
    return pb.Finished(
        request_id=event.request_id,
        reason=REASON_TO_PB[event.reason],
        usage=pb.Usage(
            prompt_tokens=usage.prompt_tokens, output_tokens=usage.output_tokens, cached_tokens=usage.cached_tokens
        ),
        queue_s=event.queue_s,
        overhead=None
        if time is None
        else pb.Overhead(
            tokenize_s=time.tokenize_s, queue_s=time.queue_s, first_token_s=time.first_token_s, total_s=time.total_s
        ),
        stop_string=why if isinstance(why, str) else None,
        stop_token_id=why if isinstance(why, int) else None,
    )


def _finished_of(message: pb.Finished) -> Finished:
    usage, time = message.usage, message.overhead
    why: str | int | None = None
    match message.WhichOneof("stop_reason"):
        case "stop_string":
            why = message.stop_string
        case "stop_token_id":
            why = message.stop_token_id
    return Finished(
        message.request_id,
        REASON_OF.get(message.reason, FinishReason.STOP),  # a reason of a newer peer: it did end well
        Usage(usage.prompt_tokens, usage.output_tokens, usage.cached_tokens),
        queue_s=message.queue_s,
        overhead=Overhead(time.tokenize_s, time.queue_s, time.first_token_s, time.total_s)
        if message.HasField("overhead")
        else None,
        stop_reason=why,
    )
