"""What config.json says about a decoder, as one frozen value. Reads Hugging Face's keys, old and new; no torch."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from rayline.cluster.parallel import divide
from rayline.kernels.vocabulary import vocab_share
from rayline.protos.errors import ConfigError, ModelError

Family = Literal["llama", "mistral", "qwen2", "qwen3"]
FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
WeightDtype = Literal["bfloat16", "float16", "float32"]
WEIGHT_DTYPES = ("bfloat16", "float16", "float32")

# Keys that would change the arithmetic of a decoder, with the values that leave it as it is.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    "quantization_config": (None,),
    "compression_config": (None,),
    "partial_rotary_factor": (None, 1.0),
    "rope_interleaved": (None, False),
    "no_rope_layers": (None,),
    "attn_logit_softcapping": (None,),
    "final_logit_softcapping": (None,),
    "logit_scale": (None, 1.0),
    "logits_scaling": (None, 1.0),
    "residual_multiplier": (None, 1.0),
    "embedding_multiplier": (None, 1.0),
    "attention_multiplier": (None,),
    "num_experts": (None, 0),
    "num_local_experts": (None, 0, 1),
}
ROPE_KEYS = {
    "rope_type",
    "type",
    "rope_theta",
    "factor",
    "low_freq_factor",
    "high_freq_factor",
    "original_max_position_embeddings",
    "partial_rotary_factor",
}


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary position embedding (Su et al. 2021). The other fields count only when kind is "llama3"."""

    theta: float
    kind: Literal["default", "llama3"] = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position: int = 0


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """One decoder of the Llama, Mistral, Qwen2 or Qwen3 family.

    attention_bias: the q, k and v projections have biases; output_bias: o has one too.
    sliding_windows: one a layer, the number of newest tokens it attends to, None for all.
    """

    model_type: Family
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    rms_norm_eps: float
    max_model_len: int
    tie_word_embeddings: bool
    attention_bias: bool
    output_bias: bool
    mlp_bias: bool
    qk_norm: bool
    sliding_windows: tuple[int | None, ...]
    rope: Rope
    dtype: WeightDtype
    eos_token_ids: tuple[int, ...]
    bos_token_id: int | None

    @staticmethod
    def load(path: Path) -> "ModelConfig":
        """Read the config.json (and generation_config.json, if any) of a model directory.

        Raises ModelError naming field, value and what is allowed when a file is missing or broken, or
        when a key asks for arithmetic this decoder does not do.
        """
        generation = path / "generation_config.json"
        return _parse(_Keys(_read(path / "config.json")), _read(generation) if generation.exists() else {})


@dataclass(frozen=True, slots=True)
class _Keys:
    """Typed look-ups in a parsed JSON object; null counts as missing."""

    tree: Mapping[str, Any]

    def get(self, name: str, default: Any = None) -> Any:
        value = self.tree.get(name)
        return default if value is None else value

    def integer(self, name: str, default: int | None = None) -> int:
        value = self.get(name, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise _unsupported(name, value, "a whole number of 1 or more")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        value = self.get(name, default)
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < float("inf"):
            raise _unsupported(name, value, "a number above 0")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        value = self.get(name, default)
        if not isinstance(value, bool):
            raise _unsupported(name, value, "true or false")
        return value


def _read(file: Path) -> dict[str, Any]:
    try:
        tree = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"{file} cannot be read: {error}", field="model") from None
    except json.JSONDecodeError as error:
        raise ModelError(f"{file} is not JSON: {error}", field="model") from None
    if not isinstance(tree, dict):
        raise ModelError(f"{file} must hold an object, not {type(tree).__name__}", field="model")
    return tree


def _unsupported(field: str, value: object, allowed: str) -> ModelError:
    return ModelError(f"config.json: {field} = {value!r} is not supported: allowed is {allowed}", field=field)


def _parse(keys: _Keys, generation: Mapping[str, Any]) -> ModelConfig:
    family = keys.get("model_type")
    if family not in FAMILIES:
        raise _unsupported("model_type", family, ", ".join(FAMILIES))
    for field, neutral in NEUTRAL.items():
        if keys.tree.get(field, neutral[0]) not in neutral:
            raise _unsupported(field, keys.tree[field], " or ".join(repr(value) for value in neutral))
    hidden_size, layers, heads = (keys.integer(k) for k in ("hidden_size", "num_hidden_layers", "num_attention_heads"))
    kv_heads = keys.integer("num_key_value_heads", 8 if family == "mistral" else heads)
    if heads % kv_heads:
        raise _unsupported("num_key_value_heads", kv_heads, f"a divisor of num_attention_heads = {heads}")
    has_biases = family in ("llama", "qwen3") and keys.flag("attention_bias", False)
    return ModelConfig(
        model_type=cast(Family, family),
        vocab_size=keys.integer("vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=keys.integer("intermediate_size"),
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=_head_dim(keys, cast(Family, family), hidden_size, heads),
        rms_norm_eps=keys.number("rms_norm_eps", 1e-6),
        max_model_len=keys.integer("max_position_embeddings"),
        tie_word_embeddings=keys.flag("tie_word_embeddings", False),
        attention_bias=has_biases or family == "qwen2",
        output_bias=has_biases,
        mlp_bias=family == "llama" and keys.flag("mlp_bias", False),
        qk_norm=family == "qwen3",
        sliding_windows=_sliding_windows(keys, cast(Family, family), layers),
        rope=_rope(keys),
        dtype=_dtype(keys),
        eos_token_ids=_eos_token_ids(generation.get("eos_token_id"), keys.get("eos_token_id")),
        bos_token_id=keys.get("bos_token_id"),
    )


def _head_dim(keys: _Keys, family: Family, hidden_size: int, heads: int) -> int:
    head_dim = keys.integer("head_dim", 128 if family == "qwen3" else hidden_size // heads)
    if head_dim % 2:
        raise _unsupported("head_dim", head_dim, "an even number, because rope turns pairs")
    return head_dim


def _sliding_windows(keys: _Keys, family: Family, layers: int) -> tuple[int | None, ...]:
    """Mistral slides in every layer; Qwen in the layers that layer_types names, or from max_window_layers on."""
    slides = family == "mistral" or (family != "llama" and keys.flag("use_sliding_window", False))
    is_null = "sliding_window" in keys.tree and keys.get("sliding_window") is None
    window = keys.integer("sliding_window", 4096) if slides and not is_null else None
    first_sliding = 0 if family == "mistral" else keys.get("max_window_layers", 28)
    by_rule = ["sliding_attention" if window and i >= first_sliding else "full_attention" for i in range(layers)]
    kinds = keys.get("layer_types", by_rule)
    names = ["full_attention", "sliding_attention"] if window and family != "mistral" else sorted(set(by_rule))
    if not isinstance(kinds, list) or len(kinds) != layers or not all(kind in names for kind in kinds):
        raise _unsupported("layer_types", kinds, f"a list of {layers}, each {' or '.join(names)}")
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)


def _rope(keys: _Keys) -> Rope:
    """`rope_parameters` (transformers 5) or `rope_theta` with `rope_scaling` (before)."""
    tree = keys.get("rope_scaling") or keys.get("rope_parameters", {})
    if not isinstance(tree, dict) or not tree.keys() <= ROPE_KEYS:
        raise _unsupported("rope_parameters", tree, f"an object with keys out of {', '.join(sorted(ROPE_KEYS))}")
    rope = _Keys(tree)
    if rope.number("partial_rotary_factor", 1.0) != 1.0:
        raise _unsupported("partial_rotary_factor", rope.get("partial_rotary_factor"), "1.0")
    theta = rope.number("rope_theta", keys.number("rope_theta", 10000.0))
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return Rope(theta)
    if kind != "llama3":
        raise _unsupported("rope_type", kind, "default or llama3")
    low, high = rope.number("low_freq_factor"), rope.number("high_freq_factor")
    if low >= high:
        raise _unsupported("low_freq_factor", low, f"less than high_freq_factor = {high}")
    trained = keys.get("original_max_position_embeddings") or rope.get("original_max_position_embeddings")
    original = _Keys({"original_max_position_embeddings": trained})
    return Rope(
        theta,
        "llama3",
        rope.number("factor"),
        low,
        high,
        original.integer("original_max_position_embeddings", keys.integer("max_position_embeddings")),
    )


def _dtype(keys: _Keys) -> WeightDtype:
    """The checkpoint's own dtype; float32 when it names none."""
    name = keys.get("dtype", keys.get("torch_dtype", "float32"))
    if name not in WEIGHT_DTYPES:
        raise _unsupported("dtype", name, ", ".join(WEIGHT_DTYPES))
    return cast(WeightDtype, name)


def _eos_token_ids(*sources: object) -> tuple[int, ...]:
    """The first source that names any; each is one id, a list of them, or null."""
    for source in sources:
        ids = source if isinstance(source, list) else [] if source is None else [source]
        if not all(isinstance(token, int) for token in ids):
            raise _unsupported("eos_token_id", source, "a token id or a list of them")
        if ids:
            return tuple(ids)
    return ()


def kv_heads_of_rank(config: ModelConfig, tp_size: int) -> int:
    """KV heads one rank holds: its share, or a copy of one when there are more ranks than heads.

    Raises ConfigError when neither divides the other.
    """
    if tp_size > config.kv_heads:
        if tp_size % config.kv_heads:
            wanted = f"a divisor or a multiple of num_key_value_heads = {config.kv_heads}"
            raise ConfigError(f"tp = {tp_size} is out of range: allowed is {wanted}", field="tp")
        return 1
    return divide("num_key_value_heads", config.kv_heads, tp_size)


def kv_bytes_per_token(config: ModelConfig, layers: int, tp_size: int, dtype_bytes: int) -> int:
    """Bytes of keys and values one token takes in one rank's cache of `layers` layers."""
    return 2 * layers * kv_heads_of_rank(config, tp_size) * config.head_dim * dtype_bytes


def layer_bytes(config: ModelConfig, tp_size: int, dtype_bytes: int) -> int:
    """Bytes of one decoder layer's weights in one rank."""
    heads = divide("num_attention_heads", config.heads, tp_size)
    query, key = heads * config.head_dim, kv_heads_of_rank(config, tp_size) * config.head_dim
    intermediate = divide("intermediate_size", config.intermediate_size, tp_size)
    weights = config.hidden_size * (2 * query + 2 * key + 3 * intermediate + 2)
    biases = (query + 2 * key) * config.attention_bias + config.hidden_size * (config.output_bias + config.mlp_bias)
    return (weights + biases + 2 * intermediate * config.mlp_bias + 2 * config.head_dim * config.qk_norm) * dtype_bytes


def embedding_bytes(config: ModelConfig, tp_size: int, dtype_bytes: int) -> int:
    """Bytes of one rank's rows of the token embedding."""
    return vocab_share(config.vocab_size, tp_size) * config.hidden_size * dtype_bytes


def head_bytes(config: ModelConfig, tp_size: int, dtype_bytes: int) -> int:
    """Bytes of one rank's rows of the head, and the final norm."""
    return embedding_bytes(config, tp_size, dtype_bytes) + config.hidden_size * dtype_bytes
