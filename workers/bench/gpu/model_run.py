"""A decoder of random weights over a paged cache, and steps for it as a plan would give them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rayline.cluster.parallel import Parallel
from rayline.kernels.backend import AttentionShape, Kernels, KvLayer
from rayline.kernels.context import ForwardContext
from rayline.kernels.graphs import DecodeLimits
from rayline.workers.bench.gpu.machine import Machine
from rayline.workers.bench.gpu.models import RandomWeights, seeded_tokens, weight_bytes
from rayline.workers.cache import KvCache
from rayline.workers.collectives import Alone
from rayline.workers.models.config import ModelConfig, kv_bytes_per_token, layer_bytes
from rayline.workers.models.decoder import Decoder

ROOM = 0.85  # of the free memory that weights and cache may take: products need some too
SPARE_BYTES = 2**30  # of temporaries


class NoRoom(RuntimeError):
    """The device has not enough free memory."""


@dataclass(frozen=True, slots=True)
class Work:
    """What one step must move and multiply at least."""

    bytes: float
    flops: float


class ModelRun:
    """Sequences of up to `tokens` tokens each. Their blocks lie apart, in scrambled order."""

    def __init__(
        self,
        machine: Machine,
        config: ModelConfig,
        kernels: Kernels,
        *,
        sequences: int,
        tokens: int,
        block_tokens: int = 16,
        graph_rows: int = 0,
        decoder: Decoder | None = None,
    ) -> None:
        """graph_rows: decode steps of up to so many rows are captured. decoder: of a run that was ended, whose weights
        these are. Raises NoRoom."""
        self.machine, self.config, self.block_tokens = machine, config, block_tokens
        self.width = -(-tokens // block_tokens)
        blocks = sequences * self.width + 1
        itemsize = machine.dtype.itemsize
        cached = blocks * block_tokens * kv_bytes_per_token(config, config.layers, 1, itemsize)
        weights = weight_bytes(config, itemsize) if decoder is None else 0
        needed, free = weights + cached + SPARE_BYTES * machine.is_cuda, machine.free_bytes()
        if needed > ROOM * free:
            raise NoRoom(f"it needs {needed / 2**30:.1f} GiB, {free / 2**30:.1f} are free")
        self.decoder = decoder or Decoder(
            config, range(config.layers), RandomWeights(machine), Parallel(), Alone(), kernels, machine.dtype,
            machine.device,
        )  # fmt: skip
        self.cache = KvCache(
            config.layers, blocks, block_tokens, config.kv_heads, config.head_dim, machine.dtype, machine.device
        )
        for layer in self.cache.layers:
            layer.keys.normal_(), layer.values.normal_()
        order = torch.randperm(blocks - 1, generator=torch.Generator().manual_seed(0)) + 1
        self.tables = order.to(torch.int32).view(sequences, self.width)
        self.capture(graph_rows)

    def capture(self, rows: int) -> None:
        """Decode steps of up to so many rows are captured from now on, when they are first met; 0: all are launched."""
        self.graph_rows = rows
        self.decoder.bind(self.cache, DecodeLimits(rows, self.width, self.block_tokens) if rows else None)

    def end(self) -> Decoder:
        """Give the cache back, and keep the weights for another run."""
        self.decoder.unbind()
        del self.cache
        return self.decoder

    def context(self, slices: Sequence[tuple[int, int, int]]) -> ForwardContext:
        """A step over slices (sequence, start, count); the logits of each one's last token are wanted."""
        device, size = self.machine.device, self.block_tokens
        positions = [torch.arange(start, start + count) for _, start, count in slices]
        slots = [
            self.tables[s, at // size].long() * size + at % size
            for (s, _, _), at in zip(slices, positions, strict=True)
        ]
        ends = [0]
        for _, _, count in slices:
            ends.append(ends[-1] + count)
        return ForwardContext(
            positions=torch.cat(positions).to(device),
            slots=torch.cat(slots).to(device),
            starts=tuple(ends),
            lens=tuple(start + count for _, start, count in slices),
            tables=self.tables[[s for s, _, _ in slices]].to(device),
            wanted=torch.tensor([end - 1 for end in ends[1:]], device=device),
        )

    @torch.inference_mode()
    def logits(self, slices: Sequence[tuple[int, int, int]]) -> Tensor:
        """Of the last token of each slice. A sequence's tokens are the same whatever its number."""
        tokens = seeded_tokens(self.width * self.block_tokens, self.config.vocab_size, self.machine.device)
        inputs = torch.cat([tokens[start : start + count] for _, start, count in slices])
        return self.decoder.forward(inputs, self.cache, self.context(slices)).clone()

    def stepping(self, slices: Sequence[tuple[int, int, int]]) -> Callable[[], Tensor]:
        """One step over these slices, the best token of each taken: what a greedy engine runs on the device."""
        context = self.context(slices)
        count = context.starts[-1]
        inputs = seeded_tokens(count, self.config.vocab_size, self.machine.device)

        @torch.inference_mode()
        def step() -> Tensor:
            return self.decoder.forward(inputs, self.cache, context).argmax(-1)

        return step

    def work(self, slices: Sequence[tuple[int, int, int]]) -> Work:
        """Weights once, keys and values of each sequence once, every product."""
        config = self.config
        keys = kv_bytes_per_token(config, config.layers, 1, self.machine.dtype.itemsize)
        tokens, seen = sum(count for _, _, count in slices), sum(start + count for _, start, count in slices)
        scores = sum(count * start + count * (count + 1) // 2 for _, start, count in slices)
        flops = 2 * tokens * config.layers * layer_bytes(config, 1, 1)
        flops += 2 * len(slices) * config.vocab_size * config.hidden_size
        flops += 4 * config.layers * scores * config.heads * config.head_dim
        return Work(self.decoder.step_bytes + seen * keys, flops)


def random_layer(machine: Machine, blocks: int, block_tokens: int, shape: AttentionShape) -> KvLayer:
    """Keys and values of one layer, all of them numbers."""
    keys, values = (machine.randn(blocks, block_tokens * shape.kv_heads * shape.head_dim, seed=seed) for seed in (5, 6))
    return KvLayer(keys, values, block_tokens, shape.kv_heads, shape.head_dim)
