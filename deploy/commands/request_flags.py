"""A request as flags, and where to ask: what `generate` and `chat` share."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import click

from rayline.protos.errors import InvalidRequest
from rayline.protos.types import SamplingParams, Spec, StructuredOutput, StructureKind

ID_AND_BIAS = "ID=BIAS"
EARLY_STOPPING = {"true": True, "false": False, "never": "never"}

# Flags for the fields of SamplingParams: how a value is read, and what it says in --help.
PARAMETERS: dict[str, tuple[Any, str]] = {
    "temperature": (float, "0 is greedy"),
    "top_k": (int, "sample among the k most likely tokens; 0: off"),
    "top_p": (float, "sample among the likeliest tokens that hold this much probability; 1: off"),
    "min_p": (float, "least probability as a share of the likeliest token's; 0: off"),
    "typical_p": (float, "locally typical sampling: tokens that hold this much probability; 1: off"),
    "top_n_sigma": (float, "keep logits within so many standard deviations of the best; 0: off"),
    "presence_penalty": (float, "subtracted once from tokens in the output, -2 to 2"),
    "frequency_penalty": (float, "subtracted for each time a token is in the output, -2 to 2"),
    "repetition_penalty": (float, "above 1 makes tokens of prompt and output rarer"),
    "no_repeat_ngram_size": (int, "no sequence of so many tokens comes twice; 0: off"),
    "logit_bias": (ID_AND_BIAS, "added to the logit of a token id, as in 50=-10 (may be repeated)"),
    "allowed_token_ids": (int, "only these token ids are sampled (may be repeated)"),
    "bad_words": (str, "text that is never said (may be repeated)"),
    "seed": (int, "equal seeds give equal tokens; default: a new one each time"),
    "n": (int, "answers to give"),
    "best_of": (int, "answers to compute, of which the likeliest are given"),
    "beam_width": (int, "beams of a beam search; 0: sample"),
    "length_penalty": (float, "beams: score = sum of logprobs / length ^ this"),
    "early_stopping": (click.Choice(list(EARLY_STOPPING)), "beams: when a search is over"),
    "max_tokens": (int, "most output tokens; default: to the end of the context"),
    "min_tokens": (int, "output tokens before the stream may stop"),
    "stop": (str, "text that ends the output (may be repeated)"),
    "include_stop_str_in_output": (bool, "show the text that ended the output"),
    "stop_token_ids": (int, "token id that ends the output (may be repeated)"),
    "ignore_eos": (bool, "go on past the model's end-of-sequence token"),
    "skip_special_tokens": (bool, "leave special tokens out of the text"),
    "logprobs": (int, "report logprobs of the chosen and the n best tokens (with --json)"),
    "prompt_logprobs": (int, "report logprobs of the prompt's tokens and the n best (with --json)"),
    "thinking_budget": (int, "most tokens of thinking before its end is forced"),
}
FORMS: dict[StructureKind, str] = {
    "json_schema": "the output is JSON of this schema; @FILE reads it from a file",
    "json_object": "the output is a JSON object",
    "regex": "the output matches this regular expression",
    "choice": 'the output is one of these texts, a JSON list: ["yes", "no"]',
    "grammar": "the output follows this grammar in Lark's or llama.cpp's notation; @FILE reads it from a file",
    "structural_tag": "free text in which tags open parts with schemas, a JSON object; @FILE reads it from a file",
}
OPTIONS: dict[str, tuple[Any, str]] = {
    "echo": (bool, "the prompt comes before the output"),
    "truncate_prompt_tokens": (int, "keep the last so many tokens of the prompt"),
    "priority": (int, "-100 (first) to 100 (last)"),
    "tenant": (str, "who shares the machine with others"),
    "cache_salt": (str, "requests of different salts share no cached prefix"),
}


def request_flags(command: click.Command) -> click.Command:
    """Adds --address, --api-key, --model, --json and a flag for everything a request may ask for."""
    defaults = {field.name: field.default for kind in (SamplingParams, Spec) for field in fields(kind)}
    command.params.extend(
        [
            click.Option(
                ["--address"], metavar="HOST:PORT", help="gRPC address of a running server; default: offline."
            ),
            click.Option(["--api-key"], envvar="RAYLINE_API_KEY", help="Bearer token for a running server."),
            click.Option(["--model"], default="", help="Offline: a directory or hub id. On a server: a served name."),
            click.Option(["--json", "as_json"], is_flag=True, help="Print results as JSON, one object a line."),
            *(_option(name, *flag, defaults[name]) for name, flag in (PARAMETERS | OPTIONS).items()),
            *(_form_option(kind, text) for kind, text in FORMS.items()),
        ]
    )
    return command


def _option(name: str, kind: Any, text: str, default: Any) -> click.Option:
    flag = "--" + name.replace("_", "-")
    if kind is bool and default:
        return click.Option([f"{flag}/--no-{flag[2:]}"], default=True, show_default=True, help=text)
    if kind is bool:
        return click.Option([flag], is_flag=True, help=text)
    if default == ():
        shown = {"type": str, "metavar": kind} if kind is ID_AND_BIAS else {"type": kind}
        return click.Option([flag], multiple=True, help=text, **shown)
    if isinstance(kind, click.Choice):
        return click.Option([flag], type=kind, default=str(default).lower(), show_default=True, help=text)
    return click.Option([flag], type=kind, default=default, show_default=default not in (None, ""), help=text)


def _form_option(kind: StructureKind, text: str) -> click.Option:
    flag = "--" + kind.replace("_", "-")
    return click.Option([flag], is_flag=True, help=text) if kind == "json_object" else click.Option([flag], help=text)


def params_from(values: Mapping[str, Any]) -> SamplingParams:
    """The parameters that the flags stand for. Raises InvalidRequest for what no flag can say.

    Ranges are checked with the whole request: with --echo max_tokens may be 0.
    """
    read = {name: values[name] for name in PARAMETERS}
    read["logit_bias"] = _biases(values["logit_bias"])
    read["early_stopping"] = EARLY_STOPPING[values["early_stopping"]]
    return SamplingParams(**read, structured_output=_form(values))


def options_from(values: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a Spec that the flags stand for."""
    return {name: values[name] for name in OPTIONS}


def text_or_file(value: str) -> str:
    """The flag's own text, or with @ the content of a file. Raises InvalidRequest for one that cannot be read."""
    if not value.startswith("@"):
        return value
    try:
        return Path(value[1:]).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise InvalidRequest(f"{value} cannot be read: {error}") from None


def _form(values: Mapping[str, Any]) -> StructuredOutput | None:
    given: list[StructuredOutput] = []
    for kind in FORMS:
        if kind == "json_object" and values[kind]:
            given.append(StructuredOutput(kind))
        elif kind != "json_object" and values[kind] is not None:
            given.append(StructuredOutput(kind, text_or_file(values[kind])))
    if len(given) > 1:
        flags = ", ".join("--" + form.kind.replace("_", "-") for form in given)
        raise InvalidRequest(f"{flags} cannot be combined: the output has one form", field="structured_output")
    return given[0] if given else None


def _biases(pairs: Sequence[str]) -> tuple[tuple[int, float], ...]:
    biases: dict[int, float] = {}
    for pair in pairs:
        token_id, _, bias = pair.partition("=")
        try:
            biases[int(token_id)] = float(bias)
        except ValueError:
            raise InvalidRequest(f"logit_bias = {pair!r}: allowed is {ID_AND_BIAS}", field="logit_bias") from None
    return tuple(sorted(biases.items()))
