"""A compact Llama for training: its parameters carry the Hugging Face names, its forward pass
returns the loss. `write_model` saves it as a folder that transformers loads."""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from rayline.workers.training.tokenizer import (
    BEGIN_ID,
    CONTEXT_TOKENS,
    END_ID,
    PAD_ID,
    VOCABULARY_TOKENS,
)


@dataclass(frozen=True)
class LlamaShape:
    """The sizes that tell one model from the other."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int = 64
    rope_theta: float = 10000.0
    norm_epsilon: float = 1e-5
    initial_std: float = 0.02


TARGET_SHAPE = LlamaShape(hidden=256, intermediate=768, layers=6, heads=4, kv_heads=2)
DRAFT_SHAPE = LlamaShape(hidden=128, intermediate=384, layers=2, heads=2, kv_heads=1)


class RmsNorm(nn.Module):
    """Root-mean-square normalisation."""

    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.epsilon)
        return (wide * scale * self.weight).to(x.dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding over the two halves of every head."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


class Attention(nn.Module):
    """Causal attention with grouped key and value heads."""

    def __init__(self, shape: LlamaShape) -> None:
        super().__init__()
        self.shape = shape
        query, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        self.q_proj = nn.Linear(shape.hidden, query, bias=False)
        self.k_proj = nn.Linear(shape.hidden, keys, bias=False)
        self.v_proj = nn.Linear(shape.hidden, keys, bias=False)
        self.o_proj = nn.Linear(query, shape.hidden, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, length, _ = x.shape
        group = self.shape.heads // self.shape.kv_heads

        def split(flat: Tensor) -> Tensor:
            return flat.view(batch, length, -1, self.shape.head_dim).transpose(1, 2)

        query = rotate(split(self.q_proj(x)), cos, sin)
        key = rotate(split(self.k_proj(x)), cos, sin).repeat_interleave(group, dim=1)
        value = split(self.v_proj(x)).repeat_interleave(group, dim=1)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self._out(mixed.transpose(1, 2).reshape(batch, length, -1))

    def _out(self, mixed: Tensor) -> Tensor:
        projected: Tensor = self.o_proj(mixed)
        return projected


class Mlp(nn.Module):
    """The gated feed-forward half of a layer."""

    def __init__(self, shape: LlamaShape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden, shape.intermediate, bias=False)
        self.up_proj = nn.Linear(shape.hidden, shape.intermediate, bias=False)
        self.down_proj = nn.Linear(shape.intermediate, shape.hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        projected: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return projected


class Layer(nn.Module):
    """One decoder layer."""

    def __init__(self, shape: LlamaShape) -> None:
        super().__init__()
        self.self_attn = Attention(shape)
        self.mlp = Mlp(shape)
        self.input_layernorm = RmsNorm(shape.hidden, shape.norm_epsilon)
        self.post_attention_layernorm = RmsNorm(shape.hidden, shape.norm_epsilon)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        x = x + self.mlp(self.post_attention_layernorm(x))
        return x


class CompactLlama(nn.Module):
    """The whole model; the head shares the embedding's weight."""

    cos: Tensor
    sin: Tensor

    def __init__(self, shape: LlamaShape) -> None:
        super().__init__()
        self.shape = shape
        self.embed_tokens = nn.Embedding(VOCABULARY_TOKENS, shape.hidden)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.norm = RmsNorm(shape.hidden, shape.norm_epsilon)
        exponents = torch.arange(0, shape.head_dim, 2, dtype=torch.float32) / shape.head_dim
        angles = torch.outer(torch.arange(CONTEXT_TOKENS, dtype=torch.float32), shape.rope_theta**-exponents)
        angles = torch.cat((angles, angles), dim=-1)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)
        self._initialise()

    def _initialise(self) -> None:
        """Small normal weights; what writes into the residual stream starts smaller still."""
        residual_std = self.shape.initial_std / math.sqrt(2 * self.shape.layers)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                is_output = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(parameter, std=residual_std if is_output else self.shape.initial_std)

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """The mean cross entropy, in nats per token."""
        x = self.embed_tokens(tokens)
        dtype = torch.bfloat16 if torch.is_autocast_enabled("cpu") else x.dtype
        x = x.to(dtype)
        length = tokens.shape[1]
        cos, sin = self.cos[:length].to(dtype), self.sin[:length].to(dtype)
        for layer in self.layers:
            x = layer(x, cos, sin)
        logits = F.linear(self.norm(x), self.embed_tokens.weight)
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


def model_config(shape: LlamaShape) -> dict[str, object]:
    """The contents of config.json."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": VOCABULARY_TOKENS,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": CONTEXT_TOKENS,
        "rope_theta": shape.rope_theta,
        "rms_norm_eps": shape.norm_epsilon,
        "initializer_range": shape.initial_std,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "bos_token_id": BEGIN_ID,
        "eos_token_id": END_ID,
        "pad_token_id": PAD_ID,
        "torch_dtype": "bfloat16",
        "use_cache": True,
    }


def write_json(contents: dict[str, object], path: Path) -> None:
    """Writes beside the file first, so that a reader never sees half of it."""
    unfinished = path.with_name(f".{path.name}.part")
    unfinished.write_text(json.dumps(contents, indent=2) + "\n", encoding="utf-8")
    unfinished.replace(path)


def write_model(model: CompactLlama, folder: Path) -> None:
    """Writes config.json, generation_config.json and model.safetensors in bfloat16."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(model_config(model.shape), folder / "config.json")
    specials: dict[str, object] = {
        "bos_token_id": BEGIN_ID,
        "eos_token_id": END_ID,
        "pad_token_id": PAD_ID,
    }
    write_json(specials, folder / "generation_config.json")
    weights = {
        f"model.{name}": tensor.detach().to(torch.bfloat16).contiguous() for name, tensor in model.state_dict().items()
    }
    unfinished = folder / ".model.safetensors.part"
    save_file(weights, unfinished, metadata={"format": "pt"})
    unfinished.chmod(0o644)
    unfinished.replace(folder / "model.safetensors")
