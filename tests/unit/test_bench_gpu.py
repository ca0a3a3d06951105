"""`rayline bench gpu` on a CPU: every part through the same code, parts that go wrong, what must be installed."""

import json
import os
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch
from gpu_parts import part

from rayline.deploy.cli import run
from rayline.kernels.torch_kernels import TorchKernels
from rayline.workers.bench.gpu.bench import Bench, Setup
from rayline.workers.bench.gpu.machine import Machine
from rayline.workers.bench.gpu.main import measure
from rayline.workers.bench.gpu.model_run import ModelRun, NoRoom, Work
from rayline.workers.bench.gpu.models import MODELS, RandomWeights, weight_bytes
from rayline.workers.bench.gpu.parts import PARTS
from rayline.workers.bench.gpu.report import Check, DeviceLimits, Failure, Figure, GpuReport, line
from rayline.workers.bench.gpu.runner import run_parts
from rayline.workers.bench.gpu.sizes import TINY

ROOT = Path(__file__).parents[2]
CPU = Machine(torch.device("cpu"), torch.float32, 0.0)
SETUP = Setup("cpu", "tiny", 0.0)
NO_GPU = "Triton computes on GPUs"

# What a GPU machine may lack: everything but torch, Triton, transformers, safetensors, numpy and what those bring.
BLOCKER = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {names}:
            raise ModuleNotFoundError(f"{{name}} is not installed here")
sys.meta_path.insert(0, Blocked())
from rayline.deploy.cli import run
sys.exit(run(sys.argv[1:]))
"""
ABSENT = {
    "ray",
    "grpc",
    "fastapi",
    "pydantic",
    "annotated_types",
    "llguidance",
    "psutil",
    "google",
    "flash_attn",
    "rich",
}


def ran(names: list[str], limit_s: float = 600.0) -> GpuReport:
    return run_parts(SETUP, [part(name) for name in names], limit_s, lambda row: None)


def test_a_part_that_fails_is_reported_and_the_others_go_on() -> None:
    report = ran(["measures", "raises", "works"])
    assert report.failures == [Failure("raises", "ValueError: no such kernel")]
    assert report.checks == [Check("before", True)]
    assert [figure.fraction for figure in report.figures] == [4.0]
    assert report.device == "CPU" and f"torch {torch.__version__}" in report.versions and not report.ok


def test_a_part_that_ends_its_process_costs_only_itself() -> None:
    """What was measured before is handed to the next process."""
    report = ran(["measures", "works", "dies", "works"])
    assert report.failures == [Failure("dies", "its process ended with 7")]
    assert report.checks == [Check("last words", False, "as expected")]
    first, second = report.figures
    assert first.value != second.value and first.fraction == second.fraction == 4.0


def test_a_broken_device_is_opened_anew_by_another_process() -> None:
    report = ran(["measures", "works", "breaks_the_device", "works"])
    assert [failure.part for failure in report.failures] == ["breaks_the_device"]
    first, second = report.figures
    assert first.value != second.value


def test_a_part_that_hangs_is_ended() -> None:
    parts = [part("measures"), part("hangs", limit_s=1.0), part("works")]
    report = run_parts(SETUP, parts, 600.0, lambda row: None)
    assert report.failures == [Failure("hangs", "it took too long and was ended")]
    assert len(report.figures) == 1


def test_all_of_it_ends_in_time() -> None:
    """A clock that jumps once the part that hangs has begun."""
    begun = []
    report = run_parts(
        SETUP, [part("hangs"), part("works")], 200.0, begun.append, clock=lambda: 2000.0 if begun else 0.0
    )
    assert report.failures == [
        Failure("hangs", "the time for all is over"),
        Failure("works", "there was no time left for it"),
    ]


def test_what_was_measured_is_on_disk_before_the_next_part_begins(tmp_path: Path) -> None:
    """Whoever ends the whole command in the middle has the rows before."""
    out, seen = tmp_path / "report.json", []

    def say(text: str) -> None:
        seen.append(json.loads(out.read_text())["figures"] if out.exists() else None)

    report = measure(SETUP, [part(name) for name in ("measures", "works", "dies", "works")], 600.0, out, say)
    assert seen[0] is None and [len(figures or ()) for figures in seen] == [0, 0, 1, 1, 1, 2]
    written = json.loads(out.read_text())
    assert len(written["figures"]) == 2 and written["took_s"] == report.took_s and written["ok"] is False
    assert list(tmp_path.iterdir()) == [out]


def test_a_device_that_cannot_be_opened_is_one_failure() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    report = run_parts(Setup("cuda", "tiny", 0.0), [part("works"), part("works")], 600.0, lambda row: None)
    assert [failure.part for failure in report.failures] == ["start"]


def test_every_part_runs_on_a_cpu_without_triton_and_little_installed(tmp_path: Path) -> None:
    """With torch's kernels, and what needs Triton reported; tests/triton runs the rest in its interpreter."""
    out = tmp_path / "report.json"
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", BLOCKER.format(names=ABSENT), "bench", "gpu", "--device", "cpu", "--size", "tiny"]
    done = subprocess.run(
        [*command, "--json", str(out)], env=environment, capture_output=True, text=True, cwd=ROOT, timeout=280
    )
    assert done.returncode == 1, done.stderr
    report = json.loads(out.read_text())
    assert all(NO_GPU in failure["error"] or "CUDA device" in failure["error"] for failure in report["failures"])
    assert {check["name"].split(",")[0] for check in report["checks"] if check["ok"]} == {"sampling", "logprobs"}
    measured = " ".join(figure["name"] for figure in report["figures"])
    for expected in ("llama-8b", "llama-1b", "qwen3-0.6b", "prefill", "batch 3", "product", "gap between steps"):
        assert expected in measured, done.stdout
    assert all(figure["fraction"] > 0 for figure in report["figures"])
    assert report["limits"]["copy_bytes_per_s"] > 0 and report["ok"] is False


def test_it_is_run_by_its_module_where_there_is_not_even_click() -> None:
    """Everything is imported; without a GPU it then says so. Nothing but torch and what it brings may be needed."""
    absent = ABSENT | {"click", "transformers", "tokenizers", "yaml"}
    blocked = BLOCKER.format(names=absent).rpartition("from rayline")[0]
    code = f"{blocked}import rayline.workers.bench.gpu.main, rayline.workers.bench.gpu.two_ranks"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=280)
    assert done.returncode == 0, done.stderr


def test_parts_that_do_not_exist_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", "gpu", "--part", "nothing like it"]) == 2
    assert "there are limits, operations" in capsys.readouterr().err


def test_all_parts_have_names_of_their_own_and_the_limits_come_first() -> None:
    names = [each.name for each in PARTS]
    assert len(set(names)) == len(names) and names[0] == "limits"


def test_a_figure_is_held_against_the_limit_that_binds() -> None:
    bench = Bench(CPU, TINY, DeviceLimits(copy_bytes_per_s=100.0, flops_per_s=1000.0))
    assert bench.figure("a", 2.0, Work(100.0, 10.0)).fraction == 0.5
    by_rate = bench.figure("b", 4.0, Work(100.0, 2000.0))
    assert by_rate.fraction == 0.5 and "product rate" in by_rate.of
    assert Bench(CPU, TINY, None).figure("c", 2.0, Work(1, 1)) == Figure("c", 2000.0, "ms")


def test_a_model_that_does_not_fit_is_refused_before_it_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Machine, "free_bytes", lambda self: 2**20)
    with pytest.raises(NoRoom, match="GiB"):
        ModelRun(CPU, MODELS["llama-8b"], TorchKernels(), sequences=1, tokens=64)


def test_the_shapes_have_the_sizes_of_their_namesakes() -> None:
    billions = {name: weight_bytes(config, 1) / 1e9 for name, config in MODELS.items()}
    assert billions == pytest.approx({"llama-8b": 8.03, "llama-1b": 1.236, "qwen3-0.6b": 0.596}, rel=0.01)


def test_random_weights_are_the_same_for_everybody_who_reads_them() -> None:
    weights = RandomWeights(CPU)
    whole = weights.read("a", shape=(6, 4))
    assert weights.read("a", shape=(6, 4), rows=range(2, 5), cols=range(1, 3)).equal(whole[2:5, 1:3])
    assert not weights.read("b", shape=(6, 4)).equal(whole)
    assert 0.9 < float(weights.read("layer_norm", shape=(64,)).mean()) < 1.1


def test_weights_outlive_the_cache_of_a_run() -> None:
    config = next(iter(TINY.models.values()))
    first = ModelRun(CPU, config, TorchKernels(), sequences=2, tokens=40)
    logits, cache = first.logits([(0, 0, 30)]), weakref.ref(first.cache)
    decoder = first.end()
    assert cache() is None
    second = ModelRun(CPU, config, TorchKernels(), sequences=1, tokens=40, decoder=decoder)
    torch.testing.assert_close(second.logits([(0, 0, 30)]), logits)


def test_steps_that_say_the_same_give_the_same_logits() -> None:
    """A prompt in pieces in one sequence's blocks, and whole in another's."""
    config = next(iter(TINY.models.values()))
    model = ModelRun(CPU, config, TorchKernels(), sequences=2, tokens=40)
    whole = model.logits([(0, 0, 30)])
    model.logits([(1, 0, 29)])
    torch.testing.assert_close(model.logits([(1, 29, 1)]), whole)
    work = model.work([(0, 30, 1)])
    assert work.bytes == model.decoder.step_bytes + 31 * 2 * config.kv_heads * config.head_dim * 4
    assert work.flops > 2 * config.vocab_size * config.hidden_size


def test_lines_for_people_say_what_holds_and_what_does_not() -> None:
    rows = [Check("a", False, "off"), Failure("b", "why"), Figure("c", 1.5, "ms", 0.25, "the roofline")]
    assert [line(row).split() for row in rows] == [
        ["BROKEN", "a:", "off"],
        ["FAILED", "b:", "why"],
        ["measured", "c:", "1.5", "ms", "25.0%", "of", "the", "roofline"],
    ]
