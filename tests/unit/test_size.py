"""The size law: a function fits a screen, a file is read in one go. Ruff's C90 bounds the branches."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDERS = ("cluster", "deploy", "kernels", "protos", "router", "workers")
MAX_FUNCTION_LINES = 60
MAX_KERNEL_LINES = 80  # kernels/triton_*_code.py: what a GPU runs between two launches cannot be split
MAX_FILE_LINES = 400
FILES = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py") if "_pb2" not in path.name]


def test_there_is_code_to_measure() -> None:
    assert len(FILES) > 20


def test_no_function_is_longer_than_a_screen() -> None:
    long = [
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name} has {length} lines"
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        if (length := (node.end_lineno or node.lineno) - node.lineno + 1)
        > (MAX_KERNEL_LINES if path.name.endswith("_code.py") else MAX_FUNCTION_LINES)
    ]
    assert not long


def test_no_file_is_longer_than_one_sitting() -> None:
    long = [
        f"{path.relative_to(ROOT)} has {length} lines"
        for path in FILES
        if (length := len(path.read_text().splitlines())) > MAX_FILE_LINES
    ]
    assert not long


def test_every_module_says_what_it_is() -> None:
    silent = [str(path.relative_to(ROOT)) for path in FILES if not ast.get_docstring(ast.parse(path.read_text()))]
    assert not silent


def test_no_init_file_turns_a_folder_into_a_package_that_could_shadow_another() -> None:
    found = [str(path) for folder in FOLDERS for path in (ROOT / folder).rglob("__init__.py")]
    assert not found
