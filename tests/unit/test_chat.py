"""Chat prompts against transformers' apply_chat_template, for templates in the style of the common families."""

from pathlib import Path
from typing import Any

import pytest
from small_tokenizers import write
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from rayline.protos.errors import InvalidRequest, ModelError
from rayline.router.chat import ChatTemplate
from rayline.router.tokenizer import Tokenizer

EMBEDDED = Path(__file__).parents[2] / "deploy/embedded"

LLAMA3 = """{%- set loop_messages = messages %}
{%- for message in loop_messages %}
    {%- set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim %}
    {%- if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}
    {{- content + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}
"""

QWEN = """{%- if messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- else %}
    {{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(multi_step=true, last=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step and message.role == "user" %}
        {%- set ns.multi_step = false %}
        {%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == "user" or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content.split('</think>')[-1].lstrip('\\n') }}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if tools %}{{- tools | tojson }}{%- endif %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}
"""

MISTRAL = """{{ bos_token }}{% for message in messages %}
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
{% endif %}
{% if message['role'] == 'user' %}
{{ '[INST] ' + message['content'] + ' [/INST]' }}
{% elif message['role'] == 'assistant' %}
{{ message['content'] + eos_token }}
{% else %}
{{ raise_exception('Only user and assistant roles are supported!') }}
{% endif %}
{% endfor %}"""

CORNERS = """    {% for message in messages %}
    {% if message.role == 'skip' %}{% continue %}{% endif %}
    {% generation %}{% set inner = message.content %}{{ inner }}{% endgeneration %}
    {{ message | tojson(indent=2) }} {{ {'b': '<é>', 'a': dict(x=1)} | tojson(sort_keys=true) }}
    {% if loop.index0 == 2 %}{% break %}{% endif %}
    {% endfor %}
{{ strftime_now('%Y') }} {{ inner is defined }} {{ tools is none }} {{ pad_token is defined }}
"""

TEMPLATES = {"llama3": LLAMA3, "qwen": QWEN, "mistral": MISTRAL, "corners": CORNERS}
CONVERSATIONS = [
    [{"role": "user", "content": "  Hi <b>& you</b>  "}],
    [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "<think>x</think>\nzwei é 😀"},
        {"role": "user", "content": "three"},
    ],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Q"}],
    [{"role": "user", "content": "a"}, {"role": "skip", "content": "b"}, {"role": "user", "content": ""}],
]


def oracle(folder: Path, messages: list[dict[str, str]]) -> str | Exception:
    tokenizer: Any = PreTrainedTokenizerFast.from_pretrained(str(folder))
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    except Exception as error:
        return error


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("messages", CONVERSATIONS)
def test_a_prompt_is_the_one_transformers_renders(tmp_path: Path, name: str, messages: list[dict[str, str]]) -> None:
    write(tmp_path, "byte_level", bos_token="<s>", eos_token="</s>", chat_template=TEMPLATES[name])
    expected = oracle(tmp_path, messages)
    tokenizer = Tokenizer.load(tmp_path)
    if isinstance(expected, str):
        assert tokenizer.render_chat(messages) == expected
    else:
        with pytest.raises(InvalidRequest) as caught:
            tokenizer.render_chat(messages)
        assert str(expected) in caught.value.message and caught.value.field == "messages"


@pytest.mark.parametrize("messages", CONVERSATIONS[:3])
def test_the_embedded_models_prompts_are_those_of_transformers(messages: list[dict[str, str]]) -> None:
    expected = AutoTokenizer.from_pretrained(str(EMBEDDED)).apply_chat_template(
        messages, tokenize=True, add_generation_prompt=True, return_dict=False
    )
    tokenizer = Tokenizer.load(EMBEDDED)
    assert list(tokenizer.encode(tokenizer.render_chat(messages), add_special_tokens=False)) == expected


def test_a_refusal_of_the_template_reaches_the_caller_in_its_own_words() -> None:
    with pytest.raises(InvalidRequest, match="Only user and assistant roles are supported!"):
        ChatTemplate(MISTRAL, {"bos_token": ""}).render(
            [{"role": "user", "content": ""}] * 0 + CONVERSATIONS[3][:1] + [{"role": "tool", "content": "x"}], True
        )


def test_no_messages_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="at least one message"):
        ChatTemplate("x", {}).render([], True)


def test_a_template_that_is_no_jinja_is_a_start_up_error() -> None:
    with pytest.raises(ModelError, match="chat template is broken"):
        ChatTemplate("{% for %}", {})


ESCAPES = [
    "{{ messages.append(1) }}",
    "{{ ''.__class__.__mro__ }}",
    "{{ dict.mro() }}",
    "{{ namespace(__class__=1) }}",
    "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
    "{{ namespace.mro() }}",
    "{{ 1 / 0 }}",
    "{{ range(999999999) }}",
    "{{ undefined.x }}",
]


@pytest.mark.parametrize("source", ESCAPES)
def test_what_a_template_may_not_do_is_refused(source: str) -> None:
    with pytest.raises(InvalidRequest, match="do not fit the chat template"):
        ChatTemplate(source, {}).render([{"role": "user", "content": "x"}], True)


def test_rendering_leaves_the_callers_messages_alone() -> None:
    messages = [{"role": "user", "content": "x"}]
    template = ChatTemplate("{% set m = messages[0] %}{{ m.update({'content': 'y'}) }}", {})
    with pytest.raises(InvalidRequest):
        template.render(messages, True)
    assert messages == [{"role": "user", "content": "x"}]
