from rayline.protos import inference_pb2 as _inference_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class TokenLogprob(_message.Message):
    __slots__ = ("token_id", "logprob")
    TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    LOGPROB_FIELD_NUMBER: _ClassVar[int]
    token_id: int
    logprob: float
    def __init__(self, token_id: _Optional[int] = ..., logprob: _Optional[float] = ...) -> None: ...

class PromptScore(_message.Message):
    __slots__ = ("own", "top")
    OWN_FIELD_NUMBER: _ClassVar[int]
    TOP_FIELD_NUMBER: _ClassVar[int]
    own: TokenLogprob
    top: _containers.RepeatedCompositeFieldContainer[TokenLogprob]
    def __init__(self, own: _Optional[_Union[TokenLogprob, _Mapping]] = ..., top: _Optional[_Iterable[_Union[TokenLogprob, _Mapping]]] = ...) -> None: ...

class Thinking(_message.Message):
    __slots__ = ("start_ids", "end_ids", "budget_tokens", "is_open")
    START_IDS_FIELD_NUMBER: _ClassVar[int]
    END_IDS_FIELD_NUMBER: _ClassVar[int]
    BUDGET_TOKENS_FIELD_NUMBER: _ClassVar[int]
    IS_OPEN_FIELD_NUMBER: _ClassVar[int]
    start_ids: _containers.RepeatedScalarFieldContainer[int]
    end_ids: _containers.RepeatedScalarFieldContainer[int]
    budget_tokens: int
    is_open: bool
    def __init__(self, start_ids: _Optional[_Iterable[int]] = ..., end_ids: _Optional[_Iterable[int]] = ..., budget_tokens: _Optional[int] = ..., is_open: _Optional[bool] = ...) -> None: ...

class TokenRules(_message.Message):
    __slots__ = ("bad_words", "grammar", "thinking")
    BAD_WORDS_FIELD_NUMBER: _ClassVar[int]
    GRAMMAR_FIELD_NUMBER: _ClassVar[int]
    THINKING_FIELD_NUMBER: _ClassVar[int]
    bad_words: _containers.RepeatedCompositeFieldContainer[_inference_pb2.TokenIds]
    grammar: str
    thinking: Thinking
    def __init__(self, bad_words: _Optional[_Iterable[_Union[_inference_pb2.TokenIds, _Mapping]]] = ..., grammar: _Optional[str] = ..., thinking: _Optional[_Union[Thinking, _Mapping]] = ...) -> None: ...

class RankSpec(_message.Message):
    __slots__ = ("path", "dtype", "device", "tp_rank", "tp_size", "stage", "pp_size", "threads", "block_tokens", "epoch", "store_host", "store_port", "kernels", "quantize", "activations", "compile", "static_cache", "attention", "all_reduce", "graph_rows", "async_scheduling")
    PATH_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    TP_RANK_FIELD_NUMBER: _ClassVar[int]
    TP_SIZE_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    PP_SIZE_FIELD_NUMBER: _ClassVar[int]
    THREADS_FIELD_NUMBER: _ClassVar[int]
    BLOCK_TOKENS_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    STORE_HOST_FIELD_NUMBER: _ClassVar[int]
    STORE_PORT_FIELD_NUMBER: _ClassVar[int]
    KERNELS_FIELD_NUMBER: _ClassVar[int]
    QUANTIZE_FIELD_NUMBER: _ClassVar[int]
    ACTIVATIONS_FIELD_NUMBER: _ClassVar[int]
    COMPILE_FIELD_NUMBER: _ClassVar[int]
    STATIC_CACHE_FIELD_NUMBER: _ClassVar[int]
    ATTENTION_FIELD_NUMBER: _ClassVar[int]
    ALL_REDUCE_FIELD_NUMBER: _ClassVar[int]
    GRAPH_ROWS_FIELD_NUMBER: _ClassVar[int]
    ASYNC_SCHEDULING_FIELD_NUMBER: _ClassVar[int]
    path: str
    dtype: str
    device: str
    tp_rank: int
    tp_size: int
    stage: int
    pp_size: int
    threads: int
    block_tokens: int
    epoch: int
    store_host: str
    store_port: int
    kernels: str
    quantize: str
    activations: str
    compile: bool
    static_cache: bool
    attention: str
    all_reduce: str
    graph_rows: int
    async_scheduling: str
    def __init__(self, path: _Optional[str] = ..., dtype: _Optional[str] = ..., device: _Optional[str] = ..., tp_rank: _Optional[int] = ..., tp_size: _Optional[int] = ..., stage: _Optional[int] = ..., pp_size: _Optional[int] = ..., threads: _Optional[int] = ..., block_tokens: _Optional[int] = ..., epoch: _Optional[int] = ..., store_host: _Optional[str] = ..., store_port: _Optional[int] = ..., kernels: _Optional[str] = ..., quantize: _Optional[str] = ..., activations: _Optional[str] = ..., compile: _Optional[bool] = ..., static_cache: _Optional[bool] = ..., attention: _Optional[str] = ..., all_reduce: _Optional[str] = ..., graph_rows: _Optional[int] = ..., async_scheduling: _Optional[str] = ...) -> None: ...

class Admission(_message.Message):
    __slots__ = ("sequence", "prompt_ids", "output_ids", "params", "rules")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    PROMPT_IDS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_IDS_FIELD_NUMBER: _ClassVar[int]
    PARAMS_FIELD_NUMBER: _ClassVar[int]
    RULES_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    prompt_ids: _containers.RepeatedScalarFieldContainer[int]
    output_ids: _containers.RepeatedScalarFieldContainer[int]
    params: _inference_pb2.SamplingParams
    rules: TokenRules
    def __init__(self, sequence: _Optional[int] = ..., prompt_ids: _Optional[_Iterable[int]] = ..., output_ids: _Optional[_Iterable[int]] = ..., params: _Optional[_Union[_inference_pb2.SamplingParams, _Mapping]] = ..., rules: _Optional[_Union[TokenRules, _Mapping]] = ...) -> None: ...

class Fork(_message.Message):
    __slots__ = ("sequence", "parent", "params")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    PARENT_FIELD_NUMBER: _ClassVar[int]
    PARAMS_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    parent: int
    params: _inference_pb2.SamplingParams
    def __init__(self, sequence: _Optional[int] = ..., parent: _Optional[int] = ..., params: _Optional[_Union[_inference_pb2.SamplingParams, _Mapping]] = ...) -> None: ...

class Gain(_message.Message):
    __slots__ = ("sequence", "token_id")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    token_id: int
    def __init__(self, sequence: _Optional[int] = ..., token_id: _Optional[int] = ...) -> None: ...

class Copy(_message.Message):
    __slots__ = ("source", "target")
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    source: int
    target: int
    def __init__(self, source: _Optional[int] = ..., target: _Optional[int] = ...) -> None: ...

class Slice(_message.Message):
    __slots__ = ("sequence", "start", "count", "first_block", "block_ids", "samples", "forks", "scores")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    FIRST_BLOCK_FIELD_NUMBER: _ClassVar[int]
    BLOCK_IDS_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    FORKS_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    start: int
    count: int
    first_block: int
    block_ids: _containers.RepeatedScalarFieldContainer[int]
    samples: bool
    forks: _containers.RepeatedScalarFieldContainer[int]
    scores: bool
    def __init__(self, sequence: _Optional[int] = ..., start: _Optional[int] = ..., count: _Optional[int] = ..., first_block: _Optional[int] = ..., block_ids: _Optional[_Iterable[int]] = ..., samples: _Optional[bool] = ..., forks: _Optional[_Iterable[int]] = ..., scores: _Optional[bool] = ...) -> None: ...

class Plan(_message.Message):
    __slots__ = ("epoch", "step", "admitted", "slices", "released", "forked", "gained", "copies")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    ADMITTED_FIELD_NUMBER: _ClassVar[int]
    SLICES_FIELD_NUMBER: _ClassVar[int]
    RELEASED_FIELD_NUMBER: _ClassVar[int]
    FORKED_FIELD_NUMBER: _ClassVar[int]
    GAINED_FIELD_NUMBER: _ClassVar[int]
    COPIES_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    step: int
    admitted: _containers.RepeatedCompositeFieldContainer[Admission]
    slices: _containers.RepeatedCompositeFieldContainer[Slice]
    released: _containers.RepeatedScalarFieldContainer[int]
    forked: _containers.RepeatedCompositeFieldContainer[Fork]
    gained: _containers.RepeatedCompositeFieldContainer[Gain]
    copies: _containers.RepeatedCompositeFieldContainer[Copy]
    def __init__(self, epoch: _Optional[int] = ..., step: _Optional[int] = ..., admitted: _Optional[_Iterable[_Union[Admission, _Mapping]]] = ..., slices: _Optional[_Iterable[_Union[Slice, _Mapping]]] = ..., released: _Optional[_Iterable[int]] = ..., forked: _Optional[_Iterable[_Union[Fork, _Mapping]]] = ..., gained: _Optional[_Iterable[_Union[Gain, _Mapping]]] = ..., copies: _Optional[_Iterable[_Union[Copy, _Mapping]]] = ...) -> None: ...

class Sampled(_message.Message):
    __slots__ = ("sequence", "token_id", "logprob", "top_logprobs")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    LOGPROB_FIELD_NUMBER: _ClassVar[int]
    TOP_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    token_id: int
    logprob: float
    top_logprobs: _containers.RepeatedCompositeFieldContainer[TokenLogprob]
    def __init__(self, sequence: _Optional[int] = ..., token_id: _Optional[int] = ..., logprob: _Optional[float] = ..., top_logprobs: _Optional[_Iterable[_Union[TokenLogprob, _Mapping]]] = ...) -> None: ...

class Candidates(_message.Message):
    __slots__ = ("sequence", "tokens")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    tokens: _containers.RepeatedCompositeFieldContainer[TokenLogprob]
    def __init__(self, sequence: _Optional[int] = ..., tokens: _Optional[_Iterable[_Union[TokenLogprob, _Mapping]]] = ...) -> None: ...

class Scored(_message.Message):
    __slots__ = ("sequence", "start", "tokens")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    start: int
    tokens: _containers.RepeatedCompositeFieldContainer[PromptScore]
    def __init__(self, sequence: _Optional[int] = ..., start: _Optional[int] = ..., tokens: _Optional[_Iterable[_Union[PromptScore, _Mapping]]] = ...) -> None: ...

class Refused(_message.Message):
    __slots__ = ("sequence", "message")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    message: str
    def __init__(self, sequence: _Optional[int] = ..., message: _Optional[str] = ...) -> None: ...

class StepResult(_message.Message):
    __slots__ = ("epoch", "step", "sampled", "busy_s", "sample_s", "candidates", "scored", "refused")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    SAMPLED_FIELD_NUMBER: _ClassVar[int]
    BUSY_S_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_S_FIELD_NUMBER: _ClassVar[int]
    CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    SCORED_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    step: int
    sampled: _containers.RepeatedCompositeFieldContainer[Sampled]
    busy_s: float
    sample_s: float
    candidates: _containers.RepeatedCompositeFieldContainer[Candidates]
    scored: _containers.RepeatedCompositeFieldContainer[Scored]
    refused: _containers.RepeatedCompositeFieldContainer[Refused]
    def __init__(self, epoch: _Optional[int] = ..., step: _Optional[int] = ..., sampled: _Optional[_Iterable[_Union[Sampled, _Mapping]]] = ..., busy_s: _Optional[float] = ..., sample_s: _Optional[float] = ..., candidates: _Optional[_Iterable[_Union[Candidates, _Mapping]]] = ..., scored: _Optional[_Iterable[_Union[Scored, _Mapping]]] = ..., refused: _Optional[_Iterable[_Union[Refused, _Mapping]]] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("secret", "rank")
    SECRET_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    secret: str
    rank: int
    def __init__(self, secret: _Optional[str] = ..., rank: _Optional[int] = ...) -> None: ...

class Progress(_message.Message):
    __slots__ = ("phase", "done", "total")
    PHASE_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    phase: str
    done: int
    total: int
    def __init__(self, phase: _Optional[str] = ..., done: _Optional[int] = ..., total: _Optional[int] = ...) -> None: ...

class Loaded(_message.Message):
    __slots__ = ("host", "weight_bytes", "read_bytes", "free_bytes", "block_bytes")
    HOST_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_BYTES_FIELD_NUMBER: _ClassVar[int]
    READ_BYTES_FIELD_NUMBER: _ClassVar[int]
    FREE_BYTES_FIELD_NUMBER: _ClassVar[int]
    BLOCK_BYTES_FIELD_NUMBER: _ClassVar[int]
    host: str
    weight_bytes: int
    read_bytes: int
    free_bytes: int
    block_bytes: int
    def __init__(self, host: _Optional[str] = ..., weight_bytes: _Optional[int] = ..., read_bytes: _Optional[int] = ..., free_bytes: _Optional[int] = ..., block_bytes: _Optional[int] = ...) -> None: ...

class Allocate(_message.Message):
    __slots__ = ("blocks",)
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    blocks: int
    def __init__(self, blocks: _Optional[int] = ...) -> None: ...

class Ready(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StatsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RankStats(_message.Message):
    __slots__ = ("rank", "stage", "busy_s", "wall_s", "weight_bytes", "cache_bytes", "resident_bytes", "read_bytes", "step_bytes", "sample_s", "sample_steps", "gap_s", "steps")
    RANK_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    BUSY_S_FIELD_NUMBER: _ClassVar[int]
    WALL_S_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_BYTES_FIELD_NUMBER: _ClassVar[int]
    CACHE_BYTES_FIELD_NUMBER: _ClassVar[int]
    RESIDENT_BYTES_FIELD_NUMBER: _ClassVar[int]
    READ_BYTES_FIELD_NUMBER: _ClassVar[int]
    STEP_BYTES_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_S_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_STEPS_FIELD_NUMBER: _ClassVar[int]
    GAP_S_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    rank: int
    stage: int
    busy_s: float
    wall_s: float
    weight_bytes: int
    cache_bytes: int
    resident_bytes: int
    read_bytes: int
    step_bytes: int
    sample_s: float
    sample_steps: int
    gap_s: float
    steps: int
    def __init__(self, rank: _Optional[int] = ..., stage: _Optional[int] = ..., busy_s: _Optional[float] = ..., wall_s: _Optional[float] = ..., weight_bytes: _Optional[int] = ..., cache_bytes: _Optional[int] = ..., resident_bytes: _Optional[int] = ..., read_bytes: _Optional[int] = ..., step_bytes: _Optional[int] = ..., sample_s: _Optional[float] = ..., sample_steps: _Optional[int] = ..., gap_s: _Optional[float] = ..., steps: _Optional[int] = ...) -> None: ...

class RankFailed(_message.Message):
    __slots__ = ("kind", "message")
    KIND_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    kind: str
    message: str
    def __init__(self, kind: _Optional[str] = ..., message: _Optional[str] = ...) -> None: ...

class Stop(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class LeaderFrame(_message.Message):
    __slots__ = ("load", "allocate", "plan", "stats", "stop")
    LOAD_FIELD_NUMBER: _ClassVar[int]
    ALLOCATE_FIELD_NUMBER: _ClassVar[int]
    PLAN_FIELD_NUMBER: _ClassVar[int]
    STATS_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    load: RankSpec
    allocate: Allocate
    plan: Plan
    stats: StatsRequest
    stop: Stop
    def __init__(self, load: _Optional[_Union[RankSpec, _Mapping]] = ..., allocate: _Optional[_Union[Allocate, _Mapping]] = ..., plan: _Optional[_Union[Plan, _Mapping]] = ..., stats: _Optional[_Union[StatsRequest, _Mapping]] = ..., stop: _Optional[_Union[Stop, _Mapping]] = ...) -> None: ...

class WorkerFrame(_message.Message):
    __slots__ = ("hello", "progress", "loaded", "ready", "result", "stats", "failed")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    LOADED_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    STATS_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    progress: Progress
    loaded: Loaded
    ready: Ready
    result: StepResult
    stats: RankStats
    failed: RankFailed
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., progress: _Optional[_Union[Progress, _Mapping]] = ..., loaded: _Optional[_Union[Loaded, _Mapping]] = ..., ready: _Optional[_Union[Ready, _Mapping]] = ..., result: _Optional[_Union[StepResult, _Mapping]] = ..., stats: _Optional[_Union[RankStats, _Mapping]] = ..., failed: _Optional[_Union[RankFailed, _Mapping]] = ...) -> None: ...

class Submit(_message.Message):
    __slots__ = ("stream", "request_id", "prompt_ids", "output_ids", "params", "priority", "tenant", "cache_salt", "family", "rules", "repeats_prompt", "timeout_s", "apart_at", "is_stalled", "kept")
    STREAM_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    PROMPT_IDS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_IDS_FIELD_NUMBER: _ClassVar[int]
    PARAMS_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    CACHE_SALT_FIELD_NUMBER: _ClassVar[int]
    FAMILY_FIELD_NUMBER: _ClassVar[int]
    RULES_FIELD_NUMBER: _ClassVar[int]
    REPEATS_PROMPT_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_S_FIELD_NUMBER: _ClassVar[int]
    APART_AT_FIELD_NUMBER: _ClassVar[int]
    IS_STALLED_FIELD_NUMBER: _ClassVar[int]
    KEPT_FIELD_NUMBER: _ClassVar[int]
    stream: int
    request_id: str
    prompt_ids: bytes
    output_ids: _containers.RepeatedScalarFieldContainer[int]
    params: _inference_pb2.SamplingParams
    priority: int
    tenant: str
    cache_salt: str
    family: str
    rules: TokenRules
    repeats_prompt: bool
    timeout_s: float
    apart_at: int
    is_stalled: bool
    kept: KeptAs
    def __init__(self, stream: _Optional[int] = ..., request_id: _Optional[str] = ..., prompt_ids: _Optional[bytes] = ..., output_ids: _Optional[_Iterable[int]] = ..., params: _Optional[_Union[_inference_pb2.SamplingParams, _Mapping]] = ..., priority: _Optional[int] = ..., tenant: _Optional[str] = ..., cache_salt: _Optional[str] = ..., family: _Optional[str] = ..., rules: _Optional[_Union[TokenRules, _Mapping]] = ..., repeats_prompt: _Optional[bool] = ..., timeout_s: _Optional[float] = ..., apart_at: _Optional[int] = ..., is_stalled: _Optional[bool] = ..., kept: _Optional[_Union[KeptAs, _Mapping]] = ...) -> None: ...

class Abort(_message.Message):
    __slots__ = ("stream",)
    STREAM_FIELD_NUMBER: _ClassVar[int]
    stream: int
    def __init__(self, stream: _Optional[int] = ...) -> None: ...

class Ballot(_message.Message):
    __slots__ = ("turn", "router")
    TURN_FIELD_NUMBER: _ClassVar[int]
    ROUTER_FIELD_NUMBER: _ClassVar[int]
    turn: int
    router: str
    def __init__(self, turn: _Optional[int] = ..., router: _Optional[str] = ...) -> None: ...

class KeptAs(_message.Message):
    __slots__ = ("key", "choice", "ballot", "run")
    KEY_FIELD_NUMBER: _ClassVar[int]
    CHOICE_FIELD_NUMBER: _ClassVar[int]
    BALLOT_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    key: str
    choice: int
    ballot: Ballot
    run: int
    def __init__(self, key: _Optional[str] = ..., choice: _Optional[int] = ..., ballot: _Optional[_Union[Ballot, _Mapping]] = ..., run: _Optional[int] = ...) -> None: ...

class Trace(_message.Message):
    __slots__ = ("choice", "said", "is_ahead", "run")
    CHOICE_FIELD_NUMBER: _ClassVar[int]
    SAID_FIELD_NUMBER: _ClassVar[int]
    IS_AHEAD_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    choice: int
    said: Step
    is_ahead: bool
    run: int
    def __init__(self, choice: _Optional[int] = ..., said: _Optional[_Union[Step, _Mapping]] = ..., is_ahead: _Optional[bool] = ..., run: _Optional[int] = ...) -> None: ...

class JournalCall(_message.Message):
    __slots__ = ("number", "act", "key", "ballot", "record", "trace")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    ACT_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    BALLOT_FIELD_NUMBER: _ClassVar[int]
    RECORD_FIELD_NUMBER: _ClassVar[int]
    TRACE_FIELD_NUMBER: _ClassVar[int]
    number: int
    act: str
    key: str
    ballot: Ballot
    record: bytes
    trace: Trace
    def __init__(self, number: _Optional[int] = ..., act: _Optional[str] = ..., key: _Optional[str] = ..., ballot: _Optional[_Union[Ballot, _Mapping]] = ..., record: _Optional[bytes] = ..., trace: _Optional[_Union[Trace, _Mapping]] = ...) -> None: ...

class JournalAnswer(_message.Message):
    __slots__ = ("number", "accepted", "ballot", "record", "traces")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    BALLOT_FIELD_NUMBER: _ClassVar[int]
    RECORD_FIELD_NUMBER: _ClassVar[int]
    TRACES_FIELD_NUMBER: _ClassVar[int]
    number: int
    accepted: bool
    ballot: Ballot
    record: bytes
    traces: _containers.RepeatedCompositeFieldContainer[Trace]
    def __init__(self, number: _Optional[int] = ..., accepted: _Optional[bool] = ..., ballot: _Optional[_Union[Ballot, _Mapping]] = ..., record: _Optional[bytes] = ..., traces: _Optional[_Iterable[_Union[Trace, _Mapping]]] = ...) -> None: ...

class StreamRecord(_message.Message):
    __slots__ = ("generate", "chat", "seed", "created_s", "numerics", "exact", "note", "weights", "is_ahead", "prompt_ids")
    GENERATE_FIELD_NUMBER: _ClassVar[int]
    CHAT_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    CREATED_S_FIELD_NUMBER: _ClassVar[int]
    NUMERICS_FIELD_NUMBER: _ClassVar[int]
    EXACT_FIELD_NUMBER: _ClassVar[int]
    NOTE_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    IS_AHEAD_FIELD_NUMBER: _ClassVar[int]
    PROMPT_IDS_FIELD_NUMBER: _ClassVar[int]
    generate: _inference_pb2.GenerateRequest
    chat: _inference_pb2.ChatRequest
    seed: int
    created_s: float
    numerics: str
    exact: bool
    note: str
    weights: str
    is_ahead: bool
    prompt_ids: bytes
    def __init__(self, generate: _Optional[_Union[_inference_pb2.GenerateRequest, _Mapping]] = ..., chat: _Optional[_Union[_inference_pb2.ChatRequest, _Mapping]] = ..., seed: _Optional[int] = ..., created_s: _Optional[float] = ..., numerics: _Optional[str] = ..., exact: _Optional[bool] = ..., note: _Optional[str] = ..., weights: _Optional[str] = ..., is_ahead: _Optional[bool] = ..., prompt_ids: _Optional[bytes] = ...) -> None: ...

class Alive(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Suspect(_message.Message):
    __slots__ = ("fingerprint", "losses", "position", "is_guilty", "left_s")
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    LOSSES_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    IS_GUILTY_FIELD_NUMBER: _ClassVar[int]
    LEFT_S_FIELD_NUMBER: _ClassVar[int]
    fingerprint: str
    losses: int
    position: int
    is_guilty: bool
    left_s: float
    def __init__(self, fingerprint: _Optional[str] = ..., losses: _Optional[int] = ..., position: _Optional[int] = ..., is_guilty: _Optional[bool] = ..., left_s: _Optional[float] = ...) -> None: ...

class Blame(_message.Message):
    __slots__ = ("apart", "suspects")
    APART_FIELD_NUMBER: _ClassVar[int]
    SUSPECTS_FIELD_NUMBER: _ClassVar[int]
    apart: str
    suspects: _containers.RepeatedCompositeFieldContainer[Suspect]
    def __init__(self, apart: _Optional[str] = ..., suspects: _Optional[_Iterable[_Union[Suspect, _Mapping]]] = ...) -> None: ...

class RouterMessage(_message.Message):
    __slots__ = ("submit", "abort", "journal", "blame", "alive")
    SUBMIT_FIELD_NUMBER: _ClassVar[int]
    ABORT_FIELD_NUMBER: _ClassVar[int]
    JOURNAL_FIELD_NUMBER: _ClassVar[int]
    BLAME_FIELD_NUMBER: _ClassVar[int]
    ALIVE_FIELD_NUMBER: _ClassVar[int]
    submit: Submit
    abort: Abort
    journal: JournalCall
    blame: Blame
    alive: Alive
    def __init__(self, submit: _Optional[_Union[Submit, _Mapping]] = ..., abort: _Optional[_Union[Abort, _Mapping]] = ..., journal: _Optional[_Union[JournalCall, _Mapping]] = ..., blame: _Optional[_Union[Blame, _Mapping]] = ..., alive: _Optional[_Union[Alive, _Mapping]] = ...) -> None: ...

class Begun(_message.Message):
    __slots__ = ("cached_tokens", "queue_s")
    CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    QUEUE_S_FIELD_NUMBER: _ClassVar[int]
    cached_tokens: int
    queue_s: float
    def __init__(self, cached_tokens: _Optional[int] = ..., queue_s: _Optional[float] = ...) -> None: ...

class Token(_message.Message):
    __slots__ = ("stream", "index", "token_id", "logprob", "top_logprobs", "begun")
    STREAM_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    LOGPROB_FIELD_NUMBER: _ClassVar[int]
    TOP_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    BEGUN_FIELD_NUMBER: _ClassVar[int]
    stream: int
    index: int
    token_id: int
    logprob: float
    top_logprobs: _containers.RepeatedCompositeFieldContainer[TokenLogprob]
    begun: Begun
    def __init__(self, stream: _Optional[int] = ..., index: _Optional[int] = ..., token_id: _Optional[int] = ..., logprob: _Optional[float] = ..., top_logprobs: _Optional[_Iterable[_Union[TokenLogprob, _Mapping]]] = ..., begun: _Optional[_Union[Begun, _Mapping]] = ...) -> None: ...

class PromptScores(_message.Message):
    __slots__ = ("stream", "start", "tokens")
    STREAM_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    stream: int
    start: int
    tokens: _containers.RepeatedCompositeFieldContainer[PromptScore]
    def __init__(self, stream: _Optional[int] = ..., start: _Optional[int] = ..., tokens: _Optional[_Iterable[_Union[PromptScore, _Mapping]]] = ...) -> None: ...

class Beam(_message.Message):
    __slots__ = ("token_ids", "score", "logprobs", "reason", "stop_token")
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    STOP_TOKEN_FIELD_NUMBER: _ClassVar[int]
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    score: float
    logprobs: _containers.RepeatedScalarFieldContainer[float]
    reason: str
    stop_token: int
    def __init__(self, token_ids: _Optional[_Iterable[int]] = ..., score: _Optional[float] = ..., logprobs: _Optional[_Iterable[float]] = ..., reason: _Optional[str] = ..., stop_token: _Optional[int] = ...) -> None: ...

class Finished(_message.Message):
    __slots__ = ("stream", "reason", "prompt_tokens", "output_tokens", "cached_tokens", "queue_s", "stop_token", "preemptions", "recomputed_tokens", "beams")
    STREAM_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    QUEUE_S_FIELD_NUMBER: _ClassVar[int]
    STOP_TOKEN_FIELD_NUMBER: _ClassVar[int]
    PREEMPTIONS_FIELD_NUMBER: _ClassVar[int]
    RECOMPUTED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    BEAMS_FIELD_NUMBER: _ClassVar[int]
    stream: int
    reason: str
    prompt_tokens: int
    output_tokens: int
    cached_tokens: int
    queue_s: float
    stop_token: int
    preemptions: int
    recomputed_tokens: int
    beams: _containers.RepeatedCompositeFieldContainer[Beam]
    def __init__(self, stream: _Optional[int] = ..., reason: _Optional[str] = ..., prompt_tokens: _Optional[int] = ..., output_tokens: _Optional[int] = ..., cached_tokens: _Optional[int] = ..., queue_s: _Optional[float] = ..., stop_token: _Optional[int] = ..., preemptions: _Optional[int] = ..., recomputed_tokens: _Optional[int] = ..., beams: _Optional[_Iterable[_Union[Beam, _Mapping]]] = ...) -> None: ...

class Failed(_message.Message):
    __slots__ = ("stream", "kind", "message", "field", "retry_after_s", "presence")
    STREAM_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    FIELD_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_S_FIELD_NUMBER: _ClassVar[int]
    PRESENCE_FIELD_NUMBER: _ClassVar[int]
    stream: int
    kind: str
    message: str
    field: str
    retry_after_s: float
    presence: str
    def __init__(self, stream: _Optional[int] = ..., kind: _Optional[str] = ..., message: _Optional[str] = ..., field: _Optional[str] = ..., retry_after_s: _Optional[float] = ..., presence: _Optional[str] = ...) -> None: ...

class Load(_message.Message):
    __slots__ = ("running", "waiting", "outstanding_tokens", "free_blocks", "total_blocks", "draining", "preemptions", "recomputed_tokens", "tokens_per_s", "waiting_tokens")
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    OUTSTANDING_TOKENS_FIELD_NUMBER: _ClassVar[int]
    FREE_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    PREEMPTIONS_FIELD_NUMBER: _ClassVar[int]
    RECOMPUTED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_PER_S_FIELD_NUMBER: _ClassVar[int]
    WAITING_TOKENS_FIELD_NUMBER: _ClassVar[int]
    running: int
    waiting: int
    outstanding_tokens: int
    free_blocks: int
    total_blocks: int
    draining: bool
    preemptions: _containers.RepeatedScalarFieldContainer[int]
    recomputed_tokens: int
    tokens_per_s: float
    waiting_tokens: int
    def __init__(self, running: _Optional[int] = ..., waiting: _Optional[int] = ..., outstanding_tokens: _Optional[int] = ..., free_blocks: _Optional[int] = ..., total_blocks: _Optional[int] = ..., draining: _Optional[bool] = ..., preemptions: _Optional[_Iterable[int]] = ..., recomputed_tokens: _Optional[int] = ..., tokens_per_s: _Optional[float] = ..., waiting_tokens: _Optional[int] = ...) -> None: ...

class Welcome(_message.Message):
    __slots__ = ("group_id", "model", "numerics", "exact", "max_model_len", "vocab_size", "block_tokens", "total_blocks", "max_waiting", "epoch", "max_waiting_tokens", "weights")
    GROUP_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    NUMERICS_FIELD_NUMBER: _ClassVar[int]
    EXACT_FIELD_NUMBER: _ClassVar[int]
    MAX_MODEL_LEN_FIELD_NUMBER: _ClassVar[int]
    VOCAB_SIZE_FIELD_NUMBER: _ClassVar[int]
    BLOCK_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    MAX_WAITING_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    MAX_WAITING_TOKENS_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    group_id: str
    model: str
    numerics: str
    exact: bool
    max_model_len: int
    vocab_size: int
    block_tokens: int
    total_blocks: int
    max_waiting: int
    epoch: int
    max_waiting_tokens: int
    weights: str
    def __init__(self, group_id: _Optional[str] = ..., model: _Optional[str] = ..., numerics: _Optional[str] = ..., exact: _Optional[bool] = ..., max_model_len: _Optional[int] = ..., vocab_size: _Optional[int] = ..., block_tokens: _Optional[int] = ..., total_blocks: _Optional[int] = ..., max_waiting: _Optional[int] = ..., epoch: _Optional[int] = ..., max_waiting_tokens: _Optional[int] = ..., weights: _Optional[str] = ...) -> None: ...

class Step(_message.Message):
    __slots__ = ("tokens", "finished", "failed", "load", "scores", "searched")
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    LOAD_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    SEARCHED_FIELD_NUMBER: _ClassVar[int]
    tokens: _containers.RepeatedCompositeFieldContainer[Token]
    finished: _containers.RepeatedCompositeFieldContainer[Finished]
    failed: _containers.RepeatedCompositeFieldContainer[Failed]
    load: Load
    scores: _containers.RepeatedCompositeFieldContainer[PromptScores]
    searched: _containers.RepeatedCompositeFieldContainer[Searched]
    def __init__(self, tokens: _Optional[_Iterable[_Union[Token, _Mapping]]] = ..., finished: _Optional[_Iterable[_Union[Finished, _Mapping]]] = ..., failed: _Optional[_Iterable[_Union[Failed, _Mapping]]] = ..., load: _Optional[_Union[Load, _Mapping]] = ..., scores: _Optional[_Iterable[_Union[PromptScores, _Mapping]]] = ..., searched: _Optional[_Iterable[_Union[Searched, _Mapping]]] = ...) -> None: ...

class Searched(_message.Message):
    __slots__ = ("stream", "tokens")
    STREAM_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    stream: int
    tokens: int
    def __init__(self, stream: _Optional[int] = ..., tokens: _Optional[int] = ...) -> None: ...

class LeaderMessage(_message.Message):
    __slots__ = ("welcome", "step", "journal", "blame")
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    JOURNAL_FIELD_NUMBER: _ClassVar[int]
    BLAME_FIELD_NUMBER: _ClassVar[int]
    welcome: Welcome
    step: Step
    journal: JournalAnswer
    blame: Blame
    def __init__(self, welcome: _Optional[_Union[Welcome, _Mapping]] = ..., step: _Optional[_Union[Step, _Mapping]] = ..., journal: _Optional[_Union[JournalAnswer, _Mapping]] = ..., blame: _Optional[_Union[Blame, _Mapping]] = ...) -> None: ...
