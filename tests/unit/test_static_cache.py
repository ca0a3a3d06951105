"""The static KV cache: slots that hold a whole context each, taken up front, one a sequence, the tokens unchanged."""

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from native import library_or_skip

from rayline.cluster.config import EngineSection, ParallelSection
from rayline.cluster.kv_memory import KvWish, RankMemory, plan_kv, static_slots
from rayline.deploy.banner import ReadyModel, banner
from rayline.deploy.group_replica import GroupSummary
from rayline.protos.errors import NotEnoughMemory
from rayline.protos.events import EngineEvent, TokenEvent
from rayline.protos.types import EngineRequest, SamplingParams
from rayline.router.doors import Doors
from rayline.workers.group import GroupSpec, StartedGroup, start_group
from rayline.workers.models.config import ModelConfig

PROMPTS = [tuple((7 * i + n) % 1003 for i in range(n)) for n in (1, 5, 16, 40, 17, 33)]
CONTEXT = 100
WISH = KvWish(
    kv_bytes=0,
    memory_fraction=0.5,
    block_tokens=112,
    max_model_len=CONTEXT,
    model_limit=512,
    max_running=8,
    groups=1,
    is_static=True,
)
SLOT_BYTES = 1000


@pytest.fixture(scope="module")
def path(random_checkpoint: Callable[..., Path]) -> Path:
    return random_checkpoint("llama", dtype="bfloat16", head_dim=32, hidden_size=64, intermediate_size=96)


def start(path: Path, kv_cache: str, max_running: int = 4, dtype: str = "auto", **engine: Any) -> StartedGroup:
    section = EngineSection(kv_cache=kv_cache, max_running=max_running, max_step_tokens=16, threads=1, **engine)  # type: ignore[arg-type]
    spec = GroupSpec("g", "m", path, dtype, CONTEXT, section, ParallelSection(), max_waiting=64)
    return start_group(spec, None, lambda *_: None)


def run(group: StartedGroup, prompts: Sequence[tuple[int, ...]], priorities: Sequence[int] = ()) -> list[EngineEvent]:
    params = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True, seed=0, logprobs=0)
    for number, prompt_ids in enumerate(prompts):
        priority = priorities[number] if priorities else 0
        group.engine.add(EngineRequest(str(number), prompt_ids, params, priority=priority))
    events: list[EngineEvent] = []
    while group.engine.has_work:
        events += group.engine.step()
    group.engine.scheduler.pool.check([])
    return events


def tokens_of(events: Sequence[EngineEvent]) -> dict[str, list[tuple[int, float | None]]]:
    found: dict[str, list[tuple[int, float | None]]] = {}
    for event in events:
        if isinstance(event, TokenEvent):
            found.setdefault(event.request_id, []).append((event.token_id, event.logprob))
    return found


# ---- slots


def test_a_slot_holds_a_context_and_is_never_shared() -> None:
    for context, slot_tokens in ((100, 112), (112, 112), (2, 16), (8192, 8192)):
        engine = static_slots(EngineSection(), context)
        assert (engine.block_tokens, engine.prefix_caching) == (slot_tokens, False)


def test_there_are_as_many_slots_as_sequences_run_or_memory_holds() -> None:
    for free_bytes, slots in ((10**6, 8), (10_000, 5), (2_000, 1)):
        plan = plan_kv([RankMemory("a", free_bytes, SLOT_BYTES)], WISH)
        assert (plan.blocks, plan.max_model_len, plan.is_static) == (slots, CONTEXT, True)


def test_given_bytes_make_no_slot_that_nobody_can_use() -> None:
    for kv_bytes, slots in ((3_999, 3), (100_000, 8)):
        wish = KvWish(kv_bytes, 0.5, 112, CONTEXT, 512, 8, 1, is_static=True)
        assert plan_kv([RankMemory("a", 10**6, SLOT_BYTES)], wish).blocks == slots


def test_no_room_for_one_slot_is_refused_and_says_what_would_do() -> None:
    with pytest.raises(NotEnoughMemory, match=r"kv_cache = static needs kv_bytes of at least 1000 .* 112 tokens") as no:
        plan_kv([RankMemory("a", 1_999, SLOT_BYTES)], WISH)
    assert no.value.field == "kv_cache"


GROWTH = """
import psutil, torch
from rayline.workers.cache import KvCache
process, caches = psutil.Process(), []
for up_front in (False, True):
    before = process.memory_info().rss
    caches.append(KvCache(1, 80, 1024, 4, 64, torch.bfloat16, torch.device("cpu"), up_front))
    print(process.memory_info().rss - before)
assert all(int(layer.keys.count_nonzero()) == 0 for layer in caches[1].layers)
print(caches[1].bytes)
"""


def test_all_memory_of_the_cache_is_taken_at_the_start() -> None:
    """In a process of its own: here, memory that other tests have given back would be taken again."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", GROWTH], env=environment, capture_output=True, text=True, check=True)
    lazily, at_once, size_bytes = map(int, done.stdout.split())
    assert size_bytes == 2 * 80 * 1024 * 4 * 64 * 2
    assert at_once > 0.9 * size_bytes > lazily


# ---- the engine


@pytest.mark.parametrize("kernels", ["native", "torch"])
def test_the_kind_of_cache_changes_no_token(path: Path, kernels: str) -> None:
    if kernels == "native":
        library_or_skip()
    dtype = "bfloat16" if kernels == "native" else "float32"
    events = {kind: run(start(path, kind, dtype=dtype, kernels=kernels), PROMPTS) for kind in ("paged", "static")}
    tokens = {kind: tokens_of(each) for kind, each in events.items()}
    if kernels == "native":
        assert tokens["static"] == tokens["paged"]  # logprobs too, to the bit
    else:
        ids = {kind: {name: [t for t, _ in pairs] for name, pairs in each.items()} for kind, each in tokens.items()}
        assert ids["static"] == ids["paged"]


def test_a_sequence_waits_for_a_slot_and_nobody_is_preempted(path: Path) -> None:
    block_bytes = 2 * 3 * 2 * 32 * 4 * 112  # keys and values x layers x KV heads x head dim x float32 x tokens
    group = start(path, "static", dtype="float32", kv_bytes=2 * block_bytes)
    assert (group.kv.blocks, group.info.block_tokens) == (2, 112)
    most = 0
    for number, prompt_ids in enumerate(PROMPTS):
        params = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True, seed=0)
        group.engine.add(EngineRequest(str(number), prompt_ids, params, priority=-number))
    while group.engine.has_work:
        group.engine.step()
        most = max(most, group.engine.load().running)
    assert most == 2
    assert group.engine.scheduler.stats.preemptions == 0


def test_a_context_can_be_filled_to_its_end(path: Path) -> None:
    group = start(path, "static", dtype="float32")
    params = SamplingParams(temperature=0.0, ignore_eos=True, seed=0)
    group.engine.add(EngineRequest("long", (5,) * 90, params))
    count = 0
    while group.engine.has_work:
        count += sum(isinstance(event, TokenEvent) for event in group.engine.step())
    assert count == CONTEXT - 90


def test_the_banner_counts_slots(path: Path) -> None:
    group = start(path, "static", dtype="float32")
    summary = GroupSummary(group.info, group.kernels, group.kv, 0, 0.0, 0.0)
    model = ReadyModel(ModelConfig.load(path), summary)
    assert "KV     4 slots x 112 tokens = 448 tokens" in banner([model], ParallelSection(), [Doors("h", 1, 2)])


def test_the_banner_says_why_a_class_is_not_exact(path: Path) -> None:
    group = start(path, "paged", dtype="float32")
    model = ReadyModel(ModelConfig.load(path), GroupSummary(group.info, group.kernels, group.kv, 0, 0.0, 0.0))
    text = banner([model], ParallelSection(), [Doors("h", 1, 2)])
    assert "exact=false" in text and "note   the C++ kernels compute bfloat16 on CPUs, not torch.float32" in text
