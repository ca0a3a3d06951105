"""How large everything is that `rayline bench gpu` computes: in full, or so small that a CPU takes seconds for it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from rayline.workers.bench.gpu.models import MODELS
from rayline.workers.models.config import ModelConfig


@dataclass(frozen=True, slots=True)
class Sizes:
    """models: by name, the first one also for the exact class and quantised weights. copy_bytes: of the copied memory.
    matrix: rows, columns and depth of the product that gives the rate. product_rows: of single quantised products.
    attended: sequences, and keys of each, that single attention steps are timed with. engine_steps: of decoding.
    """

    models: Mapping[str, ModelConfig]
    batches: tuple[int, ...]
    context_tokens: int
    prompt_tokens: int
    copy_bytes: int
    matrix: int
    product_rows: tuple[int, ...]
    attended: tuple[tuple[int, int], ...]
    engine_steps: int = 100
    check_layers: int = 2


FULL = Sizes(
    models=MODELS,
    batches=(1, 32, 256),
    context_tokens=1024,
    prompt_tokens=2048,
    copy_bytes=2**32,
    matrix=8192,
    product_rows=(1, 16, 64, 2048),
    attended=((1, 8192), (32, 1024), (256, 1024), (1, 131072)),
)


def _tiny(config: ModelConfig) -> ModelConfig:
    return replace(
        config,
        vocab_size=160, hidden_size=64, intermediate_size=128, layers=1, heads=4, kv_heads=2, head_dim=16,
        sliding_windows=(None,),
    )  # fmt: skip


TINY = Sizes(
    models={name: _tiny(config) for name, config in MODELS.items()},
    batches=(1, 3),
    context_tokens=40,
    prompt_tokens=20,
    copy_bytes=2**16,
    matrix=64,
    product_rows=(1, 20),
    attended=((2, 40),),
    engine_steps=6,
    check_layers=1,
)
SIZES = {"full": FULL, "tiny": TINY}
