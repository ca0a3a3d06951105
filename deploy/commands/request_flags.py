"""Sampling parameters as flags, and where to ask: what `generate` and `chat` share."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import click

from rayline.protos.types import SamplingParams

_HELP: dict[str, tuple[Any, str]] = {
    "temperature": (float, "0 is greedy"),
    "top_k": (int, "sample among the k most likely tokens; 0: off"),
    "top_p": (float, "sample among the likeliest tokens that hold this much probability; 1: off"),
    "min_p": (float, "least probability as a share of the likeliest token's; 0: off"),
    "seed": (int, "equal seeds give equal tokens; default: a new one each time"),
    "max_tokens": (int, "most output tokens; default: to the end of the context"),
    "min_tokens": (int, "output tokens before the stream may stop"),
    "stop": (str, "text that ends the output (may be repeated)"),
    "stop_token_ids": (int, "token id that ends the output (may be repeated)"),
    "ignore_eos": (bool, "go on past the model's end-of-sequence token"),
    "logprobs": (int, "report logprobs of the chosen and the n best tokens (with --json)"),
}


def request_flags(command: click.Command) -> click.Command:
    """Adds --address, --api-key, --model, --json and one flag for each field of SamplingParams."""
    command.params.extend(
        [
            click.Option(
                ["--address"], metavar="HOST:PORT", help="gRPC address of a running server; default: offline."
            ),
            click.Option(["--api-key"], envvar="RAYLINE_API_KEY", help="Bearer token for a running server."),
            click.Option(["--model"], default="", help="Offline: a directory or hub id. On a server: a served name."),
            click.Option(["--json", "as_json"], is_flag=True, help="Print results as JSON, one object a line."),
            *(_option(f.name, f.default) for f in fields(SamplingParams) if f.name in _HELP),
        ]
    )
    return command


def _option(name: str, default: Any) -> click.Option:
    kind, text = _HELP[name]
    flag = "--" + name.replace("_", "-")
    if kind is bool:
        return click.Option([flag], is_flag=True, help=text)
    if default == ():
        return click.Option([flag], type=kind, multiple=True, help=text)
    return click.Option([flag], type=kind, default=default, show_default=default is not None, help=text)


def params_from(values: Mapping[str, Any]) -> SamplingParams:
    """The parameters that the flags stand for. Raises InvalidRequest naming the first one out of range."""
    params = SamplingParams(**{name: values[name] for name in _HELP})
    params.check()
    return params
