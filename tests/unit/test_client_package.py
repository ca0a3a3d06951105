"""The client installed alone: its wheel holds what it imports and nothing else, and needs gRPC and protobuf only."""

import ast
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from scripted_router import ScriptedRouter, events_of, running

ROOT = Path(__file__).parents[2]
PYPROJECT = tomllib.loads((ROOT / "protos/pyproject.toml").read_text())
MODULES = PYPROJECT["tool"]["setuptools"]["py-modules"]

ALONE = """
import sys

class Refused:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] not in {*sys.stdlib_module_names, "grpc", "google", "typing_extensions", "rayline"}:
            raise ModuleNotFoundError(f"{name} is not installed", name=name)

sys.meta_path.insert(0, Refused())
sys.path.insert(0, sys.argv[1])
from rayline.protos import client, inference_pb2 as pb
assert client.__file__.startswith(sys.argv[1]), client.__file__

with client.Client([sys.argv[2]]) as ours:
    for event in ours.stream(pb.GenerateRequest(text="a")):
        print(event.index, event.WhichOneof("event"))
"""


def imported(module: str) -> set[str]:
    """Our modules that one imports, itself too, and theirs."""
    found = {module}
    for node in ast.walk(ast.parse((ROOT / f"protos/{module.rsplit('.')[-1]}.py").read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("rayline."):
            names = [f"{node.module}.{alias.name}" for alias in node.names] if node.module == "rayline.protos" else []
            for name in names or [str(node.module)]:
                found |= imported(name)
    return found


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built as pip would, without network: by the setuptools that are installed."""
    folder = tmp_path_factory.mktemp("client")
    shutil.copytree(ROOT / "protos", folder / "protos", ignore=shutil.ignore_patterns("__pycache__", "build"))
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-build-isolation", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--wheel-dir", str(folder), str(folder / "protos")], check=True, timeout=240)
    (built,) = folder.glob("rayline_client-*.whl")
    return built


def test_the_list_of_modules_is_what_the_client_imports() -> None:
    assert sorted(imported("rayline.protos.client")) == MODULES


def test_the_generated_code_gets_packages_of_its_own_age_or_newer() -> None:
    """It refuses older ones when it is imported."""
    generated = (ROOT / "protos/inference_pb2_grpc.py").read_text()
    made_with = re.search(r"GRPC_GENERATED_VERSION = '([\d.]+)'", generated)
    protobuf = re.search(r"Protobuf Python Version: ([\d.]+)", (ROOT / "protos/inference_pb2.py").read_text())
    assert made_with is not None and protobuf is not None
    wanted = {f"grpcio>={made_with[1]},<2", f"protobuf>={protobuf[1]}"}
    assert set(PYPROJECT["project"]["dependencies"]) == wanted
    whole = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert wanted <= {*whole["dependencies"], *whole["optional-dependencies"]["serve"]}


def test_the_wheel_holds_these_modules_and_no_more(wheel: Path) -> None:
    names = [name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name]
    assert sorted(names) == [f"{module.replace('.', '/')}.py" for module in MODULES]


def test_the_wheel_alone_streams(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path)
    events = events_of([0, 0, 0])
    with running(ScriptedRouter(events, cuts=[(3, None)])) as address:
        command = [sys.executable, "-I", "-c", ALONE, str(tmp_path), address]
        done = subprocess.run(command, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"{event.index} {event.WhichOneof('event')}" for event in events]
