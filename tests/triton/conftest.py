"""These tests run in Triton's interpreter, in a process of their own (tests/unit/test_triton.py starts it)."""

import os

import pytest
import torch
from interpreted import hurry

NUMBERS = {"*fp32": torch.float32, "*i32": torch.int32, "*i64": torch.int64, "*fp64": torch.float64, "*u8": torch.uint8}
NUMBERS |= {"*i8": torch.int8, "*fp8e4nv": torch.float8_e4m3fn}
MODEL_DTYPES = (torch.float16, torch.float32)  # the interpreter computes bfloat16 wrongly


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.environ.get("TRITON_INTERPRET") != "1":
        for item in items:
            item.add_marker(pytest.mark.skip(reason="TRITON_INTERPRET=1 must be set before Triton is imported"))


@pytest.fixture(autouse=True, scope="session")
def language() -> None:
    hurry()


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
