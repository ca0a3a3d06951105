"""What routers and leaders tell each other <-> protobuf: total both ways, checked by round-trip property tests."""

from rayline.protos import internal_pb2 as pb
from rayline.protos.blame import Presence
from rayline.protos.errors import error_of
from rayline.protos.events import (
    Beam,
    Begun,
    EngineEvent,
    Failed,
    Finished,
    FinishReason,
    Preempted,
    PromptScores,
    Searched,
    TokenEvent,
    Usage,
)
from rayline.protos.group import GroupInfo, GroupLoad
from rayline.protos.journal import Ballot, KeptAs
from rayline.protos.params_wire import params_of, params_to_pb
from rayline.protos.plan_wire import rules_of, rules_to_pb, scores_of, scores_to_pb, top_of, top_to_pb
from rayline.protos.token_ids import packed, unpacked
from rayline.protos.types import EngineRequest

SECRET_KEY = "rayline-secret"  # metadata with which a router shows a leader the deployment's secret


def submit_to_pb(stream: int, request: EngineRequest, repeats_prompt: bool = False) -> pb.Submit:
    """`repeats_prompt`: the submit before this one has the same prompt, which is left out."""
    return pb.Submit(
        stream=stream,
        request_id=request.request_id,
        prompt_ids=b"" if repeats_prompt else packed(request.prompt_ids),
        repeats_prompt=repeats_prompt,
        output_ids=request.output_ids,
        params=params_to_pb(request.params),
        priority=request.priority,
        tenant=request.tenant,
        cache_salt=request.cache_salt,
        family=request.family,
        rules=rules_to_pb(request.rules),
        timeout_s=request.timeout_s,
        apart_at=request.apart_at,
        is_stalled=request.is_stalled,
        kept=None if request.kept is None else _kept_to_pb(request.kept),
    )


def request_of(message: pb.Submit, prompt_before: tuple[int, ...] = ()) -> EngineRequest:
    """`prompt_before`: the prompt of the submit before this one on the channel."""
    return EngineRequest(
        request_id=message.request_id,
        prompt_ids=prompt_before if message.repeats_prompt else unpacked(message.prompt_ids),
        params=params_of(message.params),
        output_ids=tuple(message.output_ids),
        priority=message.priority,
        tenant=message.tenant,
        cache_salt=message.cache_salt,
        family=message.family,
        rules=rules_of(message.rules),
        timeout_s=message.timeout_s if message.HasField("timeout_s") else None,
        apart_at=message.apart_at if message.HasField("apart_at") else None,
        is_stalled=message.is_stalled,
        kept=_kept_of(message.kept) if message.HasField("kept") else None,
    )


def add_event(step: pb.Step, stream: int, event: EngineEvent) -> None:
    """Append an engine event of request number `stream` to a step message."""
    if isinstance(event, TokenEvent):
        step.tokens.add(
            stream=stream,
            index=event.index,
            token_id=event.token_id,
            logprob=event.logprob,
            top_logprobs=top_to_pb(event.top_logprobs),
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
            preemptions=event.preempted.times,
            recomputed_tokens=event.preempted.recomputed_tokens,
            beams=[_beam_to_pb(beam) for beam in event.beams],
        )
    elif isinstance(event, PromptScores):
        step.scores.add(stream=stream, start=event.start, tokens=scores_to_pb(event.tokens))
    elif isinstance(event, Searched):
        step.searched.add(stream=stream, tokens=event.tokens)
    else:
        step.failed.add(
            stream=stream,
            kind=event.error.kind,
            message=event.error.message,
            field=event.error.field or "",
            retry_after_s=event.error.retry_after_s or 0.0,
            presence=event.presence or "",
        )


def token_of(message: pb.Token, request_id: str) -> TokenEvent:
    logprob = message.logprob if message.HasField("logprob") else None
    begun = Begun(message.begun.cached_tokens, message.begun.queue_s) if message.HasField("begun") else None
    return TokenEvent(request_id, message.index, message.token_id, logprob, top_of(message.top_logprobs), begun)


def finished_of(message: pb.Finished, request_id: str) -> Finished:
    return Finished(
        request_id=request_id,
        reason=FinishReason(message.reason),
        usage=Usage(message.prompt_tokens, message.output_tokens, message.cached_tokens),
        queue_s=message.queue_s,
        stop_reason=message.stop_token if message.HasField("stop_token") else None,
        preempted=Preempted(message.preemptions, message.recomputed_tokens),
        beams=tuple(_beam_of(beam) for beam in message.beams),
    )


def prompt_scores_of(message: pb.PromptScores, request_id: str) -> PromptScores:
    return PromptScores(request_id, message.start, scores_of(message.tokens))


def searched_of(message: pb.Searched, request_id: str) -> Searched:
    return Searched(request_id, message.tokens)


def failed_of(message: pb.Failed, request_id: str) -> Failed:
    error = error_of(
        message.kind,
        message.message,
        field=message.field or None,
        retry_after_s=message.retry_after_s or None,
    )
    return Failed(request_id, error, Presence(message.presence) if message.presence else None)


def load_to_pb(load: GroupLoad) -> pb.Load:
    return pb.Load(
        running=load.running,
        waiting=load.waiting,
        outstanding_tokens=load.outstanding_tokens,
        free_blocks=load.free_blocks,
        total_blocks=load.total_blocks,
        draining=load.draining,
        preemptions=load.preemptions,
        recomputed_tokens=load.recomputed_tokens,
        tokens_per_s=load.tokens_per_s,
        waiting_tokens=load.waiting_tokens,
    )


def load_of(message: pb.Load) -> GroupLoad:
    return GroupLoad(
        running=message.running,
        waiting=message.waiting,
        outstanding_tokens=message.outstanding_tokens,
        free_blocks=message.free_blocks,
        total_blocks=message.total_blocks,
        draining=message.draining,
        preemptions=tuple(message.preemptions),
        recomputed_tokens=message.recomputed_tokens,
        tokens_per_s=message.tokens_per_s,
        waiting_tokens=message.waiting_tokens,
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
        max_waiting_tokens=info.max_waiting_tokens,
        weights=info.weights,
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
        max_waiting_tokens=message.max_waiting_tokens,
        weights=message.weights,
    )


def ballot_to_pb(ballot: Ballot) -> pb.Ballot:
    return pb.Ballot(turn=ballot.turn, router=ballot.router)


def ballot_of(message: pb.Ballot) -> Ballot:
    return Ballot(message.turn, message.router)


def _kept_to_pb(kept: KeptAs) -> pb.KeptAs:
    return pb.KeptAs(key=kept.key, choice=kept.choice, ballot=ballot_to_pb(kept.ballot), run=kept.run)


def _kept_of(message: pb.KeptAs) -> KeptAs:
    return KeptAs(message.key, message.choice, ballot_of(message.ballot), message.run)


def _beam_to_pb(beam: Beam) -> pb.Beam:
    return pb.Beam(
        token_ids=beam.token_ids,
        score=beam.score,
        logprobs=beam.logprobs,
        reason=beam.reason.value,
        stop_token=beam.stop_token,
    )


def _beam_of(message: pb.Beam) -> Beam:
    return Beam(
        tuple(message.token_ids),
        message.score,
        tuple(message.logprobs),
        FinishReason(message.reason),
        message.stop_token if message.HasField("stop_token") else None,
    )
