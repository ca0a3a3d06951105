"""How fast work could be at most on a machine with given limits (Williams et al. 2009): pure arithmetic.

An operation that moves `bytes` and does `flops` takes at least the longer of bytes / bandwidth and flops / rate.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rayline.kernels.limits import MachineLimits
from rayline.protos.group import GroupInfo
from rayline.workers.models.config import ModelConfig, layer_bytes
from rayline.workers.pipeline import RankStats

Binds = Literal["bandwidth", "compute"]


@dataclass(frozen=True, slots=True)
class Bound:
    """The least time something takes, and which limit makes it so."""

    seconds: float
    binds: Binds


def bound(bytes_moved: float, flops: float, bytes_per_s: float, flops_per_s: float) -> Bound:
    moving_s, computing_s = bytes_moved / bytes_per_s, flops / flops_per_s
    return Bound(moving_s, "bandwidth") if moving_s >= computing_s else Bound(computing_s, "compute")


# ---- single operations


@dataclass(frozen=True, slots=True)
class ContenderReport:
    """One implementation: median time, what it amounts to, and the share of the roofline it reaches."""

    name: str
    median_s: float
    bytes_per_s: float
    flops_per_s: float
    fraction: float


@dataclass(frozen=True, slots=True)
class CaseReport:
    """One case: the limits of its rounds, the least time they allow, and its contenders.

    flops_limit_per_s: the rate that its kind of products could have.
    """

    operation: str
    shape: str
    bytes: int
    flops: int
    rounds: int
    limits: MachineLimits
    flops_limit_per_s: float
    roofline_s: float
    binds: Binds
    contenders: tuple[ContenderReport, ...]


# ---- whole engines


@dataclass(frozen=True, slots=True)
class EngineCost:
    """What the steps of a model ask of the machine, over all ranks.

    weight_bytes: weights that every step reads. kv_token_bytes: keys and values of one token.
    token_flops: of the layers' products, for each token computed. head_flops: for each token sampled.
    The arithmetic of attention is left out: with short contexts it is a few per cent of the products'.
    """

    weight_bytes: int
    kv_token_bytes: float
    token_flops: int
    head_flops: int


def engine_cost(config: ModelConfig, info: GroupInfo, ranks: Sequence[RankStats]) -> EngineCost:
    """From the model's shape and what its ranks hold."""
    cache_bytes = sum(rank.cache_bytes for rank in ranks)
    return EngineCost(
        weight_bytes=sum(rank.step_bytes for rank in ranks),
        kv_token_bytes=cache_bytes / (info.total_blocks * info.block_tokens),
        token_flops=2 * config.layers * layer_bytes(config, 1, 1),
        head_flops=2 * config.vocab_size * config.hidden_size,
    )


@dataclass(frozen=True, slots=True)
class BatchRoofline:
    """The most tokens a second one batch size could give, and the share of it that was reached.

    decode_fraction is None when nothing was decoded.
    """

    batch: int
    limits: MachineLimits
    prefill_tokens_per_s: float
    prefill_binds: Binds
    prefill_fraction: float
    decode_tokens_per_s: float
    decode_binds: Binds
    decode_fraction: float | None


def prefill_bound(cost: EngineCost, limits: MachineLimits, batch: int, input_tokens: int) -> Bound:
    """All prompts of a batch: every token through the layers, each prompt's last one through the head too,
    and the weights read at least once."""
    flops = batch * (input_tokens * cost.token_flops + cost.head_flops)
    return bound(cost.weight_bytes, flops, limits.read_bytes_per_s, limits.flops_per_s)


def decode_bound(cost: EngineCost, limits: MachineLimits, batch: int, context_tokens: float) -> Bound:
    """One step of a batch whose sequences hold `context_tokens` each: weights once, keys and values of each."""
    bytes_read = cost.weight_bytes + batch * context_tokens * cost.kv_token_bytes
    flops = batch * (cost.token_flops + cost.head_flops)
    return bound(bytes_read, flops, limits.read_bytes_per_s, limits.flops_per_s)


@dataclass(frozen=True, slots=True)
class Speeds:
    """What was measured of one batch size, in tokens a second. decode is None when nothing was decoded."""

    prefill: float
    decode: float | None


def batch_roofline(
    cost: EngineCost, limits: MachineLimits, batch: int, input_tokens: int, output_tokens: int, speeds: Speeds
) -> BatchRoofline:
    """Hold the speeds of one batch size against the limits. While decoding, contexts grow from the prompt's
    length to that of prompt and output: their mean counts."""
    prefill = prefill_bound(cost, limits, batch, input_tokens)
    decode = decode_bound(cost, limits, batch, input_tokens + output_tokens / 2)
    prefill_limit, decode_limit = batch * input_tokens / prefill.seconds, batch / decode.seconds
    return BatchRoofline(
        batch=batch,
        limits=limits,
        prefill_tokens_per_s=prefill_limit,
        prefill_binds=prefill.binds,
        prefill_fraction=speeds.prefill / prefill_limit,
        decode_tokens_per_s=decode_limit,
        decode_binds=decode.binds,
        decode_fraction=None if speeds.decode is None else speeds.decode / decode_limit,
    )
