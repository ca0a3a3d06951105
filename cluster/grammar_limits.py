"""What a grammar may cost, the same where it is checked and where it is followed.

The grammar library counts its work in units of its own ("fuel"), not in seconds, so that all ranks give up on a hostile
grammar at the same token.
"""

import llguidance

MAX_ITEMS_IN_ROW = 2000  # ways to go on at one byte
STEP_MAX_ITEMS = 5000  # parser items made for one token; the library's 50 000 take up to a second
STEP_LEXER_FUEL = 200_000  # regular-expression work for one token, about 14 000 a millisecond
INITIAL_LEXER_FUEL = 1_000_000  # the same for a whole grammar before its first token
MAX_LEXER_STATES = 50_000  # 1 to 2 kB each
MAX_GRAMMAR_SYMBOLS = 200_000
COMPILE_STACK_BYTES = 4 * 2**20  # the library recurses as deep as references go; the followers have more
FOLLOW_STACK_BYTES = 16 * 2**20


def parser_limits() -> llguidance.LLParserLimits:
    """The library's form of the limits. Large expressions are not tried on all tokens first: that costs no fuel."""
    return llguidance.LLParserLimits(
        max_items_in_row=MAX_ITEMS_IN_ROW,
        initial_lexer_fuel=INITIAL_LEXER_FUEL,
        step_lexer_fuel=STEP_LEXER_FUEL,
        step_max_items=STEP_MAX_ITEMS,
        max_lexer_states=MAX_LEXER_STATES,
        max_grammar_size=MAX_GRAMMAR_SYMBOLS,
        precompute_large_lexemes=False,
        verbose_errors=False,
    )


def failure(matcher: llguidance.LLMatcher) -> str | None:
    """What a matcher died of, in one line; None while it lives."""
    if not matcher.is_error():
        return None
    text: str = matcher.get_error()
    if text.startswith("NoExtension"):
        return "no text fits it"
    lines = text.split("\n<", 1)[0].strip().splitlines()
    return lines[0][:300] if lines else "the grammar failed"
