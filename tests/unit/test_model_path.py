"""From what the operator named to a directory and to the name that clients use."""

import sys
from pathlib import Path

import pytest

from rayline.deploy.model_path import EMBEDDED_NAME, resolve_model, served_name
from rayline.protos.errors import ModelError


def test_embedded_is_the_model_in_the_package() -> None:
    folder = resolve_model("embedded")
    assert (folder / "config.json").is_file() and (folder / "model.safetensors").is_file()


def test_a_directory_is_itself(tmp_path: Path) -> None:
    assert resolve_model(str(tmp_path)) == tmp_path.resolve()


def test_a_relative_directory_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "org" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert resolve_model("org/model") == (tmp_path / "org" / "model").resolve()


def test_the_home_directory_may_be_written_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve_model("~/model") == (tmp_path / "model").resolve()


@pytest.mark.parametrize("path", ["/no/such/model", "./missing", "../missing", "~/missing", "missing", "a/b/c", ""])
def test_what_is_neither_a_directory_nor_a_hub_id_is_refused_by_name(path: str) -> None:
    with pytest.raises(ModelError) as refused:
        resolve_model(path)
    assert refused.value.message == f"model = {path!r} is not a directory"
    assert refused.value.field == "model"


def test_a_file_is_no_model(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.touch()
    with pytest.raises(ModelError, match="is not a directory"):
        resolve_model(str(file))


def test_a_hub_id_without_the_hub_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ModelError, match=r"'org/model' .* pip install 'rayline\[hub\]'"):
        resolve_model("org/model")


def test_a_hub_that_cannot_be_reached_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")

    def unreachable(*_: object, **__: object) -> str:
        raise ConnectionError("no route to the hub")

    monkeypatch.setattr(hub, "snapshot_download", unreachable)
    with pytest.raises(ModelError, match="'org/model' is not a directory and the hub gave: no route to the hub"):
        resolve_model("org/model")


@pytest.mark.parametrize(
    ("path", "name", "served"),
    [
        ("embedded", "", EMBEDDED_NAME),
        ("embedded", "mine", "mine"),
        ("/models/llama", "", "llama"),
        ("/models/llama/", "", "llama"),
        ("org/model", "", "model"),
        ("/models/llama", "mine", "mine"),
    ],
)
def test_clients_call_a_model_by_its_name_or_its_directorys(path: str, name: str, served: str) -> None:
    assert served_name(path, name) == served
