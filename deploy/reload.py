"""What may change while a server runs: its groups, one by one replaced; never its doors, which clients hold on to."""

from dataclasses import replace

from rayline.cluster.config import EngineSection, ModelSection, ParallelSection, SystemConfig
from rayline.protos.errors import ConfigError

CHANGEABLE = "engine, parallel, limits.max_waiting and, of a model, path, dtype and max_model_len"


def check_reload(running: SystemConfig, wanted: SystemConfig) -> None:
    """Raises ConfigError naming the section if `wanted` differs from `running` in what routers read."""
    before, after = _doors(running), _doors(wanted)
    for section in ("models", "router", "limits", "security", "observability"):
        if getattr(before, section) != getattr(after, section):
            raise ConfigError(
                f"{section} is changed in what routers read: while it runs, {CHANGEABLE} may be", field=section
            )


def _doors(config: SystemConfig) -> SystemConfig:
    """What routers read of it."""
    return replace(
        config,
        engine=EngineSection(),
        parallel=ParallelSection(),
        limits=replace(config.limits, max_waiting=1),
        models=tuple(
            ModelSection(name=m.name, tool_parser=m.tool_parser, reasoning_parser=m.reasoning_parser)
            for m in config.models
        ),
    )
