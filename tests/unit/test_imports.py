"""Imports point down: deploy > router, workers > cluster, kernels > protos; heavy packages have their places."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ALLOWED = {
    "protos": set(),
    "kernels": set(),
    "cluster": {"protos"},
    "router": {"cluster", "protos"},
    "workers": {"cluster", "kernels", "protos"},
    "deploy": {"cluster", "protos", "router", "workers"},
}
# Where a package may be imported: folders and single files.
PLACES = {
    "torch": ("workers/", "kernels/"),
    "ray": ("deploy/", "cluster/placement.py", "router/serve_router.py", "workers/ray_launch.py"),
    "triton": ("kernels/triton_",),
    "transformers": ("router/tokenizer.py",),
}


def imports(path: Path) -> Iterator[str]:
    """Dotted names that a file imports, wherever in the file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def sources(folder: str) -> Iterator[Path]:
    return (path for path in (ROOT / folder).rglob("*.py") if "_pb2" not in path.name)


def test_imports_point_down() -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {target}"
        for folder, allowed in ALLOWED.items()
        for path in sources(folder)
        for name in imports(path)
        if name.startswith("rayline.") and (target := name.split(".")[1]) not in allowed | {folder}
    ]
    assert not wrong


@pytest.mark.parametrize("package", PLACES)
def test_a_heavy_package_is_imported_only_in_its_places(package: str) -> None:
    wrong = [
        where
        for folder in ALLOWED
        for path in sources(folder)
        if any(name.split(".")[0] == package for name in imports(path))
        if not (where := str(path.relative_to(ROOT))).startswith(PLACES[package])
    ]
    assert not wrong


def test_no_test_support_is_imported_by_the_code() -> None:
    wrong = [
        str(path)
        for folder in ALLOWED
        for path in sources(folder)
        if any(name.split(".")[0] in {"pytest", "hypothesis", "tests"} for name in imports(path))
    ]
    assert not wrong
