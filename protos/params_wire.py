"""Sampling parameters <-> protobuf, for clients and inside a deployment alike."""

import json
from typing import TypeVar

from rayline.protos import inference_pb2 as pb
from rayline.protos.errors import out_of_range
from rayline.protos.types import EarlyStopping, SamplingParams, StructuredOutput

EARLY_STOPPING_TO_PB: dict[EarlyStopping, pb.EarlyStopping] = {
    False: pb.EARLY_STOPPING_HEURISTIC,
    True: pb.EARLY_STOPPING_ALWAYS,
    "never": pb.EARLY_STOPPING_NEVER,
}
EARLY_STOPPING_OF = {number: value for value, number in EARLY_STOPPING_TO_PB.items()}
T = TypeVar("T", int, float)


def params_to_pb(params: SamplingParams) -> pb.SamplingParams:
    """Values that are the defaults are left out: most requests set few of them."""
    plain = SamplingParams()
    message = pb.SamplingParams(
        stop=params.stop,
        stop_token_ids=params.stop_token_ids,
        logit_bias=dict(params.logit_bias),
        allowed_token_ids=params.allowed_token_ids,
        bad_words=params.bad_words,
        seed=params.seed,
        best_of=params.best_of,
        max_tokens=params.max_tokens,
        logprobs=params.logprobs,
        prompt_logprobs=params.prompt_logprobs,
        thinking_budget=params.thinking_budget,
        temperature=_unless(params.temperature, plain.temperature),
        top_k=_unless(params.top_k, plain.top_k),
        top_p=_unless(params.top_p, plain.top_p),
        min_p=_unless(params.min_p, plain.min_p),
        typical_p=_unless(params.typical_p, plain.typical_p),
        top_n_sigma=_unless(params.top_n_sigma, plain.top_n_sigma),
        presence_penalty=_unless(params.presence_penalty, plain.presence_penalty),
        frequency_penalty=_unless(params.frequency_penalty, plain.frequency_penalty),
        repetition_penalty=_unless(params.repetition_penalty, plain.repetition_penalty),
        no_repeat_ngram_size=_unless(params.no_repeat_ngram_size, plain.no_repeat_ngram_size),
        n=_unless(params.n, plain.n),
        beam_width=_unless(params.beam_width, plain.beam_width),
        length_penalty=_unless(params.length_penalty, plain.length_penalty),
        early_stopping=EARLY_STOPPING_TO_PB[params.early_stopping] if params.early_stopping else None,
        min_tokens=_unless(params.min_tokens, plain.min_tokens),
        include_stop_str_in_output=params.include_stop_str_in_output or None,
        ignore_eos=params.ignore_eos or None,
        skip_special_tokens=None if params.skip_special_tokens else False,
    )
    if params.structured_output is not None:
        message.structured_output.CopyFrom(_structured_to_pb(params.structured_output))
    return message


def params_of(message: pb.SamplingParams) -> SamplingParams:
    """Absent fields take the defaults of SamplingParams. Raises InvalidRequest for an unknown early_stopping."""
    plain = SamplingParams()
    return SamplingParams(
        temperature=message.temperature if message.HasField("temperature") else plain.temperature,
        top_k=message.top_k,
        top_p=message.top_p if message.HasField("top_p") else plain.top_p,
        min_p=message.min_p,
        typical_p=message.typical_p if message.HasField("typical_p") else plain.typical_p,
        top_n_sigma=message.top_n_sigma,
        presence_penalty=message.presence_penalty,
        frequency_penalty=message.frequency_penalty,
        repetition_penalty=message.repetition_penalty
        if message.HasField("repetition_penalty")
        else plain.repetition_penalty,
        no_repeat_ngram_size=message.no_repeat_ngram_size,
        logit_bias=tuple(sorted(message.logit_bias.items())),
        allowed_token_ids=tuple(message.allowed_token_ids),
        bad_words=tuple(message.bad_words),
        seed=message.seed if message.HasField("seed") else None,
        n=message.n if message.HasField("n") else plain.n,
        best_of=message.best_of if message.HasField("best_of") else None,
        beam_width=message.beam_width,
        length_penalty=message.length_penalty if message.HasField("length_penalty") else plain.length_penalty,
        early_stopping=_early_stopping_of(message.early_stopping),
        max_tokens=message.max_tokens if message.HasField("max_tokens") else None,
        min_tokens=message.min_tokens,
        stop=tuple(message.stop),
        include_stop_str_in_output=message.include_stop_str_in_output,
        stop_token_ids=tuple(message.stop_token_ids),
        ignore_eos=message.ignore_eos,
        skip_special_tokens=message.skip_special_tokens if message.HasField("skip_special_tokens") else True,
        logprobs=message.logprobs if message.HasField("logprobs") else None,
        prompt_logprobs=message.prompt_logprobs if message.HasField("prompt_logprobs") else None,
        structured_output=_structured_of(message.structured_output),
        thinking_budget=message.thinking_budget if message.HasField("thinking_budget") else None,
    )


def _early_stopping_of(number: pb.EarlyStopping) -> EarlyStopping:
    if number not in EARLY_STOPPING_OF:
        raise out_of_range("early_stopping", number, "0 (heuristic), 1 (always) or 2 (never)")
    return EARLY_STOPPING_OF[number]


def _unless(value: T, default: T) -> T | None:
    return None if value == default else value


def _structured_to_pb(form: StructuredOutput) -> pb.StructuredOutput:
    match form.kind:
        case "json_object":
            return pb.StructuredOutput(json_object=True)
        case "choice":
            return pb.StructuredOutput(choice=pb.Choices(texts=json.loads(form.text)))
        case "json_schema":
            return pb.StructuredOutput(json_schema=form.text)
        case "regex":
            return pb.StructuredOutput(regex=form.text)
        case "grammar":
            return pb.StructuredOutput(grammar=form.text)
        case "structural_tag":
            return pb.StructuredOutput(structural_tag=form.text)


def _structured_of(message: pb.StructuredOutput) -> StructuredOutput | None:
    match message.WhichOneof("form"):
        case "json_schema":
            return StructuredOutput("json_schema", message.json_schema)
        case "json_object" if message.json_object:
            return StructuredOutput("json_object")
        case "regex":
            return StructuredOutput("regex", message.regex)
        case "choice":
            return StructuredOutput("choice", json.dumps(list(message.choice.texts)))
        case "grammar":
            return StructuredOutput("grammar", message.grammar)
        case "structural_tag":
            return StructuredOutput("structural_tag", message.structural_tag)
        case _:
            return None
