"""Start-up records of a rank <-> protobuf."""

from pathlib import Path

from rayline.cluster.parallel import Parallel
from rayline.kernels.choice import KernelOptions
from rayline.protos import internal_pb2 as pb
from rayline.workers.pipeline import RankStats
from rayline.workers.spec import Loaded, RankSpec


def spec_to_pb(spec: RankSpec) -> pb.RankSpec:
    return pb.RankSpec(
        path=str(spec.path),
        dtype=spec.dtype,
        device=spec.device,
        tp_rank=spec.parallel.tp_rank,
        tp_size=spec.parallel.tp_size,
        stage=spec.parallel.stage,
        pp_size=spec.parallel.pp_size,
        threads=spec.threads,
        block_tokens=spec.block_tokens,
        epoch=spec.epoch,
        store_host=spec.store_host,
        store_port=spec.store_port,
        kernels=spec.kernels.kernels,
        quantize=spec.kernels.quantize,
        activations=spec.kernels.activations,
        compile=spec.kernels.compile,
        attention=spec.kernels.attention,
        all_reduce=spec.kernels.all_reduce,
        static_cache=spec.static_cache,
        graph_rows=spec.graph_rows,
        launch_window=spec.launch_window,
    )


def spec_of(message: pb.RankSpec) -> RankSpec:
    return RankSpec(
        path=Path(message.path),
        dtype=message.dtype,
        device=message.device,
        parallel=Parallel(message.tp_rank, message.tp_size, message.stage, message.pp_size),
        threads=message.threads,
        block_tokens=message.block_tokens,
        epoch=message.epoch,
        kernels=KernelOptions(
            message.kernels,
            message.quantize,
            message.activations,
            message.compile,
            message.attention,
            message.all_reduce,
        ),
        static_cache=message.static_cache,
        graph_rows=message.graph_rows,
        launch_window=message.launch_window,
        store_host=message.store_host,
        store_port=message.store_port,
    )


def loaded_to_pb(loaded: Loaded) -> pb.Loaded:
    return pb.Loaded(
        host=loaded.host,
        weight_bytes=loaded.weight_bytes,
        read_bytes=loaded.read_bytes,
        free_bytes=loaded.free_bytes,
        block_bytes=loaded.block_bytes,
    )


def loaded_of(message: pb.Loaded) -> Loaded:
    return Loaded(message.host, message.weight_bytes, message.read_bytes, message.free_bytes, message.block_bytes)


def stats_to_pb(stats: RankStats) -> pb.RankStats:
    return pb.RankStats(
        rank=stats.rank,
        stage=stats.stage,
        busy_s=stats.busy_s,
        wall_s=stats.wall_s,
        weight_bytes=stats.weight_bytes,
        cache_bytes=stats.cache_bytes,
        resident_bytes=stats.resident_bytes,
        read_bytes=stats.read_bytes,
        step_bytes=stats.step_bytes,
        sample_s=stats.sample_s,
        sample_steps=stats.sample_steps,
        gap_s=stats.gap_s,
        steps=stats.steps,
    )


def stats_of(message: pb.RankStats) -> RankStats:
    return RankStats(
        message.rank,
        message.stage,
        message.busy_s,
        message.wall_s,
        message.weight_bytes,
        message.cache_bytes,
        message.resident_bytes,
        message.read_bytes,
        message.step_bytes,
        message.sample_s,
        message.sample_steps,
        message.gap_s,
        message.steps,
    )
