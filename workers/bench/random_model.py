"""A checkpoint of random weights, for measurements: speed depends on sizes and not on what a model has learned."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from rayline.protos.errors import ConfigError

INITIAL_STD = 0.02
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


@dataclass(frozen=True, slots=True)
class RandomShape:
    """Sizes of a Llama. The vocabulary is that of the tokenizer it is written with."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int = 64


RANDOM_SHAPES = {
    "1b": RandomShape(2048, 8192, 16, 32, 8),  # Llama 3.2 1B but for its vocabulary
    "135m": RandomShape(576, 1536, 30, 9, 3),  # SmolLM
    "tiny": RandomShape(128, 256, 2, 2, 1),
}


def write_random_model(folder: Path, tokenizer: Path, shape: RandomShape, max_model_len: int, seed: int = 0) -> None:
    """Write a bfloat16 Llama with a context of `max_model_len` tokens into a new `folder`.

    `tokenizer` is the directory of the model whose tokenizer files are copied. Raises ConfigError when `folder` exists.
    """
    if folder.exists():
        raise ConfigError(f"directory = {str(folder)!r} exists already: a new one is made", field="directory")
    source = json.loads((tokenizer / "config.json").read_text())
    folder.mkdir(parents=True)
    config = _config(shape, source, max_model_len)
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    for name in TOKENIZER_FILES:
        if (tokenizer / name).exists():
            shutil.copy(tokenizer / name, folder / name)
    source_of_noise = torch.Generator().manual_seed(seed)
    weights = {
        name: torch.ones(size, dtype=torch.bfloat16)
        if len(size) == 1
        else torch.empty(size, dtype=torch.bfloat16).normal_(0.0, INITIAL_STD, generator=source_of_noise)
        for name, size in _sizes(shape, config["vocab_size"]).items()
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def _config(shape: RandomShape, source: dict[str, Any], max_model_len: int) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": source["vocab_size"],
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": max_model_len,
        "rope_theta": 500000.0,
        "rms_norm_eps": 1e-05,
        "tie_word_embeddings": True,
        "bos_token_id": source.get("bos_token_id"),
        "eos_token_id": source.get("eos_token_id"),
        "torch_dtype": "bfloat16",
    }


def _sizes(shape: RandomShape, vocab_size: int) -> dict[str, tuple[int, ...]]:
    """Every weight's name and dimensions, as Hugging Face stores them."""
    heads, kv_heads = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    sizes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab_size, shape.hidden)}
    for layer in range(shape.layers):
        parts: dict[str, tuple[int, ...]] = {
            "self_attn.q_proj": (heads, shape.hidden),
            "self_attn.k_proj": (kv_heads, shape.hidden),
            "self_attn.v_proj": (kv_heads, shape.hidden),
            "self_attn.o_proj": (shape.hidden, heads),
            "mlp.gate_proj": (shape.intermediate, shape.hidden),
            "mlp.up_proj": (shape.intermediate, shape.hidden),
            "mlp.down_proj": (shape.hidden, shape.intermediate),
            "input_layernorm": (shape.hidden,),
            "post_attention_layernorm": (shape.hidden,),
        }
        sizes |= {f"model.layers.{layer}.{name}.weight": size for name, size in parts.items()}
    return sizes | {"model.norm.weight": (shape.hidden,)}
