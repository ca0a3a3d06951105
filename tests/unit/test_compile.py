"""Compiled decode steps: the same tokens, nothing compiled and no memory taken once warm, and what is refused."""

import resource
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo
from native import library_or_skip

from rayline.cluster.config import EngineSection, ParallelSection
from rayline.kernels import choice as choice_module
from rayline.kernels import compiled_kernels
from rayline.kernels.choice import KernelOptions, build, choose
from rayline.kernels.compiled_kernels import bucket_of, missing_compiler
from rayline.kernels.gpu import Gpu
from rayline.kernels.library import read_arguments
from rayline.kernels.operators import schema
from rayline.protos.errors import ConfigError
from rayline.protos.events import TokenEvent
from rayline.protos.types import EngineRequest, SamplingParams
from rayline.workers import group as group_module
from rayline.workers.group import GroupSpec, StartedGroup, check_group, start_group

Steps = list[tuple[str, int, float | None]]
PROMPTS = [tuple((11 * i + n) % 1003 for i in range(n)) for n in (3, 20, 1)]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def path(random_checkpoint: Callable[..., Path]) -> Path:
    shape = {"head_dim": 32, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1}
    return random_checkpoint("llama", dtype="bfloat16", **shape)


def group_spec(path: Path, *, tp: int = 1, dtype: str = "auto", **engine: Any) -> GroupSpec:
    section = EngineSection(**({"kv_cache": "static", "max_running": 2, "max_step_tokens": 16, "threads": 1} | engine))
    return GroupSpec("g", "m", path, dtype, 64, section, ParallelSection(tp=tp), max_waiting=64)


def start(path: Path, **changes: Any) -> StartedGroup:
    spec = group_spec(path, **changes)
    section = spec.engine
    phases: list[tuple[int, str, int, int]] = []
    group = start_group(spec, None, lambda *event: phases.append(event))
    shown = [event[2:] for event in phases if event[1] == "compile"]
    sizes = len({bucket_of(rows) for rows in range(1, section.max_running + 1)})
    assert shown == ([(done, sizes) for done in range(sizes + 1)] if section.compile else [])
    return group


def run(group: StartedGroup, prompts: Sequence[tuple[int, ...]], max_tokens: int = 10) -> Steps:
    params = SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True, seed=0, logprobs=0)
    for number, prompt_ids in enumerate(prompts):
        group.engine.add(EngineRequest(str(number), prompt_ids, params))
    found: Steps = []
    while group.engine.has_work:
        events = [event for event in group.engine.step() if isinstance(event, TokenEvent)]
        found += [(event.request_id, event.token_id, event.logprob) for event in events]
    return sorted(found, key=lambda step: step[0])  # stable: a request's tokens stay in order


@pytest.fixture(scope="module")
def native(path: Path) -> StartedGroup:
    library_or_skip()
    return start(path, compile=True)


@pytest.fixture(scope="module")
def compiled_torch(path: Path) -> Iterator[StartedGroup]:
    if why := missing_compiler():
        pytest.skip(why)
    threads = torch.get_num_threads()
    yield start(path, compile=True, dtype="float32", max_running=1)
    torch.set_num_threads(threads)


# ---- what comes out


def test_compiled_native_steps_have_the_bits_of_the_recorded_ones(path: Path, native: StartedGroup) -> None:
    recorded = start(path)
    assert run(native, PROMPTS) == run(recorded, PROMPTS)
    assert native.info.numerics == recorded.info.numerics and native.info.exact


def test_compiled_torch_steps_give_the_tokens_of_eager_ones(path: Path, compiled_torch: StartedGroup) -> None:
    eager = start(path, dtype="float32", max_running=1)
    ours, theirs = run(compiled_torch, PROMPTS), run(eager, PROMPTS)
    assert [step[:2] for step in ours] == [step[:2] for step in theirs]
    torch.testing.assert_close([step[2] for step in ours], [step[2] for step in theirs], rtol=0, atol=1e-4)


def test_a_compiler_that_orders_sums_has_a_class_of_its_own(compiled_torch: StartedGroup) -> None:
    assert (compiled_torch.info.numerics, compiled_torch.info.exact) == ("cpu-torch-compiled-float32-tp1", False)


# ---- once warm


@pytest.mark.parametrize("kind", ["native", "compiled_torch"])
def test_no_step_compiles_anything_once_the_group_is_ready(kind: str, request: pytest.FixtureRequest) -> None:
    group: StartedGroup = request.getfixturevalue(kind)
    before = compilations()
    with torch._dynamo.config.patch(error_on_recompile=True):
        for prompts in (PROMPTS, PROMPTS[:1], PROMPTS[1:]):  # batches of one and more, joined and left midway
            run(group, prompts)
    assert compilations() == before > 0


def compilations() -> int:
    """Graphs that torch has captured in this process."""
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


@pytest.mark.parametrize("kind", ["native", "compiled_torch"])
def test_a_warm_step_gives_back_all_memory_it_asks_for(kind: str, request: pytest.FixtureRequest) -> None:
    step = warm_step(request.getfixturevalue(kind))
    each = [allocations(step) for _ in range(5)][1:]  # the first frees what was made before anybody counted
    assert len({count for count, _ in each}) == 1  # as many requests to torch's allocator in every step
    assert [kept for _, kept in each] == [0] * 4


def allocations(function: Callable[[], object]) -> tuple[int, int]:
    """How often `function` asked torch for memory, and how many bytes it still holds."""
    with torch.profiler.profile(profile_memory=True) as profile:
        function()
    results = profile.profiler.kineto_results  # type: ignore[union-attr]
    sizes = [event.nbytes() for event in results.events() if event.name() == "[memory]"]
    return sum(size > 0 for size in sizes), sum(sizes)


@pytest.mark.parametrize("kind", ["native", "compiled_torch"])
def test_warm_steps_ask_the_system_for_no_pages(kind: str, request: pytest.FixtureRequest) -> None:
    step = warm_step(request.getfixturevalue(kind))
    before = page_faults()
    for _ in range(40):
        step()
    assert page_faults() - before < 40  # one buffer that is mapped anew would fault more than once a step


def page_faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def warm_step(group: StartedGroup) -> Callable[[], object]:
    """The steps of one request whose first ones are over; there are 45 left."""
    run(group, ())  # ends what another test began
    params = SamplingParams(temperature=0.0, ignore_eos=True, seed=0)
    group.engine.add(EngineRequest("long", (5, 6, 7), params))
    for _ in range(15):
        group.engine.step()
    return group.engine.step


# ---- parts


def test_a_bucket_is_the_next_power_of_two() -> None:
    assert [bucket_of(rows) for rows in (1, 2, 3, 4, 5, 8, 9, 64)] == [1, 2, 4, 4, 8, 8, 16, 64]


def test_an_operator_declares_what_its_operation_writes() -> None:
    arguments = read_arguments()
    assert schema(arguments["Add"]) == "Add(Tensor step, Tensor? x, Tensor? y, Tensor(a!)? out, int dim) -> ()"
    assert "Tensor(b!)? keys, Tensor(c!)? values" in schema(arguments["WriteKv"])
    assert "Tensor? keys, Tensor? values" in schema(arguments["Attend"])


# ---- what is refused


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"kv_cache": "paged"}, "needs kv_cache = static"),
        ({"tp": 2}, "tp = 2 .* allowed is tp = 1"),
    ],
    ids=["a paged cache", "ranks that sum inside a step"],
)
def test_what_cannot_be_compiled_is_refused_by_name(path: Path, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says) as refused:
        start(path, compile=True, **changes)
    assert refused.value.field == "compile"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"decode_graphs": False}, "allowed is decode_graphs = true"),
        ({"tp": 2}, "tp = 2 .* allowed is tp = 1"),
        ({"kernels": "triton-exact"}, "keeps the order of its sums"),
    ],
    ids=["launched steps", "ranks that sum inside a step", "the exact class"],
)
def test_what_cannot_be_compiled_on_gpus_is_refused_by_name(
    path: Path, changes: dict[str, Any], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    a_gpu(monkeypatch)
    with pytest.raises(ConfigError, match=says) as refused:
        check_group(group_spec(path, **({"kv_cache": "paged", "compile": True} | changes)))
    assert refused.value.field == "compile"


def test_on_gpus_either_cache_can_be_compiled(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a_gpu(monkeypatch)
    for kv_cache in ("paged", "static"):
        check_group(group_spec(path, kv_cache=kv_cache, compile=True, attention="triton"))


def a_gpu(patch: pytest.MonkeyPatch) -> None:
    """A GPU as the start of a group sees it."""
    patch.setattr(group_module, "device_type", lambda: "cuda")
    patch.setattr(choice_module, "gpu_of", lambda device: Gpu(132, "sm90", 90))


def test_a_missing_compiler_is_refused_and_named(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", ("no-such-compiler",))
    assert "no C++ compiler" in missing_compiler()
    with pytest.raises(ConfigError, match=r"no C\+\+ compiler") as refused:
        start(path, compile=True, dtype="float32")
    assert refused.value.field == "compile"


def test_the_layout_of_onednn_is_not_compiled() -> None:
    with pytest.raises(ValueError, match="cannot be compiled"):
        choose(CPU, torch.bfloat16, KernelOptions("onednn", compile=True))


def test_the_choice_names_what_the_compiler_may_change() -> None:
    library_or_skip()
    compiled = KernelOptions(compile=True)
    assert choose(CPU, torch.float32, compiled).name == "torch" + compiled_kernels.SUFFIX
    native = choose(CPU, torch.bfloat16, compiled)
    assert native.name == choose(CPU, torch.bfloat16, KernelOptions()).name
    assert build(native, 1, None).exact
