"""The config tree: every key in a file, refused with its name when it is unknown or out of range, won over by flags."""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import TypeAdapter

from rayline.cluster.config import SECTIONS, ModelSection, SystemConfig, TenantSection, load, override, parse
from rayline.protos.errors import ConfigError

ACCEPTED: dict[str, dict[str, list[Any]]] = {
    "models": {
        "path": ["embedded", "/models/x", "org/name"],
        "name": ["", "x"],
        "dtype": ["auto", "bfloat16", "float16", "float32"],
        "max_model_len": [0, 2, 131_072],
        "tool_parser": ["auto", "none", "hermes", "mistral_v11", "deepseek"],
        "reasoning_parser": ["auto", "none", "think", "mistral"],
    },
    "engine": {
        "block_tokens": [1, 16, 256],
        "kv_bytes": [0, 2**34],
        "kv_memory_fraction": [0.01, 0.5, 0.95],
        "max_step_tokens": [1, 8192],
        "max_running": [1, 1024],
        "decode_stretch": [1, 1.5, 1000],
        "max_preemptions": [0, 3],
        "priority_aging_s": [0, 0.5, 3600],
        "prefix_caching": [True, False],
        "threads": [0, 64],
        "kernels": ["auto", "native", "onednn", "torch", "triton", "triton-exact"],
        "quantize": ["none", "int8", "int4", "fp8", "w8a8"],
        "activations": ["exact", "int8"],
        "kv_cache": ["paged", "static"],
        "compile": [True, False],
        "attention": ["auto", "flash", "varlen", "triton"],
        "all_reduce": ["auto", "symmetric", "gather"],
        "async_scheduling": ["auto", "always", "never"],
        "decode_graphs": [True, False],
    },
    "parallel": {"tp": [1, 8], "pp": [1, 4], "groups": [1, 16]},
    "router": {
        "host": ["127.0.0.1", "0.0.0.0"],
        "grpc_port": [0, 65535, 9000],
        "http_port": [0, 65535, 8080],
        "replicas": [0, 2],
        "serve_port": [0, 65535],
        "drain_timeout_s": [0, 0.5, 3600],
        "resume_wait_s": [0, 0.5, 3600],
    },
    "limits": {
        "max_waiting": [1, 10_000],
        "max_waiting_tokens": [1, 10**9],
        "slow_reader_s": [0.1, 3600],
        "max_unread_tokens": [1, 10**6],
        "max_message_bytes": [1, 2**30],
        "journal_keep_s": [0, 120.5],
        "journal_bytes": [0, 2**30],
        "poison_losses": [1, 5],
        "quarantine_s": [0, 3600.0],
    },
    "security": {
        "api_keys": [[], ["one", "two"]],
        "operator_keys": [[], ["one", "two"]],
        "tenants": [[], [{"name": "a"}, {"name": "b", "api_keys": ["k"], "weight": 2.5}]],
        "isolate_tenants": [True, False],
    },
    "observability": {"log_level": ["debug", "info", "warning", "error"]},
}
REFUSED: dict[str, dict[str, list[Any]]] = {
    "models": {
        "path": [3, None],
        "name": [3, ["x"]],
        "dtype": ["int8", "", None, 16],
        "max_model_len": [-1, "long", 1.5],
        "tool_parser": ["", "Hermes", None, "think"],
        "reasoning_parser": ["", "hermes", None, True],
    },
    "engine": {
        "block_tokens": [-1, -16, "many", None],
        "kv_bytes": [-1, "1 GB", 0.5],
        "kv_memory_fraction": [0, 0.96, -0.5, float("nan"), "half"],
        "max_step_tokens": [0, -1],
        "max_running": [0, -1],
        "decode_stretch": [0.9, 1001, "fast", float("nan")],
        "max_preemptions": [-1, "often"],
        "priority_aging_s": [-1, "slow"],
        "prefix_caching": ["perhaps", 2],
        "threads": [-1, "all"],
        "kernels": ["fast", "", None],
        "quantize": ["int2", "", 8],
        "activations": ["int4", None],
        "kv_cache": ["dynamic", True],
        "compile": ["maybe", None],
        "attention": ["fast", "", None],
        "all_reduce": ["nccl", "", None],
        "async_scheduling": ["on", True, None],
        "decode_graphs": ["maybe", None],
    },
    "parallel": {"tp": [0, -2, 1.5], "pp": [0, "two"], "groups": [0, None]},
    "router": {
        "host": [None, 7],
        "grpc_port": [-1, 65536, "http"],
        "http_port": [-1, 65536],
        "replicas": [-1, 1001, "two"],
        "serve_port": [-1, 65536],
        "drain_timeout_s": [-0.1, float("nan"), "long"],
        "resume_wait_s": [-0.1, float("nan"), "long"],
    },
    "limits": {
        "max_waiting": [0, -1],
        "max_waiting_tokens": [0, "many"],
        "slow_reader_s": [0, -1, float("nan")],
        "max_unread_tokens": [0, None],
        "max_message_bytes": [0],
        "journal_keep_s": [-1, float("nan"), "long"],
        "journal_bytes": [-1, "1 GB"],
        "poison_losses": [0, "two"],
        "quarantine_s": [-1, float("nan")],
    },
    "security": {
        "api_keys": ["one", [3], None],
        "operator_keys": ["one", [3], None],
        "tenants": ["a", [{"name": "a", "weight": 0}], [{"weight": 1}], [{"name": "a", "share": 1}]],
        "isolate_tenants": ["perhaps", None],
    },
    "observability": {"log_level": ["loud", "INFO", None]},
}


def cases(values: dict[str, dict[str, list[Any]]]) -> list[tuple[str, str, Any]]:
    return [(section, key, value) for section, keys in values.items() for key, all_ in keys.items() for value in all_]


def tree(section: str, key: str, value: Any) -> dict[str, Any]:
    return {section: [{key: value}] if section == "models" else {key: value}}


def section_of(config: SystemConfig, section: str) -> Any:
    return config.models[0] if section == "models" else getattr(config, section)


def as_taken(value: Any) -> Any:
    """Lists are tuples in the tree, records of a list are tenants."""
    if isinstance(value, dict):
        return TenantSection(**{key: as_taken(part) for key, part in value.items()})
    return tuple(map(as_taken, value)) if isinstance(value, list) else value


def keys_of(section: str) -> list[str]:
    return [f.name for f in fields(section_of(SystemConfig(), section))]


def test_the_tables_of_this_file_name_every_key() -> None:
    for values in (ACCEPTED, REFUSED):
        assert {section: sorted(keys) for section, keys in values.items()} == {
            section: sorted(keys_of(section)) for section in SECTIONS
        }


def test_no_key_is_in_two_sections_so_that_each_flag_means_one() -> None:
    keys = [key for section in SECTIONS for key in keys_of(section)]
    assert len(keys) == len(set(keys))


def test_every_key_says_what_it_is_for() -> None:
    for section in SECTIONS:
        for f in fields(section_of(SystemConfig(), section)):
            assert len(f.metadata["help"]) > 10, f.name


@pytest.mark.parametrize(("section", "key", "value"), cases(ACCEPTED))
def test_a_value_in_its_range_is_taken(section: str, key: str, value: Any) -> None:
    taken = getattr(section_of(parse(tree(section, key, value)), section), key)
    assert taken == as_taken(value)


@pytest.mark.parametrize(("section", "key", "value"), cases(REFUSED))
def test_a_value_out_of_its_range_is_refused_by_name(section: str, key: str, value: Any) -> None:
    with pytest.raises(ConfigError) as refused:
        parse(tree(section, key, value))
    assert key in refused.value.message
    assert refused.value.field is not None and key in refused.value.field.split(".")
    if not isinstance(value, list):
        assert repr(value) in refused.value.message


@pytest.mark.parametrize("section", SECTIONS)
def test_an_unknown_key_is_refused_by_name(section: str) -> None:
    with pytest.raises(ConfigError, match="block_token is not a config key") as refused:
        parse(tree(section, "block_token", 16))
    assert refused.value.field is not None and refused.value.field.endswith("block_token")


def test_an_unknown_section_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="engines is not a config key"):
        parse({"engines": {}})


def test_all_mistakes_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as refused:
        parse({"engine": {"block_tokens": -1, "colour": "red"}, "parallel": {"tp": 0}})
    for part in ("engine.block_tokens = -1", "engine.colour", "parallel.tp = 0"):
        assert part in refused.value.message


@pytest.mark.parametrize(
    ("router", "field"),
    [
        ({"grpc_port": 9000, "http_port": 9001, "replicas": 2}, "replicas"),
        ({"grpc_port": 8000}, "replicas"),
        ({"grpc_port": 65535, "replicas": 2}, "grpc_port"),
        ({"http_port": 65534, "replicas": 3}, "http_port"),
    ],
)
def test_ports_that_routers_of_one_machine_would_fight_for_are_refused(router: dict[str, int], field: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse({"router": router})
    assert refused.value.field == field


def test_routers_of_one_node_take_ports_one_behind_the_other() -> None:
    assert parse({}).router.ports == ((9000, 8080),)
    assert parse({"router": {"replicas": 3}}).router.ports == ((9000, 8080), (9001, 8081), (9002, 8082))
    assert parse({"router": {"replicas": 2, "http_port": 0}}).router.ports == ((9000, 0), (9001, 0))


def test_a_config_without_models_is_refused() -> None:
    with pytest.raises(ConfigError, match="models is empty") as refused:
        parse({"models": []})
    assert refused.value.field == "models"


def test_an_empty_tree_is_the_defaults() -> None:
    assert parse({}) == SystemConfig()


def test_the_whole_tree_survives_a_yaml_file(tmp_path: Path) -> None:
    full = {section: {key: values[-1] for key, values in keys.items()} for section, keys in ACCEPTED.items()}
    file = tmp_path / "rayline.yaml"
    file.write_text(yaml.safe_dump({**full, "models": [full["models"]]}))
    config = load(file)
    dumped = TypeAdapter(SystemConfig).dump_python(config)
    assert parse(dumped) == config
    for section, keys in full.items():
        for key, value in keys.items():
            got = getattr(section_of(config, section), key)
            assert got == as_taken(value)


def test_an_empty_file_is_the_defaults(tmp_path: Path) -> None:
    file = tmp_path / "rayline.yaml"
    file.write_text("# nothing yet\n")
    assert load(file) == SystemConfig()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"engine: [", "is not YAML"),
        (b"- engine", "must hold sections, not list"),
        (b"engine", "must hold sections, not str"),
        (b"\xff\xfe\x00", "cannot be read|is not YAML"),
        (b"engine: 5", "engine = 5"),
    ],
)
def test_a_file_that_holds_no_sections_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "rayline.yaml"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        load(file)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml cannot be read") as refused:
        load(tmp_path / "nowhere.yaml")
    assert refused.value.field == "config"


def test_a_flag_wins_over_the_file_and_leaves_the_other_keys() -> None:
    config = parse({"engine": {"block_tokens": 32, "threads": 2}})
    changed = override(config, {"threads": 4})
    assert changed == replace(config, engine=replace(config.engine, threads=4))
    assert config.engine.threads == 2


@pytest.mark.parametrize(("section", "key"), [(section, key) for section in SECTIONS for key in keys_of(section)])
def test_every_key_can_be_set_by_its_flag(section: str, key: str) -> None:
    value = ACCEPTED[section][key][-1]
    changed = override(SystemConfig(), {key: value})
    assert changed == parse(tree(section, key, value))


def test_a_flag_of_the_model_goes_to_the_first_model() -> None:
    config = parse({"models": [{"path": "a"}, {"path": "b"}]})
    assert override(config, {"dtype": "float32"}).models == (ModelSection(path="a", dtype="float32"), config.models[1])


def test_a_flag_out_of_range_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"parallel\.tp = 0") as refused:
        override(SystemConfig(), {"tp": 0})
    assert refused.value.field == "parallel.tp"


def test_a_flag_that_is_no_key_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="colour is not a config key") as refused:
        override(SystemConfig(), {"tp": 2, "colour": "red"})
    assert refused.value.field == "colour"
