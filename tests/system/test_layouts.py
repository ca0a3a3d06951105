"""One model cut in every way: equal greedy tokens, logprobs within 1e-4, memory shared out, nothing left running."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from rayline.cluster.config import EngineSection, ParallelSection
from rayline.protos.errors import Unavailable
from rayline.protos.events import TokenEvent
from rayline.protos.types import EngineRequest, SamplingParams
from rayline.workers.group import GroupSpec, StartedGroup, start_group
from rayline.workers.local_launch import LocalLauncher
from rayline.workers.pipeline import RankStats

LAYOUTS = [(1, 1), (2, 1), (1, 2), (2, 2), (4, 1)]
PROMPTS = [tuple((7 * i + 3 * j + 5) % 1003 for j in range(length)) for i, length in enumerate((5, 40, 17, 1))]


@dataclass(frozen=True)
class Outcome:
    """What a layout answered: per prompt the tokens, and their best logprobs by token id."""

    tokens: list[list[int]]
    logprobs: list[list[dict[int, float]]]
    stats: tuple[RankStats, ...]


@pytest.fixture(scope="module")
def checkpoint(random_checkpoint: Callable[..., Path]) -> Path:
    """Four heads over two KV heads, so that tp 4 replicates them; layers heavy enough to be shared out evenly."""
    return random_checkpoint(
        "llama", num_hidden_layers=8, hidden_size=96, intermediate_size=512, tie_word_embeddings=False
    )


def started(path: Path, tp: int, pp: int, launcher: LocalLauncher | None) -> StartedGroup:
    engine = EngineSection(threads=1, max_step_tokens=16, max_running=8, block_tokens=4, kv_bytes=2_000_000)
    spec = GroupSpec("test", "test", path, "float32", 128, engine, ParallelSection(tp, pp, 1), 16)
    return start_group(spec, launcher, lambda rank, phase, done, total: None)


def outcome(path: Path, tp: int, pp: int) -> Outcome:
    group = started(path, tp, pp, LocalLauncher() if tp * pp > 1 else None)
    tokens: list[list[int]] = [[] for _ in PROMPTS]
    logprobs: list[list[dict[int, float]]] = [[] for _ in PROMPTS]
    params = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True, seed=0, logprobs=5)
    try:
        for index, prompt in enumerate(PROMPTS):
            group.engine.add(EngineRequest(str(index), prompt, params))
        while group.engine.has_work:
            for event in group.engine.step():
                if isinstance(event, TokenEvent):
                    tokens[int(event.request_id)].append(event.token_id)
                    best = {entry.token_id: entry.logprob for entry in event.top_logprobs}
                    logprobs[int(event.request_id)].append(best)
        return Outcome(tokens, logprobs, group.engine.pipeline.rank_stats())
    finally:
        group.engine.close()


@pytest.fixture(scope="module")
def outcomes(checkpoint: Path) -> Iterator[dict[tuple[int, int], Outcome]]:
    yield {layout: outcome(checkpoint, *layout) for layout in LAYOUTS}


@pytest.mark.parametrize(("tp", "pp"), LAYOUTS[1:])
def test_a_layout_gives_the_tokens_and_logprobs_of_one_process(
    outcomes: dict[tuple[int, int], Outcome], tp: int, pp: int
) -> None:
    alone, together = outcomes[1, 1], outcomes[tp, pp]
    assert together.tokens == alone.tokens
    for mine, theirs in zip(together.logprobs, alone.logprobs, strict=True):
        for step, expected in zip(mine, theirs, strict=True):
            assert step == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(("tp", "pp"), LAYOUTS[1:])
def test_each_rank_holds_and_reads_about_its_share_of_the_weights(
    outcomes: dict[tuple[int, int], Outcome], tp: int, pp: int
) -> None:
    (whole,) = outcomes[1, 1].stats
    ranks = outcomes[tp, pp].stats
    assert len(ranks) == tp * pp
    for rank in ranks:
        assert rank.weight_bytes <= 1.2 * whole.weight_bytes / (tp * pp)
        assert rank.read_bytes <= 1.2 * whole.read_bytes / (tp * pp)
    assert sum(rank.read_bytes for rank in ranks) >= whole.read_bytes


@pytest.mark.parametrize(("tp", "pp"), LAYOUTS[1:])
def test_each_rank_holds_the_keys_and_values_of_its_own_heads_and_layers(
    outcomes: dict[tuple[int, int], Outcome], tp: int, pp: int
) -> None:
    block_bytes = 2 * (8 // pp) * max(1, 2 // tp) * 20 * 4 * 4
    for rank in outcomes[tp, pp].stats:
        assert rank.cache_bytes % block_bytes == 0
        assert 0 < rank.busy_s <= rank.wall_s


def test_a_killed_rank_is_reported_and_its_group_ends_as_a_whole(checkpoint: Path) -> None:
    launcher = LocalLauncher()
    group = started(checkpoint, 2, 1, launcher)
    params = SamplingParams(temperature=0.0, max_tokens=100, ignore_eos=True, seed=0)
    group.engine.add(EngineRequest("cut", PROMPTS[0], params))
    group.engine.step()
    processes = [psutil.Process(process_id) for process_id in launcher.process_ids]
    processes[1].kill()
    with pytest.raises(Unavailable):
        while group.engine.has_work:
            group.engine.step()
    group.engine.close()
    _, alive = psutil.wait_procs(processes, timeout=10)
    assert not alive
