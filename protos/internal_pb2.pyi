from collections.abc import Iterable as _Iterable
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar

from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from google.protobuf.internal import containers as _containers

DESCRIPTOR: _descriptor.FileDescriptor

class Sampling(_message.Message):
    __slots__ = ("ignore_eos", "logprobs", "max_tokens", "min_p", "min_tokens", "seed", "stop", "stop_token_ids", "temperature", "top_k", "top_p")
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    MIN_P_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MIN_TOKENS_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    STOP_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    IGNORE_EOS_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    seed: int
    max_tokens: int
    min_tokens: int
    stop: _containers.RepeatedScalarFieldContainer[str]
    stop_token_ids: _containers.RepeatedScalarFieldContainer[int]
    ignore_eos: bool
    logprobs: int
    def __init__(self, temperature: float | None = ..., top_k: int | None = ..., top_p: float | None = ..., min_p: float | None = ..., seed: int | None = ..., max_tokens: int | None = ..., min_tokens: int | None = ..., stop: _Iterable[str] | None = ..., stop_token_ids: _Iterable[int] | None = ..., ignore_eos: bool | None = ..., logprobs: int | None = ...) -> None: ...

class TokenLogprob(_message.Message):
    __slots__ = ("logprob", "token_id")
    TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    LOGPROB_FIELD_NUMBER: _ClassVar[int]
    token_id: int
    logprob: float
    def __init__(self, token_id: int | None = ..., logprob: float | None = ...) -> None: ...

class RankSpec(_message.Message):
    __slots__ = ("block_tokens", "device", "dtype", "epoch", "path", "pp_size", "stage", "store_host", "store_port", "threads", "tp_rank", "tp_size")
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
    def __init__(self, path: str | None = ..., dtype: str | None = ..., device: str | None = ..., tp_rank: int | None = ..., tp_size: int | None = ..., stage: int | None = ..., pp_size: int | None = ..., threads: int | None = ..., block_tokens: int | None = ..., epoch: int | None = ..., store_host: str | None = ..., store_port: int | None = ...) -> None: ...

class Admission(_message.Message):
    __slots__ = ("output_ids", "prompt_ids", "sampling", "sequence")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    PROMPT_IDS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_IDS_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    prompt_ids: _containers.RepeatedScalarFieldContainer[int]
    output_ids: _containers.RepeatedScalarFieldContainer[int]
    sampling: Sampling
    def __init__(self, sequence: int | None = ..., prompt_ids: _Iterable[int] | None = ..., output_ids: _Iterable[int] | None = ..., sampling: Sampling | _Mapping | None = ...) -> None: ...

class Slice(_message.Message):
    __slots__ = ("block_ids", "count", "first_block", "samples", "sequence", "start")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    FIRST_BLOCK_FIELD_NUMBER: _ClassVar[int]
    BLOCK_IDS_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    start: int
    count: int
    first_block: int
    block_ids: _containers.RepeatedScalarFieldContainer[int]
    samples: bool
    def __init__(self, sequence: int | None = ..., start: int | None = ..., count: int | None = ..., first_block: int | None = ..., block_ids: _Iterable[int] | None = ..., samples: bool | None = ...) -> None: ...

class Plan(_message.Message):
    __slots__ = ("admitted", "epoch", "released", "slices", "step")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    ADMITTED_FIELD_NUMBER: _ClassVar[int]
    SLICES_FIELD_NUMBER: _ClassVar[int]
    RELEASED_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    step: int
    admitted: _containers.RepeatedCompositeFieldContainer[Admission]
    slices: _containers.RepeatedCompositeFieldContainer[Slice]
    released: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, epoch: int | None = ..., step: int | None = ..., admitted: _Iterable[Admission | _Mapping] | None = ..., slices: _Iterable[Slice | _Mapping] | None = ..., released: _Iterable[int] | None = ...) -> None: ...

class Sampled(_message.Message):
    __slots__ = ("logprob", "sequence", "token_id", "top_logprobs")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    LOGPROB_FIELD_NUMBER: _ClassVar[int]
    TOP_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    token_id: int
    logprob: float
    top_logprobs: _containers.RepeatedCompositeFieldContainer[TokenLogprob]
    def __init__(self, sequence: int | None = ..., token_id: int | None = ..., logprob: float | None = ..., top_logprobs: _Iterable[TokenLogprob | _Mapping] | None = ...) -> None: ...

class StepResult(_message.Message):
    __slots__ = ("busy_s", "epoch", "sampled", "step")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    SAMPLED_FIELD_NUMBER: _ClassVar[int]
    BUSY_S_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    step: int
    sampled: _containers.RepeatedCompositeFieldContainer[Sampled]
    busy_s: float
    def __init__(self, epoch: int | None = ..., step: int | None = ..., sampled: _Iterable[Sampled | _Mapping] | None = ..., busy_s: float | None = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("rank", "secret")
    SECRET_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    secret: str
    rank: int
    def __init__(self, secret: str | None = ..., rank: int | None = ...) -> None: ...

class Progress(_message.Message):
    __slots__ = ("done", "phase", "total")
    PHASE_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    phase: str
    done: int
    total: int
    def __init__(self, phase: str | None = ..., done: int | None = ..., total: int | None = ...) -> None: ...

class Loaded(_message.Message):
    __slots__ = ("block_bytes", "free_bytes", "host", "read_bytes", "weight_bytes")
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
    def __init__(self, host: str | None = ..., weight_bytes: int | None = ..., read_bytes: int | None = ..., free_bytes: int | None = ..., block_bytes: int | None = ...) -> None: ...

class Allocate(_message.Message):
    __slots__ = ("blocks",)
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    blocks: int
    def __init__(self, blocks: int | None = ...) -> None: ...

class Ready(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StatsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RankStats(_message.Message):
    __slots__ = ("busy_s", "cache_bytes", "rank", "read_bytes", "resident_bytes", "stage", "wall_s", "weight_bytes")
    RANK_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    BUSY_S_FIELD_NUMBER: _ClassVar[int]
    WALL_S_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_BYTES_FIELD_NUMBER: _ClassVar[int]
    CACHE_BYTES_FIELD_NUMBER: _ClassVar[int]
    RESIDENT_BYTES_FIELD_NUMBER: _ClassVar[int]
    READ_BYTES_FIELD_NUMBER: _ClassVar[int]
    rank: int
    stage: int
    busy_s: float
    wall_s: float
    weight_bytes: int
    cache_bytes: int
    resident_bytes: int
    read_bytes: int
    def __init__(self, rank: int | None = ..., stage: int | None = ..., busy_s: float | None = ..., wall_s: float | None = ..., weight_bytes: int | None = ..., cache_bytes: int | None = ..., resident_bytes: int | None = ..., read_bytes: int | None = ...) -> None: ...

class RankFailed(_message.Message):
    __slots__ = ("kind", "message")
    KIND_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    kind: str
    message: str
    def __init__(self, kind: str | None = ..., message: str | None = ...) -> None: ...

class Stop(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class LeaderFrame(_message.Message):
    __slots__ = ("allocate", "load", "plan", "stats", "stop")
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
    def __init__(self, load: RankSpec | _Mapping | None = ..., allocate: Allocate | _Mapping | None = ..., plan: Plan | _Mapping | None = ..., stats: StatsRequest | _Mapping | None = ..., stop: Stop | _Mapping | None = ...) -> None: ...

class WorkerFrame(_message.Message):
    __slots__ = ("failed", "hello", "loaded", "progress", "ready", "result", "stats")
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
    def __init__(self, hello: Hello | _Mapping | None = ..., progress: Progress | _Mapping | None = ..., loaded: Loaded | _Mapping | None = ..., ready: Ready | _Mapping | None = ..., result: StepResult | _Mapping | None = ..., stats: RankStats | _Mapping | None = ..., failed: RankFailed | _Mapping | None = ...) -> None: ...

class Submit(_message.Message):
    __slots__ = ("output_ids", "priority", "prompt_ids", "request_id", "sampling", "stream")
    STREAM_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    PROMPT_IDS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_IDS_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    stream: int
    request_id: str
    prompt_ids: _containers.RepeatedScalarFieldContainer[int]
    output_ids: _containers.RepeatedScalarFieldContainer[int]
    sampling: Sampling
    priority: int
    def __init__(self, stream: int | None = ..., request_id: str | None = ..., prompt_ids: _Iterable[int] | None = ..., output_ids: _Iterable[int] | None = ..., sampling: Sampling | _Mapping | None = ..., priority: int | None = ...) -> None: ...

class Abort(_message.Message):
    __slots__ = ("stream",)
    STREAM_FIELD_NUMBER: _ClassVar[int]
    stream: int
    def __init__(self, stream: int | None = ...) -> None: ...

class RouterMessage(_message.Message):
    __slots__ = ("abort", "submit")
    SUBMIT_FIELD_NUMBER: _ClassVar[int]
    ABORT_FIELD_NUMBER: _ClassVar[int]
    submit: Submit
    abort: Abort
    def __init__(self, submit: Submit | _Mapping | None = ..., abort: Abort | _Mapping | None = ...) -> None: ...

class Token(_message.Message):
    __slots__ = ("index", "logprob", "stream", "token_id", "top_logprobs")
    STREAM_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    LOGPROB_FIELD_NUMBER: _ClassVar[int]
    TOP_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    stream: int
    index: int
    token_id: int
    logprob: float
    top_logprobs: _containers.RepeatedCompositeFieldContainer[TokenLogprob]
    def __init__(self, stream: int | None = ..., index: int | None = ..., token_id: int | None = ..., logprob: float | None = ..., top_logprobs: _Iterable[TokenLogprob | _Mapping] | None = ...) -> None: ...

class Finished(_message.Message):
    __slots__ = ("cached_tokens", "output_tokens", "prompt_tokens", "queue_s", "reason", "stop_token", "stream")
    STREAM_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    QUEUE_S_FIELD_NUMBER: _ClassVar[int]
    STOP_TOKEN_FIELD_NUMBER: _ClassVar[int]
    stream: int
    reason: str
    prompt_tokens: int
    output_tokens: int
    cached_tokens: int
    queue_s: float
    stop_token: int
    def __init__(self, stream: int | None = ..., reason: str | None = ..., prompt_tokens: int | None = ..., output_tokens: int | None = ..., cached_tokens: int | None = ..., queue_s: float | None = ..., stop_token: int | None = ...) -> None: ...

class Failed(_message.Message):
    __slots__ = ("field", "kind", "message", "retry_after_s", "stream")
    STREAM_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    FIELD_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_S_FIELD_NUMBER: _ClassVar[int]
    stream: int
    kind: str
    message: str
    field: str
    retry_after_s: float
    def __init__(self, stream: int | None = ..., kind: str | None = ..., message: str | None = ..., field: str | None = ..., retry_after_s: float | None = ...) -> None: ...

class Load(_message.Message):
    __slots__ = ("free_blocks", "outstanding_tokens", "running", "total_blocks", "waiting")
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    OUTSTANDING_TOKENS_FIELD_NUMBER: _ClassVar[int]
    FREE_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    running: int
    waiting: int
    outstanding_tokens: int
    free_blocks: int
    total_blocks: int
    def __init__(self, running: int | None = ..., waiting: int | None = ..., outstanding_tokens: int | None = ..., free_blocks: int | None = ..., total_blocks: int | None = ...) -> None: ...

class Welcome(_message.Message):
    __slots__ = ("block_tokens", "epoch", "exact", "group_id", "max_model_len", "max_waiting", "model", "numerics", "total_blocks", "vocab_size")
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
    def __init__(self, group_id: str | None = ..., model: str | None = ..., numerics: str | None = ..., exact: bool | None = ..., max_model_len: int | None = ..., vocab_size: int | None = ..., block_tokens: int | None = ..., total_blocks: int | None = ..., max_waiting: int | None = ..., epoch: int | None = ...) -> None: ...

class Step(_message.Message):
    __slots__ = ("failed", "finished", "load", "tokens")
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    LOAD_FIELD_NUMBER: _ClassVar[int]
    tokens: _containers.RepeatedCompositeFieldContainer[Token]
    finished: _containers.RepeatedCompositeFieldContainer[Finished]
    failed: _containers.RepeatedCompositeFieldContainer[Failed]
    load: Load
    def __init__(self, tokens: _Iterable[Token | _Mapping] | None = ..., finished: _Iterable[Finished | _Mapping] | None = ..., failed: _Iterable[Failed | _Mapping] | None = ..., load: Load | _Mapping | None = ...) -> None: ...

class LeaderMessage(_message.Message):
    __slots__ = ("step", "welcome")
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    welcome: Welcome
    step: Step
    def __init__(self, welcome: Welcome | _Mapping | None = ..., step: Step | _Mapping | None = ...) -> None: ...
