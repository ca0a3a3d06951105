"""`rayline bench gpu` in Triton's interpreter: what it checks holds there, and every part gives figures."""

from dataclasses import replace

from rayline.workers.bench.gpu.bench import Setup
from rayline.workers.bench.gpu.parts import PARTS
from rayline.workers.bench.gpu.runner import run_parts


def test_every_part_but_the_graphs_runs() -> None:
    patient = [replace(part, limit_s=900.0) for part in PARTS]
    report = run_parts(Setup("cpu", "tiny", 0.0), patient, 1100.0, lambda row: None)
    assert [(failure.part, failure.error) for failure in report.failures] == [
        ("graphs", "CUDA graphs need a CUDA device")
    ]
    assert [check for check in report.checks if not check.ok] == []
    assert len(report.checks) > 50 and {"exact", "int4", "int8"} <= {
        word for figure in report.figures for word in figure.name.replace("-", " ").replace("g", " ").split()
    }
