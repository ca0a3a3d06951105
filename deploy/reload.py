"""What may change while a server runs: its groups, which are replaced one by one; never what clients hold on to."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rayline.cluster.config import EngineSection, ModelSection, ParallelSection, SystemConfig
from rayline.protos.errors import ConfigError

CHANGEABLE = "engine, parallel, limits.max_waiting and a model's path, dtype and max_model_len"
TEXT_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


@dataclass(frozen=True, slots=True)
class ResolvedModel:
    """A model section whose path is a directory of this machine and whose name is final."""

    name: str
    path: Path
    section: ModelSection


def router_share(config: SystemConfig) -> SystemConfig:
    """What routers read of a config; the rest is at its defaults."""
    models = tuple(
        ModelSection(name=m.name, tool_parser=m.tool_parser, reasoning_parser=m.reasoning_parser) for m in config.models
    )
    limits = replace(config.limits, max_waiting=1)
    return replace(config, engine=EngineSection(), parallel=ParallelSection(), limits=limits, models=models)


def check_reload(
    running: SystemConfig, wanted: SystemConfig, before: Sequence[ResolvedModel], after: Sequence[ResolvedModel]
) -> None:
    """Raises ConfigError naming the section in which `wanted` differs in what routers read: they are not replaced."""
    old, new = router_share(running), router_share(wanted)
    for section in ("models", "router", "limits", "security", "observability"):
        if getattr(old, section) != getattr(new, section):
            raise ConfigError(f"{section} cannot be changed so while it runs: {CHANGEABLE} can be", field=section)
    for one, other in zip(before, after, strict=True):
        if one.name != other.name:
            raise ConfigError(f"the model {one.name!r} would be called {other.name!r}: give its name", field="name")
        if changed := [name for name in TEXT_FILES if _bytes(one.path / name) != _bytes(other.path / name)]:
            raise ConfigError(f"{other.path} has another {changed[0]}: start the server anew for that", field="path")


def _bytes(file: Path) -> bytes:
    return file.read_bytes() if file.exists() else b""
