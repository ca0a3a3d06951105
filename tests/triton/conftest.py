"""These tests run in Triton's interpreter, in a process of their own (tests/unit/test_triton.py starts it)."""

import os
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import triton.language as tl
from triton.runtime import interpreter

NUMBERS = {"*fp32": torch.float32, "*i32": torch.int32, "*i64": torch.int64, "*fp64": torch.float64, "*u8": torch.uint8}
NUMBERS |= {"*i8": torch.int8, "*fp8e4nv": torch.float8_e4m3fn}
MODEL_DTYPES = (torch.float16, torch.float32)  # the interpreter computes bfloat16 wrongly


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.environ.get("TRITON_INTERPRET") != "1":
        for item in items:
            item.add_marker(pytest.mark.skip(reason="TRITON_INTERPRET=1 must be set before Triton is imported"))


class Replaced:
    """What the interpreter gets instead of its own record of replaced functions."""

    def restore(self) -> None:
        """They stay replaced."""


@pytest.fixture(autouse=True, scope="session")
def language() -> Iterator[None]:
    """Triton's language is replaced by the interpreter's, once.

    The interpreter would do so again at each call inside a kernel, and `tl.sum` is one: most of its time went there.
    Nor does it look for sums that overflow, which it would say nothing of.
    """
    interpreter._patch_lang(SimpleNamespace(__globals__={"tl": tl, "core": tl.core}))
    builder = interpreter.interpreter_builder
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter, "_patch_lang", lambda function: Replaced())
        patch.setattr(builder, "options", replace(builder.options, sanitize_overflow=False))
        yield


@pytest.fixture(autouse=True)
def launches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every launch is checked against the types that the ahead-of-time builds are made for."""
    from torch import Tensor

    from rayline.kernels.triton_launch import Kernel, Variant

    real = Kernel.launch

    def checked(self: Kernel, grid: tuple[int, ...], variant: Variant, **arguments: object) -> None:
        expected = {name: type_ for name, type_ in self.types.items() if name not in variant.absent}
        assert arguments.keys() == expected.keys()
        for name, value in arguments.items():
            if isinstance(value, Tensor):
                assert value.is_contiguous() or name == "tables", (self.name, name)
                numbers = NUMBERS.get(expected[name])
                assert value.dtype == numbers if numbers else value.dtype in MODEL_DTYPES, (self.name, name)
            else:
                assert isinstance(value, float if expected[name] == "fp32" else int), (self.name, name)
        real(self, grid, variant, **arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Kernel, "launch", checked)
