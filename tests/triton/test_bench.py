"""`rayline bench gpu` in Triton's interpreter: what it checks holds there, and its parts give figures."""

from dataclasses import replace

import pytest

from rayline.workers.bench.gpu.bench import Setup
from rayline.workers.bench.gpu.parts import PARTS
from rayline.workers.bench.gpu.runner import run_parts

pytestmark = [pytest.mark.long, pytest.mark.timeout(1150)]  # more than the parts get together
PARTS_IN_TRITON = (
    "limits", "operations", "exactness", "quantised models", "exact class", "products", "attention", "sums over ranks",
    "compiled steps",
)  # fmt: skip


def test_the_parts_that_need_triton_run() -> None:
    patient = [replace(part, limit_s=900.0) for part in PARTS if part.name in PARTS_IN_TRITON]
    assert len(patient) == len(PARTS_IN_TRITON)
    report = run_parts(Setup("cpu", "tiny", 0.0), patient, 1100.0, lambda row: None)
    assert report.failures == [] and [check for check in report.checks if not check.ok] == []
    assert len(report.checks) >= 35
    names = " ".join(figure.name for figure in report.figures)
    wanted = ("triton-int4", "triton-int8", "exact-interpreted", "attention 2 x 40", "sum of 8", "batch 3, compiled")
    assert all(part in names for part in wanted)
