"""Fixtures that several test files share."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# How long one example takes is the machine's business: a shared one must not fail a property. The same examples each
# time, so that a change fails for what it changed; `make search` draws new ones.
settings.register_profile("same", deadline=None, derandomize=True)
settings.register_profile("new", deadline=None, max_examples=500)
settings.load_profile("same")

LONGEST = ("test_triton", "test_exactness", "test_stuck_group")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, so that no core waits at the end for one that began late."""
    items.sort(key=lambda item: not item.path.name.startswith(LONGEST))


UNEVEN: dict[str, Any] = {
    "vocab_size": 1003,
    "hidden_size": 72,
    "intermediate_size": 100,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 20,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


@pytest.fixture
def patient_routers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaders that live answer what routers ask their journals, however busy the machine is."""
    from rayline.router import journal

    monkeypatch.setattr(journal, "ANSWER_S", 60.0)
    monkeypatch.setattr(journal, "GRACE_S", 60.0)


@pytest.fixture(scope="session")
def random_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Make a small checkpoint with random weights, in a new directory, with transformers' own code.

    random_checkpoint(family, *, dtype="float32", max_shard_size="5GB", **overrides) -> directory.
    `family` is a transformers model_type; overrides are keys of its config. Every weight is random,
    norms and biases too, and large enough that a wrong sign or a missing norm moves the logits. The same
    arguments give the same weights. Shapes are uneven (vocabulary 1003, heads x head_dim != hidden) but
    divide by tp 2 and 4.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    make_model: Callable[[Any], Any] = AutoModelForCausalLM.from_config

    def make(family: str, *, dtype: str = "float32", max_shard_size: str = "5GB", **overrides: Any) -> Path:
        config = AutoConfig.for_model(family, **(UNEVEN | overrides))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = make_model(config)
            for name, weight in model.named_parameters():
                if name.endswith("bias"):
                    torch.nn.init.normal_(weight, std=0.2)
                elif "norm" in name:
                    torch.nn.init.normal_(weight, mean=1.0, std=0.2)
        path = tmp_path_factory.mktemp(family)
        model.to(getattr(torch, dtype)).save_pretrained(path, max_shard_size=max_shard_size)
        return path

    return make


@dataclass
class Pages:
    """Block tables in scrambled order, and the ForwardContexts of hand-made steps."""

    blocks: int = 64
    block_tokens: int = 4
    seed: int = 0
    tables: dict[int, list[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # Block 0 belongs to nobody: padding of the tables points to it.
        self.free = list(range(1, self.blocks))
        random.Random(self.seed).shuffle(self.free)

    def context(self, slices: Sequence[tuple[int, int, int]], wanted: Sequence[int] | None = None) -> Any:
        """A step over slices (sequence, start, count). wanted: packed tokens; None is all of them."""
        import torch

        from rayline.kernels.context import ForwardContext

        positions: list[int] = []
        slots: list[int] = []
        starts, lens = [0], []
        for sequence, start, count in slices:
            table = self.tables.setdefault(sequence, [])
            while len(table) * self.block_tokens < start + count:
                table.append(self.free.pop())
            mine = range(start, start + count)
            positions += mine
            slots += [table[p // self.block_tokens] * self.block_tokens + p % self.block_tokens for p in mine]
            starts.append(starts[-1] + count)
            lens.append(start + count)
        width = max(len(self.tables[sequence]) for sequence, _, _ in slices)
        padded = [self.tables[sequence] + [0] * (width - len(self.tables[sequence])) for sequence, _, _ in slices]
        return ForwardContext(
            positions=torch.tensor(positions),
            slots=torch.tensor(slots),
            starts=tuple(starts),
            lens=tuple(lens),
            tables=torch.tensor(padded, dtype=torch.int32),
            wanted=torch.tensor(range(starts[-1]) if wanted is None else wanted, dtype=torch.int64),
        )


@pytest.fixture(scope="session")
def pages() -> type[Pages]:
    """The class itself, for tests that lay out a paged cache by hand."""
    return Pages
