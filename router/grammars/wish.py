"""Which grammar a request's output must keep to: that of its form, or of the tools it must or may call."""

from collections.abc import Mapping
from dataclasses import dataclass

from rayline.protos.types import Spec, StructuredOutput
from rayline.router.grammars.desk import GrammarDesk
from rayline.router.grammars.grammar import FIELD, tool_grammar
from rayline.router.output_form import ChatFormats
from rayline.router.tools.call_grammar import call_grammar


@dataclass(frozen=True, slots=True)
class GrammarWish:
    """Something to be checked at a GrammarDesk: a form, or the `text` made of tools. field: what to blame."""

    form: StructuredOutput | None
    text: str
    field: str

    async def granted(self, desk: GrammarDesk) -> str:
        """The text for `TokenRules.grammar`. Raises InvalidRequest with the field, or Overloaded."""
        return await (desk.checked(self.text, self.field) if self.form is None else desk.grammar(self.form, self.field))

    def granted_now(self, desk: GrammarDesk) -> str:
        """`granted` for callers without an event loop. Waits."""
        return desk.checked_now(self.text, self.field) if self.form is None else desk.grammar_now(self.form, self.field)


def grammar_wish(spec: Spec, chat: ChatFormats, special_ids: Mapping[str, int]) -> GrammarWish | None:
    """None where the output is free. `special_ids`: the tokenizer's special tokens by name.

    Raises InvalidRequest for tools and a form that contradict each other, or a schema that cannot be followed.
    """
    form = spec.params.structured_output
    if chat.tools is not None and spec.conversation is not None:
        calls = call_grammar(chat.tools, spec.conversation, form)
        if calls is not None:
            text = tool_grammar(
                calls.tags,
                special_ids,
                triggers=calls.triggers,
                opener=calls.opener,
                banned=calls.banned,
                separator=calls.separator,
                prefix=calls.prefix,
                suffix=calls.suffix,
                most=calls.most,
            )
            return GrammarWish(None, text, "tools")
    return None if form is None else GrammarWish(form, "", FIELD)
