"""What a running server may be given anew: its groups, never what its clients hold on to."""

import io
import shutil
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from rayline.cluster.config import SystemConfig, override
from rayline.deploy import serve as serve_module
from rayline.deploy.app import Wiring, group_version, router_version
from rayline.deploy.model_path import resolve_model
from rayline.deploy.reload import ResolvedModel, check_reload, router_share
from rayline.deploy.serve import Orders
from rayline.protos.errors import ConfigError, Unavailable

RUNNING = SystemConfig()


def resolved(config: SystemConfig, path: Path | None = None) -> list[ResolvedModel]:
    return [ResolvedModel("m", path or resolve_model("embedded"), model) for model in config.models]


@pytest.mark.parametrize(
    "flags",
    [{"groups": 3}, {"tp": 2}, {"max_running": 8}, {"quantize": "int8"}, {"max_waiting": 7}, {"max_model_len": 512}],
    ids=str,
)
def test_groups_may_change_and_routers_are_not_touched(flags: dict[str, Any]) -> None:
    wanted = override(RUNNING, flags)
    check_reload(RUNNING, wanted, resolved(RUNNING), resolved(wanted))
    assert router_share(wanted) == router_share(RUNNING)


@pytest.mark.parametrize(
    ("flags", "section"),
    [
        ({"grpc_port": 1}, "router"),
        ({"drain_timeout_s": 1.0}, "router"),
        ({"max_message_bytes": 7}, "limits"),
        ({"api_keys": ("one",)}, "security"),
        ({"operator_keys": ("one",)}, "security"),
        ({"log_level": "debug"}, "observability"),
        ({"tool_parser": "hermes"}, "models"),
    ],
    ids=str,
)
def test_what_routers_read_is_refused_by_its_section(flags: dict[str, Any], section: str) -> None:
    wanted = override(RUNNING, flags)
    with pytest.raises(ConfigError, match=section) as caught:
        check_reload(RUNNING, wanted, resolved(RUNNING), resolved(wanted))
    assert caught.value.field == section


def test_other_weights_may_come_but_no_other_text(tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(resolve_model("embedded"), copy)
    (copy / "model.safetensors").write_bytes(b"other weights")
    check_reload(RUNNING, RUNNING, resolved(RUNNING), resolved(RUNNING, copy))
    (copy / "tokenizer.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"another tokenizer\.json"):
        check_reload(RUNNING, RUNNING, resolved(RUNNING), resolved(RUNNING, copy))


def test_groups_that_stay_are_not_replaced_and_others_are() -> None:
    (model,) = resolved(RUNNING)
    version = group_version(RUNNING, model)
    assert group_version(override(RUNNING, {"groups": 5}), model) == version
    for flags in ({"tp": 2}, {"max_running": 8}, {"quantize": "int8"}):
        changed = override(RUNNING, flags)
        assert group_version(changed, model) != version
        assert router_version(changed, [model]) == router_version(RUNNING, [model])
    assert router_version(override(RUNNING, {"grpc_port": 1}), [model]) != router_version(RUNNING, [model])


def test_a_model_keeps_its_name() -> None:
    renamed = [replace(model, name="other") for model in resolved(RUNNING)]
    with pytest.raises(ConfigError, match="would be called 'other'"):
        check_reload(RUNNING, RUNNING, resolved(RUNNING), renamed)


@pytest.mark.parametrize(
    "trouble", [RuntimeError("Serve says no"), ConfigError("not so"), FileNotFoundError("weights")], ids=str
)
def test_a_server_that_cannot_be_given_a_config_says_so_and_serves_on(
    trouble: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    orders, told = Orders(), io.StringIO()
    wanted = override(RUNNING, {"groups": 2})
    deployed: list[SystemConfig] = []

    def deploy(config: SystemConfig, *_: object) -> None:
        deployed.append(config)
        orders.any.set()
        if len(deployed) == 1:
            raise trouble
        orders.stop.set()

    monkeypatch.setattr(serve_module, "_deploy", deploy)
    monkeypatch.setattr(serve_module, "check_models", resolved)
    orders.any.set()
    wiring = Wiring("secret", "", 1, False)
    serve_module._follow(orders, RUNNING, resolved(RUNNING), wiring, Console(file=told, width=200), lambda: wanted)
    first, last = told.getvalue().splitlines()
    assert first.startswith("not reloaded: ") and str(trouble) in first
    assert last == "reloaded: 2 groups are to serve each model" and deployed == [wanted, wanted]


def test_a_server_whose_routers_do_not_reach_its_groups_says_so_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    class Handle:
        def broadcast(self, method: str, groups: int) -> "Handle":
            return self

        def results(self, timeout_s: float) -> None:
            raise TimeoutError

    monkeypatch.setattr(serve_module, "_deploy", lambda *_: Handle())
    monkeypatch.setattr(serve_module, "_is_running", lambda: True)
    start, wiring = serve_module.Start(), Wiring("secret", "", 1, False)
    with pytest.raises(Unavailable, match="not every router has reached all groups within 60 s"):
        serve_module._run(RUNNING, resolved(RUNNING), wiring, start, threading.Event())
