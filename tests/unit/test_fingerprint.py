"""The name of a model's files: the same for copies, another one after any training."""

import shutil
from pathlib import Path

from rayline.deploy.model_path import resolve_model
from rayline.workers.fingerprint import SAMPLES, WHOLE_BYTES, fingerprint


def test_a_copy_has_the_same_name_and_other_weights_or_another_config_another(tmp_path: Path) -> None:
    model = resolve_model("embedded")
    copy = tmp_path / "copy"
    shutil.copytree(model, copy)
    name = fingerprint(model)
    assert fingerprint(copy) == name and len(name) == 16
    (copy / "tokenizer.json").write_text("{}")
    assert fingerprint(copy) == name, "text is the router's"
    config = copy / "config.json"
    config.write_text(config.read_text().replace("rope", "Rope"))
    assert fingerprint(copy) != name


def test_large_files_are_told_apart_by_samples_of_them(tmp_path: Path) -> None:
    weights = tmp_path / "model.safetensors"
    names = []
    for seed in range(4):
        weights.write_bytes(bytes((seed * index) % 251 for index in range(997)) * (2 * WHOLE_BYTES // 997))
        names.append(fingerprint(tmp_path))
    weights.write_bytes(weights.read_bytes() + b"x")
    names.append(fingerprint(tmp_path))
    assert len(set(names)) == len(names)
    before = bytearray(weights.read_bytes())
    before[-1] ^= 1
    weights.write_bytes(before)
    assert fingerprint(tmp_path) not in names, f"the last of {SAMPLES} samples is the end"
