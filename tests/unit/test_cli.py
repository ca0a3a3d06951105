"""The command line: flags are config keys and the reverse, errors are one line, help is quick."""

import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

import click
import pytest
from click.testing import CliRunner

from rayline.cluster.config import SECTIONS, ModelSection, SystemConfig, override
from rayline.deploy import cli
from rayline.deploy.commands.flags import config_flags, config_from, config_keys, given, has_flag
from rayline.deploy.commands.serve import command as serve_command
from rayline.protos.errors import ConfigError, InvalidRequest, RaylineError, Unavailable

ARGUMENTS = {"model", "config_file"}  # of `serve`, beside the config's own keys
FLAGS = [key for key in config_keys() if has_flag(key)]
OTHER_VALUES = {str: "other", int: 7, float: 0.25, bool: False}
FROM_1_UP = {"decode_stretch": 1.5}


def keys_of_the_tree() -> set[tuple[str, str]]:
    tree = SystemConfig()
    models = {("models", f.name) for f in fields(ModelSection)}
    return models | {(section, f.name) for section in SECTIONS[1:] for f in fields(getattr(tree, section))}


def parsed(*arguments: str) -> SystemConfig:
    """The config that a `rayline serve` command line stands for."""
    with serve_command.make_context("serve", list(arguments)) as context:
        values = dict(context.params)
    return config_from(values.pop("model"), values.pop("config_file"), values)


def test_every_config_key_is_one_flag_and_every_flag_one_config_key() -> None:
    options = {p.name for p in serve_command.params} - ARGUMENTS
    assert {(key.section, key.name) for key in config_keys()} == keys_of_the_tree()
    assert options == {key.name for key in FLAGS} == {name for _, name in keys_of_the_tree()} - {"tenants"}


def test_no_two_sections_share_a_name() -> None:
    names = [key.name for key in config_keys()]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("key", FLAGS, ids=lambda key: key.name)
def test_each_flag_says_what_it_does_and_its_default(key: Any) -> None:
    (option,) = [p for p in serve_command.params if p.name == key.name]
    assert isinstance(option, click.Option)
    assert key.flag in option.opts
    assert option.help is not None
    assert option.help.startswith(key.help)
    assert f"{key.section}.{key.name}; default: " in option.help


@pytest.mark.parametrize("key", FLAGS, ids=lambda key: key.name)
def test_each_flag_sets_its_key_and_no_other(key: Any) -> None:
    if key.type is bool:
        value = not key.default
        arguments = [key.flag if value else f"--no-{key.flag[2:]}"]
    elif key.type in OTHER_VALUES:
        value = FROM_1_UP.get(key.name, OTHER_VALUES[key.type])
        arguments = [key.flag, str(value)]
    elif key.name in ("api_keys", "operator_keys"):
        arguments, value = [key.flag, "one", key.flag, "two"], ("one", "two")
    else:
        value = get_args(key.type)[-1]
        arguments = [key.flag, value]
    changed = parsed(*arguments)
    assert changed == override(SystemConfig(), {key.name: value})
    assert changed != SystemConfig()


def test_a_command_line_without_flags_is_the_default_config() -> None:
    assert parsed() == SystemConfig()


def test_flags_win_over_the_file_and_leave_its_other_keys(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("engine: {max_running: 3, prefix_caching: false}\nrouter: {grpc_port: 1234}\n")
    config = parsed("--config", str(file), "--max-running", "5")
    assert config.engine.max_running == 5
    assert config.engine.prefix_caching is False
    assert config.router.grpc_port == 1234
    assert parsed("--config", str(file), "--prefix-caching").engine.prefix_caching is True


def test_the_argument_is_the_first_models_path() -> None:
    assert parsed("some/model", "--tp", "2").models == (ModelSection(path="some/model"),)
    with pytest.raises(ConfigError, match="two models"):
        parsed("one", "--path", "other")


def test_a_value_outside_its_range_is_refused_by_the_config() -> None:
    with pytest.raises(ConfigError, match=r"parallel\.tp = 0"):
        parsed("--tp", "0")


def test_only_given_flags_count_and_zero_and_false_are_given() -> None:
    values = {"kv_bytes": 0, "prefix_caching": False, "tp": None, "api_keys": (), "model": "x"}
    assert given(values) == {"kv_bytes": 0, "prefix_caching": False}


def test_a_command_may_take_the_flags_of_some_sections() -> None:
    @config_flags(["parallel"], without=["groups"])
    @click.command()
    def command(**values: Any) -> None: ...

    assert [p.name for p in command.params] == ["tp", "pp"]


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ConfigError("tp = 3 does not divide heads = 8"), 2),
        (InvalidRequest("temperature = -1 is out of range"), 2),
        (Unavailable("no group can serve"), 1),
        (KeyboardInterrupt(), 130),
        (click.Abort(), 130),
    ],
)
def test_an_error_is_one_line_and_an_exit_status(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: BaseException, status: int
) -> None:
    @click.command()
    def failing() -> None:
        raise error

    monkeypatch.setitem(cli.COMMANDS, "status", cli.Entry("", lambda: failing))
    assert cli.run(["status"]) == status
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.strip() == (f"rayline: error: {error}" if isinstance(error, RaylineError) else "")


@pytest.mark.parametrize(
    "arguments",
    [["--nonsense"], ["nonsense"], ["serve", "--nonsense"], ["serve", "--tp", "many"], ["serve", "--tp", "0"]],
)
def test_a_wrong_command_line_is_one_line_and_status_2(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(arguments) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("rayline: error: ")
    assert shown.err.count("\n") == 1


def test_a_commands_status_is_the_exit_status(monkeypatch: pytest.MonkeyPatch) -> None:
    @click.command()
    def three() -> int:
        return 3

    monkeypatch.setitem(cli.COMMANDS, "status", cli.Entry("", lambda: three))
    assert cli.run(["status"]) == 3


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_explains_itself(name: str) -> None:
    result = CliRunner().invoke(cli.rayline, [name, "--help"])
    assert result.exit_code == 0
    assert "Usage: rayline " + name in result.output


def test_help_lists_every_command() -> None:
    output = CliRunner().invoke(cli.rayline, ["--help"]).output
    assert all(name in output for name in cli.COMMANDS)


@pytest.mark.parametrize("arguments", [["--help"], ["generate", "--help"], ["chat", "--help"], ["serve", "--help"]])
def test_help_imports_neither_torch_nor_ray_nor_grpc(arguments: list[str]) -> None:
    code = f"""
import sys
from rayline.deploy.cli import run
assert run({arguments!r}) == 0
heavy = {{"torch", "ray", "grpc", "transformers", "fastapi"}} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=250)
