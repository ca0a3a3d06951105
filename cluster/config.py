"""The configuration: one frozen tree, the same keys in a file and as flags, unknown keys refused.

`rayline serve --config FILE` reads YAML with the sections below; each flag of the command line is one
key (`--kv-bytes` is engine.kv_bytes) and wins over the file. "auto" values are resolved into a new tree
when the machine and the model are known, never in place.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from annotated_types import Ge, Le
from pydantic import ConfigDict, TypeAdapter, ValidationError

from rayline.protos.errors import ConfigError

Dtype = Literal["auto", "bfloat16", "float16", "float32"]
KernelWish = Literal["auto", "native", "onednn", "torch", "triton", "triton-exact"]
AttentionWish = Literal["auto", "flash", "varlen", "triton"]
AllReduce = Literal["auto", "symmetric", "gather"]
Quantize = Literal["none", "int8", "int4", "fp8", "w8a8"]
Activations = Literal["exact", "int8"]
KvCacheKind = Literal["paged", "static"]
AsyncScheduling = Literal["auto", "always", "never"]
ToolParser = Literal[
    "auto",
    "none",
    "hermes",
    "qwen3_coder",
    "llama3",
    "mistral",
    "mistral_v11",
    "pythonic",
    "deepseek",
    "deepseek_v31",
]
ReasoningParser = Literal["auto", "none", "think", "mistral"]
Count = Annotated[int, Ge(1)]
Port = Annotated[int, Ge(0), Le(65535)]
_STRICT = ConfigDict(extra="forbid")


def says(text: str, flag: str = "") -> dict[str, str]:
    """The sentence that `--help` and the docs print for a config key, and its flag where that is not the key's name."""
    return {"help": text, "flag": flag}


@dataclass(frozen=True)
class ModelSection:
    """One served model."""

    __pydantic_config__ = _STRICT

    path: str = field(default="embedded", metadata=says("directory of the model, a hub id, or 'embedded'"))
    name: str = field(default="", metadata=says("name clients use; default: the directory's name"))
    dtype: Dtype = field(default="auto", metadata=says("auto (the checkpoint's), bfloat16, float16 or float32"))
    max_model_len: Annotated[int, Ge(0)] = field(
        default=0, metadata=says("longest prompt + output in tokens; 0: the model's own limit")
    )
    tool_parser: ToolParser = field(
        default="auto", metadata=says("how the model writes tool calls; auto: what its chat template shows")
    )
    reasoning_parser: ReasoningParser = field(
        default="auto", metadata=says("how the model marks what it thinks; auto: what its chat template shows")
    )


@dataclass(frozen=True)
class EngineSection:
    """The engine of each group."""

    __pydantic_config__ = _STRICT

    block_tokens: Annotated[int, Ge(0)] = field(
        default=0, metadata=says("tokens in one KV block; 0: what the attention wants, 256 for flash-attn, else 16")
    )
    kv_bytes: Annotated[int, Ge(0)] = field(
        default=0, metadata=says("bytes of KV cache for each rank; 0: from the free memory")
    )
    kv_memory_fraction: Annotated[float, Ge(0.01), Le(0.95)] = field(
        default=0.5,
        metadata=says("share of the free memory the KV caches of all ranks on a machine take when kv_bytes is 0"),
    )
    max_step_tokens: Count = field(
        default=512, metadata=says("token budget of one step: longer prompts are computed in chunks")
    )
    max_running: Count = field(default=64, metadata=says("sequences that run at once in a group"))
    decode_stretch: Annotated[float, Ge(1), Le(1000)] = field(
        default=2.0, metadata=says("how many times longer a step of running streams may get by others' prompts")
    )
    max_preemptions: Annotated[int, Ge(0)] = field(
        default=3, metadata=says("times a request may lose its KV blocks; then it keeps all it may need")
    )
    priority_aging_s: Annotated[float, Ge(0)] = field(
        default=5.0, metadata=says("seconds of waiting that count as one class of priority; 0: priorities are strict")
    )
    prefix_caching: bool = field(default=True, metadata=says("reuse the blocks of equal prefixes"))
    threads: Annotated[int, Ge(0)] = field(
        default=0, metadata=says("compute threads of each rank; 0: the cores divided by the ranks")
    )
    kernels: KernelWish = field(
        default="auto",
        metadata=says(
            "auto, native (C++, exact), onednn, torch, triton or triton-exact (GPUs): what computes; auto is native "
            "for bfloat16 on CPUs, triton on GPUs"
        ),
    )
    quantize: Quantize = field(
        default="none",
        metadata=says(
            "none, int8 or int4: round the weights in groups while they are read (native and triton kernels); fp8 or "
            "w8a8: round weights and activations of all layers to 8 bits (triton kernels; on CPUs torch's, slowly)"
        ),
    )
    activations: Activations = field(
        default="exact",
        metadata=says("int8: also round what quantised weights are multiplied with; faster, another numerics class"),
    )
    kv_cache: KvCacheKind = field(
        default="paged",
        metadata=says("paged: blocks as sequences grow; static: a slot for a whole context each, allocated up front"),
    )
    compile: bool = field(
        default=False, metadata=says("run decode steps through torch.compile; on CPUs needs the static KV cache")
    )
    attention: AttentionWish = field(
        default="auto",
        metadata=says(
            "auto, flash (flash-attn), varlen (torch's) or triton: attention of the triton kernels; auto is the "
            "first that is there, and triton computes what that cannot"
        ),
    )
    all_reduce: AllReduce = field(
        default="auto",
        metadata=says(
            "auto, symmetric or gather: sums over tp ranks of the triton kernels; symmetric: small ones by memory that "
            "GPUs read from each other, auto: the same where it gives the right sums, gather: all through NCCL"
        ),
    )
    async_scheduling: AsyncScheduling = field(
        default="auto",
        metadata=says(
            "auto, always or never: plan and launch the next step while one runs; auto does on GPUs, where a step runs "
            "beside the host, unless gloo carries messages between their stages"
        ),
    )
    decode_graphs: bool = field(
        default=True, metadata=says("launch decode steps of the Triton kernels as CUDA graphs, captured at the start")
    )


@dataclass(frozen=True)
class ParallelSection:
    """How each group is sharded and how many there are."""

    __pydantic_config__ = _STRICT

    tp: Count = field(default=1, metadata=says("tensor-parallel ranks in each stage"))
    pp: Count = field(default=1, metadata=says("pipeline stages in each group"))
    groups: Count = field(default=1, metadata=says("replica groups, each a whole copy of the model"))


@dataclass(frozen=True)
class RouterSection:
    """The front doors."""

    __pydantic_config__ = _STRICT

    host: str = field(default="127.0.0.1", metadata=says("address the gRPC and HTTP servers listen on"))
    grpc_port: Port = field(default=9000, metadata=says("port of the gRPC server; 0: any free one"))
    http_port: Port = field(default=8080, metadata=says("port of the OpenAI HTTP server; 0: any free one"))
    replicas: Annotated[int, Ge(0), Le(1000)] = field(
        default=0,
        metadata=says("routers; 0: one a node. On one node they take grpc_port, grpc_port + 1, ...", "router-replicas"),
    )
    serve_port: Port = field(
        default=8000, metadata=says("port of Ray Serve's own proxy (health for KubeRay); 0: any free one")
    )
    drain_timeout_s: Annotated[float, Ge(0)] = field(
        default=30.0, metadata=says("seconds that running streams get to finish on Ctrl-C")
    )
    resume_wait_s: Annotated[float, Ge(0)] = field(
        default=60.0, metadata=says("seconds that a stream whose group was lost waits for another to go on in")
    )

    @property
    def ports(self) -> tuple[tuple[int, int], ...]:
        """gRPC and HTTP port of each router that may run on one node."""
        return tuple(
            (self.grpc_port and self.grpc_port + i, self.http_port and self.http_port + i)
            for i in range(max(1, self.replicas))
        )


@dataclass(frozen=True)
class LimitsSection:
    """What is refused instead of queued."""

    __pydantic_config__ = _STRICT

    max_waiting: Count = field(
        default=256, metadata=says("requests that may wait in one group; more are answered with 'overloaded'")
    )
    journal_keep_s: Annotated[float, Ge(0)] = field(
        default=120.0, metadata=says("seconds that a stream nobody reads can still be resumed")
    )
    journal_bytes: Annotated[int, Ge(0)] = field(
        default=64 * 2**20, metadata=says("bytes that each group keeps of streams, for those who resume them; 0: none")
    )
    max_waiting_tokens: Count = field(
        default=1_000_000, metadata=says("tokens of the prompts that may wait in one group; one may always wait")
    )
    slow_reader_s: Annotated[float, Ge(0.1)] = field(
        default=30.0, metadata=says("seconds after which a client that takes nothing of its stream is given up")
    )
    max_unread_tokens: Count = field(
        default=16_384, metadata=says("tokens of a stream that a client may be behind; logprobs count too")
    )
    max_message_bytes: Count = field(default=16 * 2**20, metadata=says("largest request body in bytes"))
    poison_losses: Count = field(
        default=2, metadata=says("groups in a row that a request may lose without a gain; then it is computed alone")
    )
    quarantine_s: Annotated[float, Ge(0)] = field(
        default=600.0, metadata=says("seconds that requests like one which killed its groups are refused")
    )


@dataclass(frozen=True)
class TenantSection:
    """One of those who share the machine. Anyone who shows one of the keys calls in its name."""

    __pydantic_config__ = _STRICT

    name: str
    api_keys: tuple[str, ...] = ()
    weight: Annotated[float, Ge(0.001), Le(1000)] = 1.0


@dataclass(frozen=True)
class SecuritySection:
    """Who may call."""

    __pydantic_config__ = _STRICT

    api_keys: tuple[str, ...] = field(default=(), metadata=says("bearer tokens that are let in; none: everybody"))
    operator_keys: tuple[str, ...] = field(
        default=(),
        metadata=says("bearer tokens that may drain groups and nodes; none: who calls from the router's own machine"),
    )
    tenants: tuple[TenantSection, ...] = field(
        default=(), metadata=says("name, api_keys and weight of each who shares the machine; in a file alone")
    )
    isolate_tenants: bool = field(
        default=False, metadata=says("tenants share no cached prefix, so that timing tells nothing of others' prompts")
    )

    @property
    def tenant_weights(self) -> dict[str, float]:
        return {tenant.name: tenant.weight for tenant in self.tenants}


@dataclass(frozen=True)
class ObservabilitySection:
    """What the operator sees."""

    __pydantic_config__ = _STRICT

    log_level: Literal["debug", "info", "warning", "error"] = field(
        default="info", metadata=says("least severe log line that is written")
    )


@dataclass(frozen=True)
class SystemConfig:
    """The whole tree."""

    __pydantic_config__ = _STRICT

    models: tuple[ModelSection, ...] = (ModelSection(),)
    engine: EngineSection = EngineSection()
    parallel: ParallelSection = ParallelSection()
    router: RouterSection = RouterSection()
    limits: LimitsSection = LimitsSection()
    security: SecuritySection = SecuritySection()
    observability: ObservabilitySection = ObservabilitySection()


def parse(tree: Mapping[str, Any]) -> SystemConfig:
    """A plain tree (from YAML) as a SystemConfig. Raises ConfigError naming the key and what it allows."""
    try:
        config = TypeAdapter(SystemConfig).validate_python(dict(tree))
    except ValidationError as error:
        raise ConfigError("; ".join(_sentence(e) for e in error.errors()), field=_path(error.errors()[0])) from None
    if not config.models:
        raise ConfigError("models is empty: at least one model must be served", field="models")
    _check_tenants(config.security)
    _check_ports(config.router)
    return config


def _check_ports(router: RouterSection) -> None:
    """Each router of a node needs ports of its own, whatever else is free."""
    ports = [port for pair in router.ports for port in pair if port]
    for name, first in (("grpc_port", router.grpc_port), ("http_port", router.http_port)):
        if first and first + len(router.ports) - 1 > 65535:
            raise ConfigError(f"router.{name} = {first} leaves no ports for {router.replicas} routers", field=name)
    if router.serve_port:
        ports.append(router.serve_port)
    if twice := {port for port in ports if ports.count(port) > 1}:
        raise ConfigError(f"the routers' ports hold {min(twice)} twice: each door needs its own", field="replicas")


def _check_tenants(security: SecuritySection) -> None:
    """Names and keys tell tenants apart. The messages show no key."""
    names = [tenant.name for tenant in security.tenants]
    if not all(names) or len(set(names)) < len(names):
        raise ConfigError(f"security.tenants has the names {names}: each needs its own", field="tenants")
    keys = [*security.api_keys, *(key for tenant in security.tenants for key in tenant.api_keys)]
    if len(set(keys)) < len(keys):
        raise ConfigError("security holds an api key twice: each belongs to one tenant", field="tenants")


def load(file: Path) -> SystemConfig:
    """Read a YAML config file. Raises ConfigError when it is missing, not YAML, or not ours."""
    try:
        tree = yaml.safe_load(file.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"config file {file} cannot be read: {error}", field="config") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"config file {file} is not YAML: {error}", field="config") from None
    if not isinstance(tree, dict | None):
        raise ConfigError(f"config file {file} must hold sections, not {type(tree).__name__}", field="config")
    return parse(tree or {})


def override(config: SystemConfig, flags: Mapping[str, Any]) -> SystemConfig:
    """`config` with the keys of `flags` set. A key of the model section goes to the first model.

    Raises ConfigError for a key that is in no section or a value out of its range.
    """
    sections: tuple[Any, ...] = (config.models[0], *(getattr(config, section) for section in SECTIONS[1:]))
    if unknown := flags.keys() - {f.name for section in sections for f in fields(section)}:
        raise ConfigError(f"{min(unknown)} is not a config key", field=min(unknown))
    model_keys = {f.name for f in fields(ModelSection)} & flags.keys()
    first = replace(config.models[0], **{k: flags[k] for k in model_keys})
    changed = replace(config, models=(first, *config.models[1:]))
    for section in SECTIONS[1:]:
        old = getattr(changed, section)
        new = replace(old, **{f.name: flags[f.name] for f in fields(old) if f.name in flags})
        changed = replace(changed, **{section: new})
    return parse(TypeAdapter(SystemConfig).dump_python(changed, warnings=False))


SECTIONS = tuple(f.name for f in fields(SystemConfig))


def _path(error: Any) -> str:
    return ".".join(str(part) for part in error["loc"])


def _sentence(error: Any) -> str:
    if error["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return f"{_path(error)} is not a config key"
    return f"{_path(error)} = {error['input']!r}: {error['msg']}"
