"""Limits of the machine, and figures held against them: probes, rooflines, `bench kernels`, `bench engine`."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from native import every_isa, library_or_skip, native_kernels
from rich.console import Console

from rayline.deploy.bench.limit_tables import kernel_table, roofline_table
from rayline.deploy.cli import run
from rayline.deploy.commands.bench_engine import group_cores
from rayline.kernels.library import LibraryMissing
from rayline.kernels.limits import MachineLimits, median_limits
from rayline.kernels.probe import Probe
from rayline.kernels.program import Operations, Team
from rayline.protos.group import GroupInfo
from rayline.workers.bench import machine_probe
from rayline.workers.bench.attention_cases import Layout
from rayline.workers.bench.kernel_bench import Case, KernelBench, case_report
from rayline.workers.bench.kernel_cases import CASES, Matrix, cases, linear_case
from rayline.workers.bench.kernel_shapes import OPERATIONS, SHAPES, ModelShape
from rayline.workers.bench.limit_sampler import LimitSampler
from rayline.workers.bench.machine_probe import open_sampler
from rayline.workers.bench.roofline import Bound, EngineCost, Speeds, batch_roofline, bound, engine_cost
from rayline.workers.models.config import ModelConfig
from rayline.workers.pipeline import RankStats

LIMITS = MachineLimits(read_bytes_per_s=1e9, fma_flops_per_s=2e9, bf16_flops_per_s=1e9, int8_ops_per_s=8e9)
TINY = ModelShape(hidden=64, intermediate=96, heads=4, kv_heads=2, head_dim=16, vocab=200)
SMALL = ("--kv-bytes", "20000000", "--threads", "1", "--input-tokens", "6", "--output-tokens", "3", "--repeats", "1")


@pytest.fixture
def small_caches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Probes read a few MiB, as on a machine with small caches: quick, and of no use as a measurement."""
    library_or_skip()
    monkeypatch.setattr(machine_probe, "last_level_cache_bytes", lambda: 2**20)


def case(bytes_moved: int, flops: int, products: Literal["float", "int8"] = "float") -> Case:
    """With nobody to compute it."""
    return Case("linear", "1 x 1", bytes_moved, flops, lambda kernels, copies: {}, products)


# ---- the probes


@every_isa
def test_the_read_probe_reads_every_number_once(isa: str) -> None:
    operations = Operations(Team(library_or_skip(isa), 2))
    data = torch.from_numpy(np.random.default_rng(0).integers(-8, 9, 5 * 1024).astype(np.float32))
    sums = torch.empty(5)
    operations.call("ReadProbe", 1, data=data, sums=sums, size=len(data), chunk=1024)
    assert torch.equal(sums, data.view(5, 1024).sum(1))  # whole numbers: exact in any order


@every_isa
def test_the_fma_probe_does_the_operations_it_counts(isa: str) -> None:
    """x / 2 + c approaches 2 c in every lane, and c is the number of the chunk."""
    operations = Operations(Team(library_or_skip(isa), 2))
    done, results = torch.zeros(3, dtype=torch.int64), torch.empty(3)
    operations.call("FmaProbe", 1, chunks=3, rounds=64, operations=done, results=results)
    assert done.unique().numel() == 1
    lanes = int(done[0]) // (2 * 64)
    assert lanes % 16 == 0 and lanes > 0
    assert results.tolist() == [0.0, 2.0 * lanes, 4.0 * lanes]


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="only Linux tells what the CPU can do")
@pytest.mark.parametrize(("name", "flag"), [("Bf16Probe", "avx512_bf16"), ("Int8Probe", "avx512_vnni")])
def test_dot_products_are_counted_where_the_cpu_has_them(name: str, flag: str) -> None:
    operations = Operations(Team(library_or_skip(), 1))
    done = torch.full((2,), -1)
    operations.call(name, 1, chunks=2, rounds=10, operations=done)
    is_there = re.search(rf"\b{flag}\b", Path("/proc/cpuinfo").read_text()) is not None
    assert (done > 0).all() if is_there else (done == 0).all()


def test_limits_are_rates_of_the_clock_that_was_given() -> None:
    """A clock on which every call takes a second: rates are then the bytes and operations of one pass."""
    ticks = iter(range(10_000))
    probe = Probe(Operations(Team(library_or_skip(), 1)), 3 * 2**20, clock=lambda: float(next(ticks)))
    limits = probe.limits(passes=1)
    assert probe.buffer_bytes == limits.read_bytes_per_s == 3 * 2**20
    assert limits.fma_flops_per_s > 0 and limits.fma_flops_per_s % 32 == 0


def test_medians_of_limits_leave_out_what_the_cpu_lacks() -> None:
    samples = [MachineLimits(rate, 10 * rate, None, 5.0) for rate in (3.0, 1.0, 2.0)]
    assert median_limits(samples) == MachineLimits(2.0, 20.0, None, 5.0)
    assert median_limits(samples).flops_per_s == 20.0
    assert LIMITS.flops_per_s == 2e9 and LIMITS.int8_or_flops_per_s == 8e9


# ---- arithmetic on limits


def test_the_longer_of_moving_and_computing_bounds_the_time() -> None:
    assert bound(4e9, 2e9, bytes_per_s=1e9, flops_per_s=2e9) == Bound(4.0, "bandwidth")
    assert bound(1e9, 6e9, bytes_per_s=1e9, flops_per_s=2e9) == Bound(3.0, "compute")


def test_a_fraction_is_the_roofline_over_the_median_time() -> None:
    samples = [LIMITS, MachineLimits(4e9, 2e9, None, None), MachineLimits(2e9, 2e9, None, None)]
    report = case_report(case(4_000_000, 1_000), samples, {"ours": [0.004, 0.9, 0.005], "torch": [0.002, 0.02, 0.02]})
    assert report.limits.read_bytes_per_s == 2e9
    assert (report.roofline_s, report.binds, report.rounds) == (0.002, "bandwidth", 3)
    ours, torchs = report.contenders
    assert (ours.name, ours.median_s) == ("ours", 0.005)
    assert ours.fraction == pytest.approx(0.4) and torchs.fraction == pytest.approx(0.1)
    assert ours.bytes_per_s == pytest.approx(8e8) and ours.flops_per_s == pytest.approx(2e5)
    assert ours.fraction == pytest.approx(ours.bytes_per_s / report.limits.read_bytes_per_s)


def test_products_of_8_bit_numbers_are_held_against_their_own_rate() -> None:
    slow = case_report(case(0, 16_000_000), [LIMITS], {"x": [1.0]})
    quick = case_report(case(0, 16_000_000, "int8"), [LIMITS], {"x": [1.0]})
    assert (slow.roofline_s, quick.roofline_s) == (0.008, 0.002)
    assert quick.flops_limit_per_s == 8e9


def test_an_engines_cost_is_what_its_ranks_read_and_its_model_multiplies(
    random_checkpoint: Callable[..., Path],
) -> None:
    from transformers import AutoModelForCausalLM

    path = random_checkpoint("llama")
    parameters = dict(AutoModelForCausalLM.from_pretrained(path).named_parameters())
    ranks = [RankStats(i, 0, 0.0, 0.0, 900, 4096, 0, 0, step_bytes=700) for i in range(2)]
    info = GroupInfo("g", "m", "n", False, 512, 1003, 16, 8, 1, 0)
    cost = engine_cost(ModelConfig.load(path), info, ranks)
    assert (cost.weight_bytes, cost.kv_token_bytes) == (1400, 8192 / (8 * 16))
    in_layers = sum(p.numel() for name, p in parameters.items() if ".layers." in name)
    assert cost.token_flops == 2 * in_layers
    assert cost.head_flops == 2 * parameters["lm_head.weight"].numel()


def test_an_engine_is_held_against_whichever_limit_is_lower() -> None:
    cost = EngineCost(weight_bytes=1_000_000, kv_token_bytes=100.0, token_flops=1_000, head_flops=1_000)
    alone = batch_roofline(cost, LIMITS, 1, 96, 8, Speeds(prefill=50_000.0, decode=495.0))
    assert (alone.decode_binds, alone.decode_tokens_per_s) == ("bandwidth", pytest.approx(1e9 / 1_010_000))
    assert alone.decode_fraction == pytest.approx(495.0 / alone.decode_tokens_per_s)
    assert alone.prefill_binds == "bandwidth"
    assert alone.prefill_fraction == pytest.approx(50_000.0 / alone.prefill_tokens_per_s)
    small_cache = EngineCost(1_000_000, 0.001, 1_000, 1_000)
    many = batch_roofline(small_cache, LIMITS, 10_000, 96, 8, Speeds(prefill=1.0, decode=None))
    assert (many.decode_binds, many.decode_tokens_per_s) == ("compute", pytest.approx(2e9 / 2_000))
    assert (many.prefill_binds, many.prefill_tokens_per_s) == ("compute", pytest.approx(2e9 * 96 / (96 * 1000 + 1000)))
    assert many.decode_fraction is None


# ---- the cases


def test_every_operation_that_can_be_asked_for_has_cases() -> None:
    assert tuple(CASES) == OPERATIONS
    for shape in SHAPES.values():
        found = cases(shape, OPERATIONS)
        assert {each.operation for each in found} == set(OPERATIONS)
        assert all(each.bytes > 0 for each in found)
        assert len({(each.operation, each.shape) for each in found}) == len(found)


@pytest.mark.parametrize("layout", [Layout(3, 1, 32), Layout(1, 16, 16), Layout(2, 16, 48)])
def test_the_scores_of_attention_are_the_pairs_its_mask_shows(layout: Layout) -> None:
    mask = torch.ones(layout.queries, layout.length, dtype=torch.bool).tril(layout.length - layout.queries)
    assert layout.scores == layout.sequences * int(mask.sum())
    context = layout.context()
    assert context.starts[-1] == len(context.positions) == len(context.slots) == layout.sequences * layout.queries
    assert len(set(context.tables.flatten().tolist())) == context.tables.numel()
    assert len(set(context.slots.tolist())) == len(context.slots)


@pytest.mark.parametrize("operation", ["linear", "norm", "silu"])
def test_all_contenders_of_a_case_compute_the_same(operation: str) -> None:
    kernels = native_kernels()
    with torch.inference_mode():
        for each in cases(TINY, [operation])[:3]:
            contenders = each.build(kernels, 2)
            results = [torch.as_tensor(contender(1)).float() for contender in contenders.values()]
            assert len(results) > 1
            for other in results[1:]:
                torch.testing.assert_close(results[0], other, rtol=2e-2, atol=2e-2)


def test_rounded_weights_are_compared_with_the_products_they_stand_for() -> None:
    kernels = native_kernels()
    with torch.inference_mode():
        for each in cases(TINY, ["quantised"]):
            ours, exact = (torch.as_tensor(c(1)).float() for c in each.build(kernels, 2).values())
            error = float((ours - exact).norm() / exact.norm())
            assert 1e-4 < error < (0.02 if "int8g" in each.shape else 0.15), each.shape
            assert each.products == ("int8" if each.shape.endswith("a8") else "float")


def test_both_samplers_draw_the_same_tokens() -> None:
    kernels = native_kernels()
    for each in cases(TINY, ["sample"]):
        ours, theirs = (contender(0) for contender in each.build(kernels, 1).values())
        assert torch.equal(ours.token_ids, theirs.token_ids), each.shape


@pytest.mark.usefixtures("small_caches")
def test_a_case_is_timed_with_every_contender_in_every_round() -> None:
    calls: list[str] = []

    def build(kernels: object, copies: int) -> dict[str, Callable[[int], object]]:
        assert copies == 2
        return {name: lambda copy, name=name: calls.append(f"{name}{copy}") for name in "ab"}

    report = KernelBench.open(1).run(Case("none", "-", 1000, 0, build), 3)
    assert report is not None and report.rounds == 3
    assert " ".join(calls) == "a0 b0" + " a0 a1 b0 b1" + " b0 b1 a0 a1" + " a0 a1 b0 b1"
    assert all(each.fraction == pytest.approx(report.roofline_s / each.median_s) for each in report.contenders)


@pytest.mark.usefixtures("small_caches")
def test_a_case_that_does_not_fit_the_memory_is_left_out() -> None:
    assert KernelBench.open(1).run(linear_case(1, Matrix(2**20, 2**24)), 1) is None


# ---- the commands


@pytest.mark.usefixtures("small_caches")
def test_bench_kernels_tells_times_limits_and_fractions(capsys: pytest.CaptureFixture[str]) -> None:
    wanted = ("--op", "norm", "--op", "silu", "--shape", "1 x 576", "--shape", "32 x 1536")
    assert run(["bench", "kernels", *wanted, "--model-shape", "135m", "--rounds", "2", "--threads", "1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["threads"] == 1
    assert [(each["operation"], each["shape"]) for each in found["cases"]] == [
        ("norm", "1 x 576"),
        ("silu", "32 x 1536"),
    ]
    for each in found["cases"]:
        assert each["rounds"] == 2
        assert each["roofline_s"] == pytest.approx(each["bytes"] / each["limits"]["read_bytes_per_s"])
        assert [contender["name"] for contender in each["contenders"]] == ["rayline", "torch"]
        for contender in each["contenders"]:
            assert contender["fraction"] == pytest.approx(each["roofline_s"] / contender["median_s"])
            assert contender["bytes_per_s"] == pytest.approx(each["bytes"] / contender["median_s"])


def test_bench_kernels_refuses_a_shape_there_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", "kernels", "--op", "norm", "--shape", "7 x 7"]) == 2
    assert "no shape contains 7 x 7: there are 1 x 2048" in capsys.readouterr().err


def test_a_table_of_kernels_fits_a_terminal() -> None:
    wide = case_report(case(10**9, 10**11), [LIMITS], {"oneDNN prepacked": [1.5], "F.linear": [2.0]})
    console = Console(width=80)
    with console.capture() as captured:
        console.print(kernel_table([wide], 2))
    text = captured.get()
    assert "…" not in text
    assert all(word in text for word in ("oneDNN prepacked", "(50,000,000)", "compute", "33%", "int8 dot products 8"))


def test_a_table_of_rooflines_says_what_bounds_each_batch() -> None:
    cost = EngineCost(1_000_000, 100.0, 1_000, 1_000)
    rooflines = [batch_roofline(cost, LIMITS, batch, 96, 8, Speeds(50_000.0, None)) for batch in (1, 100)]
    console = Console(width=80)
    with console.capture() as captured:
        console.print(roofline_table(rooflines))
    assert "…" not in captured.get()
    assert "bandwidth" in captured.get() and "compute" in captured.get()


@pytest.mark.usefixtures("small_caches")
def test_bench_engine_holds_each_batch_against_the_limits(
    capsys: pytest.CaptureFixture[str], random_checkpoint: Callable[..., Path]
) -> None:
    """On a model without a tokenizer: the engine needs none."""
    path = random_checkpoint("llama", dtype="bfloat16", head_dim=16)
    assert run(["bench", "engine", str(path), "--batch", "1", "--batch", "2", *SMALL, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["limits_missing"] == ""
    for batch, roofline in zip(found["batches"], found["rooflines"], strict=True):
        assert roofline["batch"] == batch["batch"]
        assert roofline["limits"]["read_bytes_per_s"] > 0
        for phase in ("prefill", "decode"):
            reached = batch[f"{phase}_tokens_per_s"] / roofline[f"{phase}_tokens_per_s"]
            assert roofline[f"{phase}_fraction"] == pytest.approx(reached)
    (rank,) = found["ranks"]
    assert rank["weight_bytes"] - rank["step_bytes"] == 1003 * 72 * 2  # the embedding, of which a step reads rows


def test_bench_engine_without_the_kernels_says_that_there_are_no_limits(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> None:
        raise LibraryMissing("there is no compiler")

    monkeypatch.setattr(machine_probe, "load", missing)
    assert run(["bench", "engine", "--batch", "1", *SMALL]) == 0
    assert "limits not measured: there is no compiler" in capsys.readouterr().out
    sampler = open_sampler(1)
    sampler.sample()
    assert sampler.taken() is None and sampler.close() == 0


class CountingProbe:
    """Tells larger limits each time."""

    buffer_bytes = 77

    def __init__(self) -> None:
        self.samples = 0

    def limits(self, passes: int) -> MachineLimits:
        self.samples += 1
        return MachineLimits(self.samples, self.samples, None, None)


def test_a_sampler_gives_medians_since_it_was_last_asked() -> None:
    slept: list[float] = []
    sampler = LimitSampler(CountingProbe(), sleep=slept.append)
    for _ in range(3):
        sampler.sample()
    assert sampler.taken() == MachineLimits(2, 2, None, None)
    sampler.sample()
    assert sampler.taken() == MachineLimits(4, 4, None, None)
    assert sampler.taken() is None
    assert len(slept) == 4 and sampler.close() == 77


def test_limits_are_those_of_the_cores_the_ranks_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rayline.deploy.commands.bench_engine.usable_cores", lambda: 7)
    assert group_cores({}) == 7
    assert group_cores({"tp": 2}) == 6
    assert group_cores({"threads": 2}) == 2
    assert group_cores({"tp": 2, "pp": 2, "threads": 3}) == 7
