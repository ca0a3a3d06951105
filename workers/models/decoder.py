"""The decoder of the Llama, Mistral, Qwen2 and Qwen3 families: one rank's part of it.

hidden = embedding(tokens)
for each layer:  hidden += attention(norm(hidden));  hidden += feed_forward(norm(hidden))
logits = head(norm(hidden))
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from rayline.cluster.parallel import Parallel
from rayline.kernels.activation import silu_gate
from rayline.kernels.attention import paged_attention
from rayline.kernels.choice import TORCH, Kernels, choose
from rayline.kernels.norm import rms_norm
from rayline.kernels.rope import inverse_frequencies, llama3_frequencies, rope_tables, rotate
from rayline.protos.errors import ModelError
from rayline.workers.cache import KvCache
from rayline.workers.collectives import Collective
from rayline.kernels.context import ForwardContext
from rayline.workers.layers import (
    ColumnLinear,
    Loader,
    RmsNorm,
    RowLinear,
    Rows,
    VocabEmbedding,
    VocabHead,
    vocab_shard,
)
from rayline.workers.models.config import ModelConfig, kv_heads_of_rank
from rayline.workers.weights import Weights

EMBEDDING = "model.embed_tokens.weight"


@dataclass(frozen=True, slots=True)
class Step:
    """What all layers share in one forward pass. cos and sin: fp32 [T, head_dim / 2] of the tokens' positions."""

    cache: KvCache
    context: ForwardContext
    cos: Tensor
    sin: Tensor


class Attention:
    """Grouped-query self-attention (Ainslie et al. 2023) over the paged cache, with this rank's heads."""

    def __init__(self, loader: Loader, config: ModelConfig, layer: int, cache_layer: int) -> None:
        """`layer` counts from the model's first layer, `cache_layer` from the stage's."""
        prefix = f"model.layers.{layer}.self_attn"
        self.head_dim = dim = config.head_dim
        queries = loader.share("num_attention_heads", config.heads)
        self.heads, self.kv_heads = len(queries), kv_heads_of_rank(config, loader.parallel.tp_size)
        first_kv = loader.parallel.tp_rank * config.kv_heads // loader.parallel.tp_size
        query_rows = range(queries.start * dim, queries.stop * dim)
        kv_rows = range(first_kv * dim, (first_kv + self.kv_heads) * dim)
        qkv = [
            Rows(f"{prefix}.q_proj", config.heads * dim, query_rows),
            Rows(f"{prefix}.k_proj", config.kv_heads * dim, kv_rows),
            Rows(f"{prefix}.v_proj", config.kv_heads * dim, kv_rows),
        ]
        self.qkv = ColumnLinear(loader, qkv, config.hidden_size, bias=config.attention_bias)
        self.out = RowLinear(
            loader, f"{prefix}.o_proj", config.heads * dim, config.hidden_size, bias=config.output_bias
        )
        self.qk_norm = self._qk_norm(loader, prefix, dim) if config.qk_norm else None
        self.eps = config.rms_norm_eps
        self.scale = dim**-0.5
        self.window = config.sliding_windows[layer]
        self.cache_layer = cache_layer

    def _qk_norm(self, loader: Loader, prefix: str, dim: int) -> Tensor:
        """The two norm weights as one row for each of this rank's query and key heads."""
        q, k = (loader.vector(f"{prefix}.{name}.weight", dim) for name in ("q_norm", "k_norm"))
        return torch.cat((q.expand(self.heads, dim), k.expand(self.kv_heads, dim)))

    def __call__(self, x: Tensor, step: Step) -> Tensor:
        """[T, hidden] -> [T, hidden]."""
        qkv = self.qkv(x).view(len(x), self.heads + 2 * self.kv_heads, self.head_dim)
        qk, v = qkv.tensor_split([self.heads + self.kv_heads], dim=1)
        if self.qk_norm is not None:
            qk = rms_norm(qk, self.qk_norm, self.eps)
        q, k = rotate(qk, step.cos, step.sin).tensor_split([self.heads], dim=1)
        # Read back from the cache, so that a token's value does not depend on how the prompt was chunked.
        step.cache.write(self.cache_layer, step.context.slots, k, v)
        attended = paged_attention(
            q,
            step.cache.keys[self.cache_layer],
            step.cache.values[self.cache_layer],
            step.context.starts,
            step.context.lens,
            step.context.tables,
            step.context.positions,
            self.scale,
            self.window,
        )
        return self.out(attended.flatten(1))


class FeedForward:
    """SwiGLU (Shazeer 2020): down(silu(gate(x)) * up(x))."""

    def __init__(self, loader: Loader, config: ModelConfig, layer: int) -> None:
        prefix = f"model.layers.{layer}.mlp"
        size = config.intermediate_size
        mine = loader.share("intermediate_size", size)
        gate_up = [Rows(f"{prefix}.{name}", size, mine) for name in ("gate_proj", "up_proj")]
        self.gate_up = ColumnLinear(loader, gate_up, config.hidden_size, bias=config.mlp_bias)
        self.down = RowLinear(loader, f"{prefix}.down_proj", size, config.hidden_size, bias=config.mlp_bias)

    def __call__(self, x: Tensor) -> Tensor:
        return self.down(silu_gate(self.gate_up(x)))


class DecoderLayer:
    """One layer with norms before its two parts."""

    def __init__(self, loader: Loader, config: ModelConfig, layer: int, cache_layer: int) -> None:
        prefix = f"model.layers.{layer}"
        self.attention_norm = RmsNorm(
            loader, f"{prefix}.input_layernorm.weight", config.hidden_size, config.rms_norm_eps
        )
        self.attention = Attention(loader, config, layer, cache_layer)
        self.feed_forward_norm = RmsNorm(
            loader, f"{prefix}.post_attention_layernorm.weight", config.hidden_size, config.rms_norm_eps
        )
        self.feed_forward = FeedForward(loader, config, layer)

    def __call__(self, hidden: Tensor, step: Step) -> Tensor:
        attended = self.attention(self.attention_norm(hidden), step)
        normed, hidden = self.feed_forward_norm.add(attended, hidden)
        return hidden + self.feed_forward(normed)


class Decoder:
    """The part of a model that one rank computes: its stage's layers, its share of each."""

    def __init__(
        self,
        config: ModelConfig,
        stage_layers: range,
        weights: Weights,
        parallel: Parallel,
        collective: Collective,
        dtype: torch.dtype,
        device: torch.device,
        kernels: Kernels | None = None,
    ) -> None:
        """Read this rank's part of the weights; the first stage also embeds, the last one also has the head.

        `kernels` overrides the choice for device and dtype. Raises ModelError when the files do not hold
        what the config says, ConfigError when tp does not divide the model.
        """
        self.kernels = kernels or choose(device, dtype)
        loader = Loader(weights, parallel, collective, self.kernels, dtype, device)
        vocabulary = (config.vocab_size, config.hidden_size)
        self.cos, self.sin = (table.to(device) for table in _rope_tables(config))
        self.embedding = VocabEmbedding(loader, EMBEDDING, *vocabulary) if parallel.is_first_stage else None
        self.layers = [DecoderLayer(loader, config, layer, i) for i, layer in enumerate(stage_layers)]
        self.norm: RmsNorm | None = None
        self.head: VocabHead | None = None
        if parallel.is_last_stage:
            self.norm = RmsNorm(loader, "model.norm.weight", config.hidden_size, config.rms_norm_eps)
            self.head = self._head(loader, config)
        self.weight_bytes = loader.allocated_bytes
        _check_all_read(weights, stage_layers)

    def _head(self, loader: Loader, config: ModelConfig) -> VocabHead:
        """Tied rows stay plain, so that this stage's embedding can share them and any cut gives equal bits."""
        name = EMBEDDING if config.tie_word_embeddings else "lm_head.weight"
        if config.tie_word_embeddings and self.embedding is not None:
            weight = self.embedding.weight
        else:
            weight = vocab_shard(loader, name, config.vocab_size, config.hidden_size)
        kernels = TORCH if config.tie_word_embeddings else loader.kernels
        return VocabHead(loader.collective, kernels, kernels.pack(weight), config.vocab_size)

    def forward(self, inputs: Tensor, cache: KvCache, context: ForwardContext) -> Tensor:
        """Compute the packed tokens of one step and put their keys and values into the cache.

        inputs: token ids int64 [T] on the first stage, else hidden states [T, hidden] of the stage before.
        Returns hidden states [T, hidden] to hand on, or on the last stage fp32 logits [N, vocabulary] of
        the `context.wanted` tokens. The caller holds torch.inference_mode().
        """
        hidden = inputs if self.embedding is None else self.embedding(inputs)
        step = Step(cache, context, self.cos[context.positions], self.sin[context.positions])
        for layer in self.layers:
            hidden = layer(hidden, step)
        if self.norm is None or self.head is None:
            return hidden
        return self.head(self.norm(hidden[context.wanted]))


def _rope_tables(config: ModelConfig) -> tuple[Tensor, Tensor]:
    """cos and sin of every position the model may reach, fixed once."""
    rope = config.rope
    frequencies = inverse_frequencies(config.head_dim, rope.theta)
    if rope.kind == "llama3":
        frequencies = llama3_frequencies(
            frequencies, rope.factor, rope.low_freq_factor, rope.high_freq_factor, rope.original_max_position
        )
    return rope_tables(frequencies, config.max_model_len)


def _check_all_read(weights: Weights, layers: range) -> None:
    """A weight nobody read would be part of the arithmetic that the config did not tell of."""
    for layer in layers:
        # Old checkpoints store the rope frequencies, which follow from the config.
        unread = [n for n in weights.unread(f"model.layers.{layer}.") if not n.endswith("rotary_emb.inv_freq")]
        if unread:
            raise ModelError(
                f"tensor {unread[0]} is in the weight files but config.json does not ask for it", field="model"
            )
