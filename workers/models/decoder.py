"""The decoder of the Llama, Mistral, Qwen2 and Qwen3 families: one rank's part of it.

hidden = embedding(tokens)
for each layer:  hidden += attention(norm(hidden));  hidden += feed_forward(norm(hidden))
logits = head(norm(hidden))
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from rayline.cluster.parallel import Parallel
from rayline.kernels.backend import AttentionShape, Kernels, RopeTables, Weight
from rayline.kernels.context import ForwardContext
from rayline.kernels.graphs import DecodeLimits
from rayline.kernels.rope import inverse_frequencies, llama3_frequencies, rope_tables
from rayline.protos.errors import ModelError
from rayline.workers.cache import KvCache
from rayline.workers.collectives import Collective
from rayline.workers.layers import (
    Activation,
    ColumnLinear,
    Loader,
    RmsNorm,
    RowLinear,
    Rows,
    SiluGate,
    VocabEmbedding,
    VocabHead,
    vocab_shard,
)
from rayline.workers.models.config import ModelConfig, kv_heads_of_rank
from rayline.workers.weights import WeightSource

EMBEDDING = "model.embed_tokens.weight"


@dataclass(frozen=True, slots=True)
class Step:
    """What all layers share in one forward pass."""

    cache: KvCache
    context: ForwardContext
    rope: RopeTables


class Attention:
    """Grouped-query self-attention (Ainslie et al. 2023) over the paged cache, with this rank's heads."""

    def __init__(self, loader: Loader, config: ModelConfig, layer: int, cache_layer: int) -> None:
        """`layer` counts from the model's first layer, `cache_layer` from the stage's."""
        self.kernels = loader.kernels
        prefix = f"model.layers.{layer}.self_attn"
        dim = config.head_dim
        queries = loader.share("num_attention_heads", config.heads)
        kv_heads = kv_heads_of_rank(config, loader.parallel.tp_size)
        first_kv = loader.parallel.tp_rank * config.kv_heads // loader.parallel.tp_size
        query_rows = range(queries.start * dim, queries.stop * dim)
        kv_rows = range(first_kv * dim, (first_kv + kv_heads) * dim)
        qkv = [
            Rows(f"{prefix}.q_proj", config.heads * dim, query_rows),
            Rows(f"{prefix}.k_proj", config.kv_heads * dim, kv_rows),
            Rows(f"{prefix}.v_proj", config.kv_heads * dim, kv_rows),
        ]
        self.qkv = ColumnLinear(loader, qkv, config.hidden_size, bias=config.attention_bias)
        self.out = RowLinear(
            loader, f"{prefix}.o_proj", config.heads * dim, config.hidden_size, bias=config.output_bias
        )
        self.qk_norm: tuple[Tensor, Tensor] | None = None
        if config.qk_norm:
            q, k = (loader.vector(f"{prefix}.{name}.weight", sizes=[dim]) for name in ("q_norm", "k_norm"))
            self.qk_norm = (q, k)
        self.eps = config.rms_norm_eps
        self.shape = AttentionShape(len(queries), kv_heads, dim, dim**-0.5, config.sliding_windows[layer])
        self.cache_layer = cache_layer

    def __call__(self, x: Activation, step: Step) -> Tensor:
        """[T, hidden] -> [T, hidden]."""
        layer = step.cache.layers[self.cache_layer]
        qkv = self.qkv(x)
        # Read back from the cache, so that a token's value does not depend on how the prompt was chunked.
        q = self.kernels.write_kv(qkv, self.shape, step.rope, self.qk_norm, self.eps, layer, step.context)
        return self.out(self.kernels.attend(q, self.shape, layer, step.context))


class FeedForward:
    """SwiGLU (Shazeer 2020): down(silu(gate(x)) * up(x))."""

    def __init__(self, loader: Loader, config: ModelConfig, layer: int) -> None:
        prefix = f"model.layers.{layer}.mlp"
        size = config.intermediate_size
        mine = loader.share("intermediate_size", size)
        gate_up = [Rows(f"{prefix}.{name}", size, mine) for name in ("gate_proj", "up_proj")]
        self.gate_up = ColumnLinear(loader, gate_up, config.hidden_size, bias=config.mlp_bias)
        self.down = RowLinear(loader, f"{prefix}.down_proj", size, config.hidden_size, bias=config.mlp_bias)
        self.gate = SiluGate(loader, self.down.weight)

    def __call__(self, x: Activation) -> Tensor:
        return self.down(self.gate(self.gate_up(x)))


class DecoderLayer:
    """One layer with norms before its two parts."""

    def __init__(self, loader: Loader, config: ModelConfig, layer: int, cache_layer: int) -> None:
        self.kernels = loader.kernels
        prefix = f"model.layers.{layer}"
        size, eps = config.hidden_size, config.rms_norm_eps
        self.attention = Attention(loader, config, layer, cache_layer)
        self.attention_norm = RmsNorm(loader, f"{prefix}.input_layernorm.weight", size, eps, self.attention.qkv.weight)
        self.feed_forward = FeedForward(loader, config, layer)
        self.feed_forward_norm = RmsNorm(
            loader, f"{prefix}.post_attention_layernorm.weight", size, eps, self.feed_forward.gate_up.weight
        )

    def __call__(self, hidden: Tensor, step: Step) -> Tensor:
        attended = self.attention(self.attention_norm(hidden), step)
        normed, hidden = self.feed_forward_norm.add(attended, hidden)
        return self.kernels.add(hidden, self.feed_forward(normed))


class Decoder:
    """The part of a model that one rank computes: its stage's layers, its share of each."""

    def __init__(
        self,
        config: ModelConfig,
        stage_layers: range,
        weights: WeightSource,
        parallel: Parallel,
        collective: Collective,
        kernels: Kernels,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """Read this rank's part of the weights; the first stage also embeds, the last one also has the head.

        Raises ModelError when the files do not hold what the config says, ConfigError when tp does not
        divide the model.
        """
        self.kernels = kernels
        self.hidden_size, self.dtype, self._device = config.hidden_size, dtype, device
        loader = Loader(weights, parallel, collective, kernels, dtype, device)
        self.rope = _rope_tables(config, device)
        self.embedding: VocabEmbedding | None = None
        self.norm: RmsNorm | None = None
        self.head: VocabHead | None = None
        table, head = _vocabulary(loader, config)
        if table is not None:
            self.embedding = VocabEmbedding(loader, table)
        self.layers = [DecoderLayer(loader, config, layer, i) for i, layer in enumerate(stage_layers)]
        if head is not None:
            self.norm = RmsNorm(loader, "model.norm.weight", config.hidden_size, config.rms_norm_eps, head)
            self.head = VocabHead(loader, head)
        self.weight_bytes = loader.allocated_bytes
        self.step_bytes = self.weight_bytes - (0 if table is None or table is head else table.bytes)
        self._bound: _Bound | None = None
        _check_all_read(weights, stage_layers)

    def forward(self, inputs: Tensor, cache: KvCache, context: ForwardContext) -> Tensor:
        """Compute the packed tokens of one step and put their keys and values into the cache.

        inputs: token ids int64 [T] on the first stage, else hidden states [T, hidden] of the stage before.
        Returns hidden states [T, hidden] to hand on, or on the last stage fp32 logits [N, this rank's share of
        the vocabulary] of the `context.wanted` tokens; the next call may write over them. The caller holds
        torch.inference_mode().
        """
        bound = self._bound
        if bound is None or bound.cache is not cache:
            bound = self.bind(cache)
        hidden = bound.body(inputs, context)
        if self.head is None:
            return hidden
        return bound.top(hidden[context.wanted], context)

    def blank(self, rows: int) -> Tensor:
        """Inputs of `forward` that mean nothing."""
        if self.embedding is not None:
            return torch.zeros(rows, dtype=torch.int64, device=self._device)
        return torch.zeros((rows, self.hidden_size), dtype=self.dtype, device=self._device)

    def bind(self, cache: KvCache, limits: DecodeLimits | None = None) -> "_Bound":
        """Compute over `cache` from now on; limits: of the decode steps that may be captured."""
        body = self.kernels.replay(lambda inputs, context: self._body(inputs, Step(cache, context, self.rope)), limits)
        self._bound = _Bound(cache, body, self.kernels.replay(lambda hidden, _: self._top(hidden), limits))
        return self._bound

    def unbind(self) -> None:
        """Hold no cache, nor what was captured over one."""
        self._bound = None

    def _body(self, inputs: Tensor, step: Step) -> Tensor:
        hidden = inputs if self.embedding is None else self.embedding(inputs)
        for layer in self.layers:
            hidden = layer(hidden, step)
        return hidden

    def _top(self, hidden: Tensor) -> Tensor:
        assert self.norm is not None and self.head is not None, "only the last stage has a head"
        return self.head(self.norm(hidden))


@dataclass(frozen=True, slots=True)
class _Bound:
    """The two parts of a forward pass in the form their kernels run best, over one cache."""

    cache: KvCache
    body: Callable[[Tensor, ForwardContext], Tensor]
    top: Callable[[Tensor, ForwardContext], Tensor]


def _vocabulary(loader: Loader, config: ModelConfig) -> tuple[Weight | None, Weight | None]:
    """The embedding table, if this is the first stage, and the output matrix, if it is the last.

    Tied ones are laid out as one wherever they lie, so that any cut of the model gives equal bits.
    """
    is_first, is_last = loader.parallel.is_first_stage, loader.parallel.is_last_stage
    kernels, size = loader.kernels, (config.vocab_size, config.hidden_size)
    if config.tie_word_embeddings and (is_first or is_last):
        shared = loader.keep(kernels.tied(vocab_shard(loader, EMBEDDING, *size)))
        return (shared if is_first else None), (shared if is_last else None)
    table = loader.keep(kernels.table(vocab_shard(loader, EMBEDDING, *size))) if is_first else None
    head = loader.keep(kernels.head(vocab_shard(loader, "lm_head.weight", *size))) if is_last else None
    return table, head


def _rope_tables(config: ModelConfig, device: torch.device) -> RopeTables:
    """cos and sin of every position the model may reach, fixed once."""
    rope = config.rope
    frequencies = inverse_frequencies(config.head_dim, rope.theta)
    if rope.kind == "llama3":
        frequencies = llama3_frequencies(
            frequencies, rope.factor, rope.low_freq_factor, rope.high_freq_factor, rope.original_max_position
        )
    cos, sin = rope_tables(frequencies, config.max_model_len)
    return RopeTables(cos.to(device), sin.to(device))


def _check_all_read(weights: WeightSource, layers: range) -> None:
    """A weight nobody read would be part of the arithmetic that the config did not tell of."""
    for layer in layers:
        # Old checkpoints store the rope frequencies, which follow from the config.
        unread = [n for n in weights.unread(f"model.layers.{layer}.") if not n.endswith("rotary_emb.inv_freq")]
        if unread:
            raise ModelError(
                f"tensor {unread[0]} is in the weight files but config.json does not ask for it", field="model"
            )
