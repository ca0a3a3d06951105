"""A group of one rank on a random checkpoint: greedy tokens equal transformers' whatever the schedule; bad starts."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from native import library_or_skip
from transformers import AutoModelForCausalLM

from rayline.cluster.config import EngineSection, ParallelSection
from rayline.cluster.parallel import Parallel
from rayline.kernels.choice import Choice, KernelOptions
from rayline.kernels.gpu import Gpu
from rayline.protos.errors import ConfigError, ModelError, NotEnoughMemory, RaylineError
from rayline.protos.events import Finished, TokenEvent
from rayline.protos.types import EngineRequest, SamplingParams
from rayline.workers.group import GroupSpec, StartedGroup, check_group, graph_rows, launch_window, numerics, start_group
from rayline.workers.in_process import InProcess
from rayline.workers.models.config import ModelConfig
from rayline.workers.spec import RankSpec

BLOCK_TOKENS = 4
BLOCK_BYTES = 2 * 3 * 2 * 20 * 4 * BLOCK_TOKENS  # keys and values x layers x KV heads x head dim x float32 x tokens
ENGINE = EngineSection(
    block_tokens=BLOCK_TOKENS, max_step_tokens=16, max_running=8, threads=1, kv_bytes=200 * BLOCK_BYTES
)
NEW_TOKENS = 24


@pytest.fixture(scope="module")
def path(random_checkpoint: Callable[..., Path]) -> Iterator[Path]:
    threads = torch.get_num_threads()
    yield random_checkpoint("llama")
    torch.set_num_threads(threads)


def test_decode_steps_are_captured_where_triton_computes() -> None:
    engine, gpu = EngineSection(max_running=48), Choice("triton", False, "", gpu=Gpu(132, "sm90", 90))
    assert graph_rows(engine, gpu) == 48
    assert graph_rows(replace(engine, decode_graphs=False), gpu) == 0
    assert graph_rows(engine, Choice("torch", False, "")) == 0


def group_spec(path: Path, **changes: Any) -> GroupSpec:
    engine = {key: changes.pop(key) for key in list(changes) if hasattr(ENGINE, key)}
    base: dict[str, Any] = dict(
        group_id="g0", model="tiny", path=path, dtype="float32", max_model_len=0, parallel=ParallelSection()
    )
    return GroupSpec(**(base | {"engine": replace(ENGINE, **engine), "max_waiting": 100} | changes))


def start(path: Path, **changes: Any) -> StartedGroup:
    return start_group(group_spec(path, **changes), None, lambda *_: None)


def prompt(length: int, seed: int = 0) -> tuple[int, ...]:
    generator = torch.Generator().manual_seed(1000 * seed + length)
    return tuple(torch.randint(3, 1003, (length,), generator=generator).tolist())


@cache
def model(path: Path) -> Any:
    loaded: Any = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    return loaded.eval()


@cache
def expected(path: Path, prompt_ids: tuple[int, ...]) -> list[int]:
    """transformers' own greedy tokens."""
    with torch.inference_mode():
        whole = model(path).generate(
            torch.tensor([prompt_ids]),
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
    tokens: list[int] = whole[0, len(prompt_ids) :].tolist()
    return tokens


def answers(group: StartedGroup, prompts: Sequence[tuple[int, ...]]) -> tuple[list[list[int]], list[Finished]]:
    """All prompts in one batch: their tokens and their ends, in the prompts' order."""
    params = SamplingParams(temperature=0.0, max_tokens=NEW_TOKENS, ignore_eos=True, seed=0)
    tokens: dict[str, list[int]] = {str(number): [] for number in range(len(prompts))}
    ends: dict[str, Finished] = {}
    for number, prompt_ids in enumerate(prompts):
        group.engine.add(EngineRequest(str(number), prompt_ids, params))
    while group.engine.has_work:
        for event in group.engine.step():
            if isinstance(event, TokenEvent):
                tokens[event.request_id].append(event.token_id)
            elif isinstance(event, Finished):
                ends[event.request_id] = event
    group.engine.scheduler.pool.check([])
    return list(tokens.values()), [ends[request_id] for request_id in tokens]


def assert_answers(group: StartedGroup, path: Path, prompts: Sequence[tuple[int, ...]]) -> list[Finished]:
    tokens, ends = answers(group, prompts)
    assert tokens == [expected(path, each) for each in prompts]
    return ends


def test_prompts_longer_than_a_step_are_answered_as_by_transformers(path: Path) -> None:
    group = start(path)
    assert_answers(group, path, [prompt(length) for length in (1, 5, 16, 17, 40, 75)])
    assert group.engine.scheduler.stats.steps > NEW_TOKENS


@pytest.mark.parametrize("block_tokens", [1, 3, 16])
def test_the_size_of_a_block_changes_no_token(path: Path, block_tokens: int) -> None:
    group = start(path, block_tokens=block_tokens)
    assert group.info.block_tokens == block_tokens
    assert_answers(group, path, [prompt(length) for length in (5, 40)])


def test_reused_prefixes_change_no_token(path: Path) -> None:
    group = start(path)
    long = prompt(40)
    prompts = [long, long, long[:30], long[:20] + prompt(9, seed=1)]
    first = assert_answers(group, path, prompts)
    again = assert_answers(group, path, prompts)
    assert [end.usage.cached_tokens for end in again] == [36, 36, 28, 28]
    assert first[0].usage.cached_tokens == 0


def test_without_the_prefix_cache_nothing_is_reused(path: Path) -> None:
    group = start(path, prefix_caching=False)
    for _ in range(2):
        ends = assert_answers(group, path, [prompt(40)])
    assert ends[0].usage.cached_tokens == 0


def test_preempted_requests_are_answered_as_if_they_had_run_through(path: Path) -> None:
    group = start(path, kv_bytes=26 * BLOCK_BYTES, max_model_len=100, prefix_caching=False, decode_stretch=1000.0)
    assert group.kv.blocks == 26
    assert_answers(group, path, [prompt(length) for length in (30, 28, 33, 40)])
    assert group.engine.scheduler.stats.preemptions > 0
    assert group.engine.scheduler.stats.recomputed_tokens > 0


def test_preemption_and_prefix_hits_together_change_no_token(path: Path) -> None:
    group = start(path, kv_bytes=26 * BLOCK_BYTES, max_model_len=100, decode_stretch=1000.0)
    shared = prompt(24)
    prompts = [shared + prompt(6, seed=1), shared + prompt(9, seed=2), prompt(33), shared]
    for _ in range(2):
        assert_answers(group, path, prompts)
    assert group.engine.scheduler.stats.preemptions > 0
    assert group.engine.scheduler.stats.cached_tokens > 0


def test_steps_are_launched_ahead_on_gpus_of_one_stage_or_where_they_are_asked_to() -> None:
    auto, always, never = (EngineSection(async_scheduling=wish) for wish in ("auto", "always", "never"))
    assert [launch_window(auto, device, pp) for device, pp in (("cuda", 1), ("cuda", 2), ("cpu", 1))] == [2, 1, 1]
    assert [launch_window(always, device, 1) for device in ("cuda", "cpu")] == [2, 2]
    assert [launch_window(never, "cuda", pp) for pp in (1, 2)] == [1, 1]
    with pytest.raises(ConfigError, match="pp = 2: allowed is pp = 1") as caught:
        launch_window(always, "cuda", 2)
    assert caught.value.field == "async_scheduling"


def test_steps_that_are_launched_ahead_answer_as_transformers_do(path: Path) -> None:
    group = start(path, async_scheduling="always", kv_bytes=26 * BLOCK_BYTES, max_model_len=100, decode_stretch=1000.0)
    assert group.engine.pipeline.window == 2
    assert_answers(group, path, [prompt(length) for length in (30, 28, 33, 40)])
    assert group.engine.scheduler.stats.preemptions > 0
    assert group.engine.pipeline.in_flight == 0 and len(group.engine.pipeline.rank_stats()) == 1


def test_a_started_group_says_what_it_is(path: Path) -> None:
    group = start(path, max_model_len=100)
    info = group.info
    assert (info.group_id, info.model, info.vocab_size, info.max_waiting) == ("g0", "tiny", 1003, 100)
    assert (info.max_model_len, info.block_tokens, info.total_blocks) == (100, BLOCK_TOKENS, 200)
    assert info.numerics.startswith("cpu-") and "float32" in info.numerics and info.numerics.endswith("tp1")
    (loaded,) = group.loaded
    assert loaded.block_bytes == BLOCK_BYTES
    assert group.kv.bytes == 200 * BLOCK_BYTES
    assert loaded.weight_bytes >= sum(p.numel() * 4 for p in model(path).parameters())
    assert loaded.read_bytes <= sum(file.stat().st_size for file in path.glob("*.safetensors"))


def test_every_long_phase_is_told(path: Path) -> None:
    seen: list[tuple[int, str, int, int]] = []
    start_group(group_spec(path), None, lambda *event: seen.append(event))
    assert {phase for _, phase, _, _ in seen} == {"read weights", "warm up"}
    reading = [(done, total) for _, phase, done, total in seen if phase == "read weights"]
    assert reading == sorted(reading) and reading[-1][0] == reading[-1][1] > 0
    assert seen[-1] == (0, "warm up", 1, 1)


def test_warming_up_leaves_nothing_behind(path: Path) -> None:
    group = start(path)
    load = group.engine.load()
    assert (load.running, load.waiting, load.free_blocks) == (0, 0, load.total_blocks)


def test_the_rank_counts_its_work(path: Path) -> None:
    group = start(path)
    assert isinstance(group.engine.pipeline, InProcess)
    group.engine.pipeline.rank_stats()
    answers(group, [prompt(20)])
    (stats,) = group.engine.pipeline.rank_stats()
    assert 0.0 < stats.busy_s <= stats.wall_s
    assert stats.cache_bytes == group.kv.bytes
    assert stats.weight_bytes == group.loaded[0].weight_bytes
    (idle,) = group.engine.pipeline.rank_stats()
    assert idle.busy_s == 0.0


def test_the_checkpoints_own_dtype_is_taken_by_default(random_checkpoint: Callable[..., Path]) -> None:
    group = start(random_checkpoint("llama", dtype="bfloat16"), dtype="auto")
    assert "bfloat16" in group.info.numerics
    assert group.loaded[0].block_bytes == BLOCK_BYTES // 2


def test_a_model_that_the_native_kernels_cannot_lay_out_runs_without_them(path: Path) -> None:
    group = start(path, dtype="bfloat16", block_tokens=16)
    assert not group.info.exact and "head_dim = 20" in group.kernels
    with pytest.raises(ConfigError, match="head_dim = 20") as caught:
        check_group(group_spec(path, dtype="bfloat16", kernels="native"))
    assert caught.value.field == "kernels"


def test_an_exact_class_names_tp_only_where_the_tree_does_not_fit(random_checkpoint: Callable[..., Path]) -> None:
    library_or_skip()
    config = ModelConfig.load(random_checkpoint("llama"))
    fits = replace(config, head_dim=16, heads=8, intermediate_size=96)
    for tp, changed, name in (
        (1, fits, "cpu-fma-bfloat16"),
        (4, fits, "cpu-fma-bfloat16"),
        (3, fits, "cpu-fma-bfloat16-tp3"),
        (2, replace(fits, intermediate_size=104), "cpu-fma-bfloat16-tp2"),
    ):
        spec = RankSpec(Path(), "bfloat16", "cpu", Parallel(tp_size=tp), 1, 16, 0)
        assert (numerics(spec, changed).name.replace("dpbf16", "fma"), numerics(spec, changed).exact) == (name, True)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        (KernelOptions(quantize="int8"), "cpu-fma-int8g128-bfloat16"),
        (KernelOptions(quantize="int4"), "cpu-fma-int4g64-bfloat16"),
        (KernelOptions(quantize="int4", activations="int8"), "cpu-fma-int4g64a8-bfloat16"),
    ],
)
def test_quantised_weights_are_exact_classes_of_their_own(
    random_checkpoint: Callable[..., Path], options: KernelOptions, name: str
) -> None:
    library_or_skip()
    config = replace(ModelConfig.load(random_checkpoint("llama")), head_dim=64, heads=16, intermediate_size=2048)
    for tp, changed, expected in (
        (1, config, name),
        (2, config, name),
        (2, replace(config, intermediate_size=2048 + 64), f"{name}-tp2"),
    ):
        spec = RankSpec(Path(), "bfloat16", "cpu", Parallel(tp_size=tp), 1, 16, 0, options)
        assert (numerics(spec, changed).name, numerics(spec, changed).exact) == (expected, True)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"quantize": "int8"}, "quantize"),
        ({"quantize": "int4", "dtype": "bfloat16", "kernels": "onednn"}, "quantize"),
        ({"activations": "int8", "dtype": "bfloat16"}, "activations"),
    ],
)
def test_quantisation_that_cannot_be_is_refused_by_name(
    random_checkpoint: Callable[..., Path], changes: dict[str, Any], field: str
) -> None:
    library_or_skip()
    folder = random_checkpoint("llama", head_dim=16) if "dtype" in changes else random_checkpoint("llama")
    with pytest.raises(ConfigError, match=f"{field} = int") as caught:
        check_group(group_spec(folder, block_tokens=16, **changes))
    assert caught.value.field == field


@pytest.mark.parametrize("max_model_len", [2, 3, 100, 512])
def test_any_context_up_to_the_models_can_be_asked_for(path: Path, max_model_len: int) -> None:
    group = start(path, max_model_len=max_model_len)
    assert group.info.max_model_len == max_model_len
    group.engine.add(EngineRequest("r", (5,) * (max_model_len - 1), SamplingParams(seed=0, ignore_eos=True)))
    events = []
    while group.engine.has_work:
        events += group.engine.step()
    assert sum(isinstance(event, TokenEvent) for event in events) == 1


# ---- what cannot start

REFUSED: dict[str, tuple[dict[str, Any], type[RaylineError], str, str]] = {
    "tp that does not divide": (
        {"parallel": ParallelSection(tp=3)},
        ConfigError,
        "tp",
        "tp = 3 does not divide ",
    ),
    "more stages than layers": (
        {"parallel": ParallelSection(pp=4)},
        ConfigError,
        "pp",
        "pp = 4 is out of range: the model has 3 layers",
    ),
    "a context beyond the model's": (
        {"max_model_len": 513},
        ConfigError,
        "max_model_len",
        "max_model_len = 513 is out of range: the model allows 2 to 512",
    ),
    "a context without room for an answer": (
        {"max_model_len": 1},
        ConfigError,
        "max_model_len",
        "max_model_len = 1 is out of range",
    ),
    "more running sequences than tokens in a step": (
        {"max_running": 17},
        ConfigError,
        "max_running",
        "max_running = 17 is out of range: allowed is up to max_step_tokens = 16",
    ),
}
NO_ROOM: dict[str, tuple[dict[str, Any], str]] = {
    "kv_bytes below one block": (
        {"kv_bytes": BLOCK_BYTES - 1},
        f"room for 0 tokens, the shortest request needs kv_bytes of at least {BLOCK_BYTES} ",
    ),
    "kv_bytes below one context": (
        {"kv_bytes": 24 * BLOCK_BYTES, "max_model_len": 100},
        f"room for 96 tokens, max_model_len = 100 needs kv_bytes of at least {25 * BLOCK_BYTES} ",
    ),
    "kv_bytes above the memory": ({"kv_bytes": 2**60}, rf"kv_bytes = {2**60} is out of range: at most \d+ bytes"),
}


@pytest.mark.parametrize(("changes", "kind", "field", "message"), REFUSED.values(), ids=REFUSED)
def test_options_that_do_not_fit_the_model_are_refused_by_name_with_or_without_starting(
    path: Path, changes: dict[str, Any], kind: type[RaylineError], field: str, message: str
) -> None:
    for begin in (lambda: start(path, **changes), lambda: check_group(group_spec(path, **changes))):
        with pytest.raises(kind, match=message) as refused:
            begin()
        assert refused.value.field == field


@pytest.mark.parametrize(("changes", "message"), NO_ROOM.values(), ids=NO_ROOM)
def test_too_little_or_too_much_memory_is_refused_with_the_allowed_figure(
    path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(NotEnoughMemory, match=message) as refused:
        start(path, **changes)
    assert refused.value.field == "kv_bytes"


@pytest.fixture
def copied(path: Path, tmp_path: Path) -> Path:
    """A copy of the checkpoint to damage."""
    for file in path.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


@pytest.mark.parametrize("left", [0, 7, 100, -1, -1000])
def test_a_truncated_weight_file_is_named(copied: Path, left: int) -> None:
    file = copied / "model.safetensors"
    file.write_bytes(file.read_bytes()[:left])
    for begin in (lambda: start(copied), lambda: check_group(group_spec(copied))):
        with pytest.raises(ModelError, match=r"model\.safetensors"):
            begin()


def test_a_missing_weight_file_is_named(copied: Path) -> None:
    (copied / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"model\.safetensors"):
        start(copied)


def test_a_config_that_is_not_json_is_named(copied: Path) -> None:
    (copied / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"config\.json"):
        start(copied)


def test_weights_of_another_shape_than_the_configs_are_refused(copied: Path) -> None:
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps(config | {"intermediate_size": 101}))
    with pytest.raises(ModelError, match=r"mlp\.\w+_proj\.weight"):
        start(copied)


def test_after_a_refused_start_another_one_works(path: Path) -> None:
    with pytest.raises(NotEnoughMemory):
        start(path, kv_bytes=1)
    assert_answers(start(path), path, [prompt(5)])
