"""Config keys as command-line flags: each key is one flag and each flag one key, made from the same record."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import click

from rayline.cluster.config import ModelSection, SystemConfig, load, override
from rayline.protos.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Key:
    """One config key: its section in a file, its name, type, default, help and flag."""

    section: str
    name: str
    type: Any
    default: Any
    help: str
    flag: str


def config_keys() -> tuple[Key, ...]:
    """All keys of the config tree, in its order."""
    return tuple(key for section in fields(SystemConfig) for key in _section_keys(section.name, section.default))


def has_flag(key: Key) -> bool:
    """Lists of records are for files."""
    return get_origin(key.type) is not tuple or get_args(key.type)[0] is str


def _section_keys(section: str, default: Any) -> list[Key]:
    kind = ModelSection if section == "models" else type(default)
    types = get_type_hints(kind)
    return [
        Key(section, f.name, types[f.name], f.default, f.metadata["help"], _flag(f.metadata["flag"] or f.name))
        for f in fields(kind)
    ]


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def option(key: Key) -> click.Option:
    """The flag of one key. Its value is None while it is not given, so that a config file's value stays.

    Ranges are not checked here: the config refuses what it does not allow, whoever asked for it.
    """
    default = "none" if key.default in ("", ()) else str(key.default).lower() if key.type is bool else key.default
    text = f"{key.help}  [{key.section}.{key.name}; default: {default}]"
    names = [f"{key.flag}/--no-{key.flag[2:]}" if key.type is bool else key.flag, key.name]
    if key.type is bool:
        return click.Option(names, default=None, help=text)
    if get_origin(key.type) is tuple:
        return click.Option(names, multiple=True, default=None, type=str, help=f"{text} (may be repeated)")
    if get_origin(key.type) is Literal:
        return click.Option(names, default=None, type=click.Choice(get_args(key.type)), help=text)
    return click.Option(names, default=None, type=key.type, help=text)


def config_flags(sections: Sequence[str], without: Sequence[str] = ()) -> Callable[[click.Command], click.Command]:
    """Adds the flags of the sections' keys to a command, save the keys `without`."""

    def add(command: click.Command) -> click.Command:
        keys = [key for key in config_keys() if key.section in sections and key.name not in without and has_flag(key)]
        command.params.extend(option(key) for key in keys)
        return command

    return add


def given(values: Mapping[str, Any]) -> dict[str, Any]:
    """The keys whose flags were given."""
    names = {key.name for key in config_keys()}
    return {name: value for name, value in values.items() if name in names and value not in (None, ())}


def config_from(model: str | None, config_file: Path | None, values: Mapping[str, Any]) -> SystemConfig:
    """The config of a command line: the file's keys, then the flags', then MODEL for the first model's path.

    Raises ConfigError for a file or a value the config refuses, and for MODEL beside another --path.
    """
    flags = given(values)
    if model is not None and flags.setdefault("path", model) != model:
        raise ConfigError(f"MODEL = {model!r} and --path = {flags['path']!r} name two models", field="path")
    return override(load(config_file) if config_file else SystemConfig(), flags)
