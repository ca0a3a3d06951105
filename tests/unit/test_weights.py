"""Reading safetensors: only what is asked for, and every broken file is named."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from rayline.cluster.parallel import Parallel
from rayline.kernels.torch_kernels import TorchKernels
from rayline.protos.errors import ConfigError, ModelError
from rayline.workers.collectives import Alone
from rayline.workers.models.config import ModelConfig
from rayline.workers.models.decoder import Decoder
from rayline.workers.weights import INDEX, SINGLE, Weights

MATRIX = torch.arange(70.0).view(10, 7)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    save_file({"matrix": MATRIX, "vector": torch.arange(10.0)}, tmp_path / SINGLE)
    return tmp_path


def load(path: Path, place: Parallel | None = None) -> Decoder:
    config = ModelConfig.load(path)
    with Weights.open(path) as weights:
        return Decoder(
            config,
            range(config.layers),
            weights,
            place or Parallel(),
            Alone(),
            TorchKernels(),
            torch.float32,
            torch.device("cpu"),
        )


def edit(path: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    """Rewrite the one weight file of a checkpoint."""
    tensors = load_file(path / SINGLE)
    change(tensors)
    save_file(tensors, path / SINGLE)


def test_rows_and_columns_are_cut_out(small: Path) -> None:
    with Weights.open(small) as weights:
        assert weights.read("matrix", shape=(10, 7)).equal(MATRIX)
        assert weights.read("matrix", shape=(10, 7), rows=range(3, 5)).equal(MATRIX[3:5])
        assert weights.read("matrix", shape=(10, 7), cols=range(2, 6)).equal(MATRIX[:, 2:6])
        assert weights.read("matrix", shape=(10, 7), rows=range(9, 10), cols=range(6, 7)).equal(MATRIX[9:, 6:])
        assert weights.read("vector", shape=(10,), rows=range(4, 8)).equal(torch.arange(4.0, 8.0))


def test_only_the_bytes_of_the_part_are_counted_and_told(small: Path) -> None:
    told: list[int] = []
    with Weights.open(small, told.append) as weights:
        weights.read("matrix", shape=(10, 7), rows=range(3, 5))
        weights.read("matrix", shape=(10, 7), cols=range(2, 3))
        assert told == [2 * 7 * 4, 10 * 4]
        assert weights.bytes_read == sum(told)
        assert weights.total_bytes == (small / SINGLE).stat().st_size


def test_names_are_known_without_reading(small: Path) -> None:
    with Weights.open(small) as weights:
        assert weights.unread("mat") == ["matrix"]
        weights.read("matrix", shape=(10, 7), rows=range(1))
        assert weights.unread("") == ["vector"]
        assert weights.bytes_read == 7 * 4


def test_a_tensor_that_is_in_no_file_is_named(small: Path) -> None:
    with Weights.open(small) as weights, pytest.raises(ModelError, match="tensor missing is in no weight file"):
        weights.read("missing", shape=(1,))


def test_a_tensor_of_another_shape_is_named_with_both_shapes(small: Path) -> None:
    with Weights.open(small) as weights, pytest.raises(ModelError, match=r"matrix has shape \[10, 7\].* \[7, 10\]"):
        weights.read("matrix", shape=(7, 10), rows=range(1))


def test_a_tensor_of_another_dtype_is_named(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(4, dtype=torch.int8)}, tmp_path / SINGLE)
    with (
        Weights.open(tmp_path) as weights,
        pytest.raises(ModelError, match="a has dtype I8, allowed is BF16"),
    ):
        weights.read("a", shape=(4,))


def test_a_directory_without_weights_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=f"holds neither {SINGLE} nor {INDEX}"):
        Weights.open(tmp_path)


@pytest.mark.parametrize("kept", [0, 5, 60, -1])
def test_a_truncated_file_is_named_before_anything_is_read(small: Path, kept: int) -> None:
    file = small / SINGLE
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(ModelError, match=f"{SINGLE} is broken or truncated"):
        Weights.open(small)


def test_a_missing_shard_is_named(random_checkpoint: Callable[..., Path]) -> None:
    path = random_checkpoint("llama", max_shard_size="100KB")
    shard = sorted(path.glob("*.safetensors"))[2]
    shard.unlink()
    with pytest.raises(ModelError, match=f"{shard.name} is missing"):
        Weights.open(path)


def test_a_tensor_missing_in_its_shard_is_named(random_checkpoint: Callable[..., Path]) -> None:
    path = random_checkpoint("llama", max_shard_size="100KB")
    index = json.loads((path / INDEX).read_text())
    first, other = sorted(set(index["weight_map"].values()))[:2]
    name = next(name for name, file in index["weight_map"].items() if file == first)
    index["weight_map"][name] = other
    (path / INDEX).write_text(json.dumps(index))
    with pytest.raises(ModelError, match=f"{other}: tensor {name} is missing"):
        load(path)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"weight_map": 3}'])
def test_a_broken_index_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / INDEX).write_text(content)
    with pytest.raises(ModelError, match=INDEX):
        Weights.open(tmp_path)


def test_a_model_with_a_missing_weight_is_refused(random_checkpoint: Callable[..., Path]) -> None:
    path = random_checkpoint("qwen2")
    edit(path, lambda tensors: tensors.pop("model.layers.1.self_attn.k_proj.bias"))
    with pytest.raises(ModelError, match=r"model\.layers\.1\.self_attn\.k_proj\.bias"):
        load(path)


def test_a_model_with_a_weight_the_config_does_not_tell_of_is_refused(random_checkpoint: Callable[..., Path]) -> None:
    path = random_checkpoint("mistral")
    edit(path, lambda tensors: tensors.update({"model.layers.2.self_attn.q_proj.bias": torch.ones(80)}))
    with pytest.raises(ModelError, match=r"layers\.2\.self_attn\.q_proj\.bias .* config\.json does not ask for it"):
        load(path)


def test_stored_rope_frequencies_of_old_checkpoints_are_let_pass(random_checkpoint: Callable[..., Path]) -> None:
    path = random_checkpoint("llama")
    edit(path, lambda tensors: tensors.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(10)}))
    assert load(path)


def test_a_config_that_disagrees_with_the_weights_is_refused(random_checkpoint: Callable[..., Path]) -> None:
    path = random_checkpoint("llama")
    file = path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"intermediate_size": 104}))
    with pytest.raises(ModelError, match=r"gate_proj\.weight has shape \[100, 72\], config\.json asks for \[104, 72\]"):
        load(path)


@pytest.mark.parametrize(
    ("changes", "tp", "field"),
    [
        ({"num_attention_heads": 6, "hidden_size": 72}, 4, "num_attention_heads"),
        ({"intermediate_size": 99}, 2, "intermediate_size"),
        ({"num_attention_heads": 6, "num_key_value_heads": 2, "intermediate_size": 99}, 3, "num_key_value_heads"),
    ],
)
def test_a_tp_that_does_not_divide_is_refused_by_name(
    random_checkpoint: Callable[..., Path], changes: dict[str, Any], tp: int, field: str
) -> None:
    path = random_checkpoint("llama", **changes)
    with pytest.raises(ConfigError, match=f"tp = {tp} .*{field}"):
        load(path, Parallel(tp_size=tp))
