"""Reading config.json: both spellings, each family's rules, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rayline.cluster.parallel import balanced_stages
from rayline.protos.errors import ConfigError, ModelError
from rayline.workers.models.config import (
    ModelConfig,
    Rope,
    embedding_bytes,
    head_bytes,
    kv_bytes_per_token,
    kv_heads_of_rank,
    layer_bytes,
)
from rayline.workers.weights import Weights

LLAMA_31: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "bos_token_id": 128000,
    "eos_token_id": [128001, 128008, 128009],
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "vocab_size": 128256,
}
QWEN2: dict[str, Any] = {
    "model_type": "qwen2",
    "eos_token_id": 151643,
    "hidden_size": 896,
    "intermediate_size": 4864,
    "max_position_embeddings": 32768,
    "max_window_layers": 21,
    "num_attention_heads": 14,
    "num_hidden_layers": 24,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "use_sliding_window": False,
    "vocab_size": 151936,
}
MISTRAL = LLAMA_31 | {"model_type": "mistral", "sliding_window": 4096, "rope_scaling": None, "head_dim": 128}
QWEN3 = QWEN2 | {"model_type": "qwen3", "head_dim": 128}


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., ModelConfig]:
    def load(config: dict[str, Any], generation: dict[str, Any] | None = None, **changes: Any) -> ModelConfig:
        (tmp_path / "config.json").write_text(json.dumps(config | changes))
        if generation is not None:
            (tmp_path / "generation_config.json").write_text(json.dumps(generation))
        return ModelConfig.load(tmp_path)

    return load


Load = Callable[..., ModelConfig]


def test_llama_31_as_published_is_read(load: Load) -> None:
    config = load(LLAMA_31)
    assert (config.layers, config.heads, config.kv_heads, config.head_dim) == (32, 32, 8, 128)
    assert config.rope == Rope(500000.0, "llama3", 8.0, 1.0, 4.0, 8192)
    assert config.dtype == "bfloat16"
    assert config.eos_token_ids == (128001, 128008, 128009)
    assert config.bos_token_id == 128000
    assert config.sliding_windows == (None,) * 32
    assert not (config.attention_bias or config.output_bias or config.mlp_bias or config.qk_norm)


def test_both_spellings_of_rope_and_dtype_mean_the_same(load: Load) -> None:
    new = {k: v for k, v in LLAMA_31.items() if k not in ("rope_scaling", "rope_theta", "torch_dtype")}
    new |= {"rope_parameters": LLAMA_31["rope_scaling"] | {"rope_theta": 500000.0}, "dtype": "bfloat16"}
    older = LLAMA_31["rope_scaling"] | {"type": "llama3"}
    del older["rope_type"]
    assert load(new) == load(LLAMA_31) == load(LLAMA_31, rope_scaling=older)


def test_each_family_has_its_biases_and_norms(load: Load) -> None:
    def kinds(config: ModelConfig) -> tuple[bool, bool, bool, bool]:
        return config.attention_bias, config.output_bias, config.mlp_bias, config.qk_norm

    assert kinds(load(LLAMA_31, attention_bias=True, mlp_bias=True)) == (True, True, True, False)
    assert kinds(load(MISTRAL)) == (False, False, False, False)
    assert kinds(load(QWEN2)) == (True, False, False, False)
    assert kinds(load(QWEN3)) == (False, False, False, True)
    assert kinds(load(QWEN3, attention_bias=True)) == (True, True, False, True)


def test_each_family_has_its_windows(load: Load) -> None:
    assert set(load(MISTRAL).sliding_windows) == {4096}
    assert set(load(MISTRAL, sliding_window=None).sliding_windows) == {None}
    assert set(load(LLAMA_31, sliding_window=4096).sliding_windows) == {None}
    assert set(load(QWEN2).sliding_windows) == {None}
    assert load(QWEN2, use_sliding_window=True).sliding_windows == (None,) * 21 + (32768,) * 3
    by_layer = ["sliding_attention", "full_attention"] * 12
    assert load(QWEN3, use_sliding_window=True, layer_types=by_layer).sliding_windows == (32768, None) * 12


def test_a_missing_head_dim_is_the_hidden_size_over_the_heads(load: Load) -> None:
    assert load(QWEN2).head_dim == 64
    assert load(QWEN2, head_dim=None).head_dim == 64


def test_the_generation_config_names_the_end_tokens_first(load: Load) -> None:
    assert load(QWEN2).eos_token_ids == (151643,)
    assert load(QWEN2, generation={"eos_token_id": [151645, 151643]}).eos_token_ids == (151645, 151643)
    assert load(QWEN2, generation={"temperature": 0.7}).eos_token_ids == (151643,)
    assert load(QWEN2, generation={}, eos_token_id=None).eos_token_ids == ()


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("model_type", {"model_type": "gpt2"}),
        ("model_type", {"model_type": None}),
        ("hidden_act", {"hidden_act": "gelu"}),
        ("quantization_config", {"quantization_config": {"quant_method": "awq"}}),
        ("partial_rotary_factor", {"partial_rotary_factor": 0.5}),
        ("partial_rotary_factor", {"rope_parameters": {"partial_rotary_factor": 0.5}, "rope_scaling": None}),
        ("rope_interleaved", {"rope_interleaved": True}),
        ("rope_type", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}),
        ("rope_type", {"rope_scaling": {"type": "linear", "factor": 4.0}}),
        ("rope_parameters", {"rope_scaling": {"mrope_section": [16, 24, 24], "type": "default"}}),
        ("rope_parameters", {"rope_scaling": None, "rope_parameters": {"full_attention": {"rope_theta": 1e4}}}),
        ("factor", {"rope_scaling": {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}}),
        ("low_freq_factor", {"rope_scaling": LLAMA_31["rope_scaling"] | {"low_freq_factor": 4.0}}),
        ("final_logit_softcapping", {"final_logit_softcapping": 30.0}),
        ("num_key_value_heads", {"num_key_value_heads": 5}),
        ("num_key_value_heads", {"num_key_value_heads": 0}),
        ("num_attention_heads", {"num_attention_heads": 32.0}),
        ("num_hidden_layers", {"num_hidden_layers": True}),
        ("vocab_size", {"vocab_size": None}),
        ("head_dim", {"head_dim": 63}),
        ("rms_norm_eps", {"rms_norm_eps": 0}),
        ("tie_word_embeddings", {"tie_word_embeddings": "yes"}),
        ("dtype", {"torch_dtype": "float8_e4m3fn"}),
        ("layer_types", {"layer_types": ["sliding_attention"] * 32}),
        ("layer_types", {"layer_types": ["full_attention"] * 31}),
        ("eos_token_id", {"eos_token_id": "</s>"}),
    ],
)
def test_what_the_decoder_cannot_do_is_refused_by_name(load: Load, field: str, changes: dict[str, Any]) -> None:
    with pytest.raises(ModelError) as caught:
        load(LLAMA_31, **changes)
    assert caught.value.field == field
    assert field in caught.value.message
    assert "allowed is" in caught.value.message


def test_layers_that_slide_without_a_window_are_refused(load: Load) -> None:
    with pytest.raises(ModelError, match="layer_types"):
        load(QWEN3, layer_types=["sliding_attention"] * 24)
    with pytest.raises(ModelError, match="layer_types"):
        load(MISTRAL, layer_types=["full_attention"] * 32)


@pytest.mark.parametrize("content", [None, "{", "[]", b"\xff\xfe"])
def test_a_missing_or_broken_config_is_named(tmp_path: Path, content: str | bytes | None) -> None:
    if content is not None:
        (tmp_path / "config.json").write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(ModelError, match=r"config\.json"):
        ModelConfig.load(tmp_path)


def test_kv_bytes_follow_the_formula(load: Load) -> None:
    config = load(LLAMA_31)
    assert kv_bytes_per_token(config, layers=32, tp_size=1, dtype_bytes=2) == 2 * 32 * 8 * 128 * 2 == 131072
    assert kv_bytes_per_token(config, layers=16, tp_size=4, dtype_bytes=2) == 131072 // 8
    assert kv_bytes_per_token(config, layers=32, tp_size=16, dtype_bytes=2) == 131072 // 8


def test_kv_heads_are_shared_out_or_copied(load: Load) -> None:
    config = load(LLAMA_31)
    assert [kv_heads_of_rank(config, tp) for tp in (1, 2, 8, 16, 32)] == [8, 4, 1, 1, 1]
    for tp in (3, 12):
        with pytest.raises(ConfigError, match=f"tp = {tp}"):
            kv_heads_of_rank(config, tp)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    ("family", "changes"),
    [("llama", {"attention_bias": True, "mlp_bias": True}), ("mistral", {}), ("qwen2", {}), ("qwen3", {})],
)
def test_bytes_of_the_parts_sum_up_to_the_checkpoint(
    random_checkpoint: Callable[..., Path], family: str, changes: dict[str, Any], tied: bool
) -> None:
    path = random_checkpoint(family, tie_word_embeddings=tied, dtype="bfloat16", **changes)
    config = ModelConfig.load(path)
    parts = config.layers * layer_bytes(config, 1, 2) + head_bytes(config, 1, 2)
    parts += 0 if tied else embedding_bytes(config, 1, 2)
    header_bytes = 8192
    assert 0 < Weights.open(path).total_bytes - parts < header_bytes


def test_stages_of_llama_31_are_cut_by_bytes(load: Load) -> None:
    config = load(LLAMA_31)
    cuts = balanced_stages(
        [layer_bytes(config, 1, 2)] * config.layers, embedding_bytes(config, 1, 2), head_bytes(config, 1, 2), 4
    )
    # The embedding and the head weigh 2.4 layers each.
    assert [len(cut) for cut in cuts] == [7, 9, 9, 7]
