"""What `rayline serve` prints when it is ready: what is served, how big it is, and a line to try."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.filesize import decimal

from rayline.cluster.config import ParallelSection
from rayline.deploy.group_replica import GroupSummary
from rayline.router.doors import Doors
from rayline.workers.models.config import ModelConfig, kv_heads_of_rank


@dataclass(frozen=True, slots=True)
class ReadyModel:
    """One served model: its config.json and one of its groups (all are alike)."""

    config: ModelConfig
    group: GroupSummary


def banner(models: Sequence[ReadyModel], parallel: ParallelSection, routers: Sequence[Doors]) -> str:
    """Plain text, one fact a line."""
    lines = ["Rayline is ready."]
    for model in models:
        lines += _model_lines(model, parallel)
    body = f'{{"model": "{models[0].group.info.model}", "prompt": "def fibonacci(n):", "max_tokens": 48}}'
    lines += _listed("gRPC", [doors.grpc_address for doors in routers], "rayline.v1.InferenceService")
    lines += _listed("HTTP", [f"http://{doors.http_address}/v1" for doors in routers], "OpenAI")
    url = f"http://{routers[0].http_address}/v1/completions"
    lines += [
        f"  try    curl {url} -H 'Content-Type: application/json' -d '{body}'",
        "Ctrl-C stops: running streams get to finish.",
    ]
    return "\n".join(lines)


def _listed(name: str, addresses: Sequence[str], what: str) -> list[str]:
    first, *others = addresses
    return [f"  {name}   {first}   ({what})", *(f"         {address}" for address in others)]


def _model_lines(model: ReadyModel, parallel: ParallelSection) -> list[str]:
    config, group = model.config, model.group
    info, kv = group.info, group.kv
    heads = kv_heads_of_rank(config, parallel.tp) * parallel.tp
    dtype_bytes = kv.bytes // (2 * config.layers * heads * config.head_dim * kv.tokens)
    blocks = "slots" if kv.is_static else "blocks"
    lines = [
        f"  model  {info.model}: {config.model_type}, {config.layers} layers, context {info.max_model_len} tokens, "
        f"numerics {info.numerics}, exact={str(info.exact).lower()}",
        f"  groups {parallel.groups} x (tp {parallel.tp} x pp {parallel.pp}), each {decimal(group.weight_bytes)} of "
        f"weights, loaded in {group.load_s:.1f} s, warmed up in {group.warm_up_s:.1f} s",
        f"  KV     {kv.blocks} {blocks} x {info.block_tokens} tokens = {kv.tokens} tokens, {decimal(kv.bytes)} a group",
        f"         = 2 x {config.layers} layers x {heads} kv heads x {config.head_dim} head dim x {dtype_bytes} bytes "
        f"x {kv.tokens} tokens",
    ]
    if not info.exact:
        lines.append(f"  note   {group.kernels}, so bits depend on the batch; docs/kernels.md tells the cost")
    return lines
