"""Internal records <-> protobuf: total both ways, checked by round-trip property tests."""

from collections.abc import Iterable

from rayline.protos import internal_pb2 as pb
from rayline.protos.errors import error_of
from rayline.protos.plan import Admission, Plan, Sampled, Slice, StepResult
from rayline.protos.types import (
    Begun,
    EngineEvent,
    EngineRequest,
    Failed,
    Finished,
    FinishReason,
    GroupInfo,
    GroupLoad,
    TokenEvent,
    TokenLogprob,
    Usage,
)
from rayline.protos.wire import params_of, params_to_pb

SECRET_KEY = "rayline-secret"  # metadata with which a router shows a leader the deployment's secret


def plan_to_pb(plan: Plan) -> pb.Plan:
    admitted = [
        pb.Admission(
            sequence=a.sequence,
            prompt_ids=a.prompt_ids,
            output_ids=a.output_ids,
            params=params_to_pb(a.params),
        )
        for a in plan.admitted
    ]
    slices = [
        pb.Slice(
            sequence=s.sequence,
            start=s.start,
            count=s.count,
            first_block=s.first_block,
            block_ids=s.block_ids,
            samples=s.samples,
        )
        for s in plan.slices
    ]
    return pb.Plan(epoch=plan.epoch, step=plan.step, admitted=admitted, slices=slices, released=plan.released)


def plan_of(message: pb.Plan) -> Plan:
    return Plan(
        epoch=message.epoch,
        step=message.step,
        admitted=tuple(
            Admission(a.sequence, tuple(a.prompt_ids), tuple(a.output_ids), params_of(a.params))
            for a in message.admitted
        ),
        slices=tuple(
            Slice(s.sequence, s.start, s.count, s.first_block, tuple(s.block_ids), s.samples) for s in message.slices
        ),
        released=tuple(message.released),
    )


def result_to_pb(result: StepResult) -> pb.StepResult:
    sampled = [
        pb.Sampled(sequence=s.sequence, token_id=s.token_id, logprob=s.logprob, top_logprobs=_top_to_pb(s.top_logprobs))
        for s in result.sampled
    ]
    return pb.StepResult(epoch=result.epoch, step=result.step, sampled=sampled, busy_s=result.busy_s)


def result_of(message: pb.StepResult) -> StepResult:
    sampled = tuple(
        Sampled(s.sequence, s.token_id, s.logprob if s.HasField("logprob") else None, _top_of(s.top_logprobs))
        for s in message.sampled
    )
    return StepResult(message.epoch, message.step, sampled, message.busy_s)


def submit_to_pb(stream: int, request: EngineRequest) -> pb.Submit:
    return pb.Submit(
        stream=stream,
        request_id=request.request_id,
        prompt_ids=request.prompt_ids,
        output_ids=request.output_ids,
        params=params_to_pb(request.params),
        priority=request.priority,
    )


def request_of(message: pb.Submit) -> EngineRequest:
    return EngineRequest(
        request_id=message.request_id,
        prompt_ids=tuple(message.prompt_ids),
        params=params_of(message.params),
        output_ids=tuple(message.output_ids),
        priority=message.priority,
    )


def add_event(step: pb.Step, stream: int, event: EngineEvent) -> None:
    """Append an engine event of request number `stream` to a step message."""
    if isinstance(event, TokenEvent):
        step.tokens.add(
            stream=stream,
            index=event.index,
            token_id=event.token_id,
            logprob=event.logprob,
            top_logprobs=_top_to_pb(event.top_logprobs),
            begun=event.begun and pb.Begun(cached_tokens=event.begun.cached_tokens, queue_s=event.begun.queue_s),
        )
    elif isinstance(event, Finished):
        step.finished.add(
            stream=stream,
            reason=event.reason.value,
            prompt_tokens=event.usage.prompt_tokens,
            output_tokens=event.usage.output_tokens,
            cached_tokens=event.usage.cached_tokens,
            queue_s=event.queue_s,
            stop_token=event.stop_reason if isinstance(event.stop_reason, int) else None,
        )
    else:
        step.failed.add(
            stream=stream,
            kind=event.error.kind,
            message=event.error.message,
            field=event.error.field or "",
            retry_after_s=event.error.retry_after_s or 0.0,
        )


def token_of(message: pb.Token, request_id: str) -> TokenEvent:
    logprob = message.logprob if message.HasField("logprob") else None
    begun = Begun(message.begun.cached_tokens, message.begun.queue_s) if message.HasField("begun") else None
    return TokenEvent(request_id, message.index, message.token_id, logprob, _top_of(message.top_logprobs), begun)


def finished_of(message: pb.Finished, request_id: str) -> Finished:
    return Finished(
        request_id=request_id,
        reason=FinishReason(message.reason),
        usage=Usage(message.prompt_tokens, message.output_tokens, message.cached_tokens),
        queue_s=message.queue_s,
        stop_reason=message.stop_token if message.HasField("stop_token") else None,
    )


def failed_of(message: pb.Failed, request_id: str) -> Failed:
    error = error_of(
        message.kind,
        message.message,
        field=message.field or None,
        retry_after_s=message.retry_after_s or None,
    )
    return Failed(request_id, error)


def load_to_pb(load: GroupLoad) -> pb.Load:
    return pb.Load(
        running=load.running,
        waiting=load.waiting,
        outstanding_tokens=load.outstanding_tokens,
        free_blocks=load.free_blocks,
        total_blocks=load.total_blocks,
        draining=load.draining,
    )


def load_of(message: pb.Load) -> GroupLoad:
    return GroupLoad(
        running=message.running,
        waiting=message.waiting,
        outstanding_tokens=message.outstanding_tokens,
        free_blocks=message.free_blocks,
        total_blocks=message.total_blocks,
        draining=message.draining,
    )


def info_to_pb(info: GroupInfo) -> pb.Welcome:
    return pb.Welcome(
        group_id=info.group_id,
        model=info.model,
        numerics=info.numerics,
        exact=info.exact,
        max_model_len=info.max_model_len,
        vocab_size=info.vocab_size,
        block_tokens=info.block_tokens,
        total_blocks=info.total_blocks,
        max_waiting=info.max_waiting,
        epoch=info.epoch,
    )


def info_of(message: pb.Welcome) -> GroupInfo:
    return GroupInfo(
        group_id=message.group_id,
        model=message.model,
        numerics=message.numerics,
        exact=message.exact,
        max_model_len=message.max_model_len,
        vocab_size=message.vocab_size,
        block_tokens=message.block_tokens,
        total_blocks=message.total_blocks,
        max_waiting=message.max_waiting,
        epoch=message.epoch,
    )


def _top_to_pb(top: tuple[TokenLogprob, ...]) -> list[pb.TokenLogprob]:
    return [pb.TokenLogprob(token_id=t.token_id, logprob=t.logprob) for t in top]


def _top_of(top: Iterable[pb.TokenLogprob]) -> tuple[TokenLogprob, ...]:
    return tuple(TokenLogprob(t.token_id, t.logprob) for t in top)
