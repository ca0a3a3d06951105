"""Stop strings: the same answer however the text is cut, and nothing said that must be taken back."""

from hypothesis import given
from hypothesis import strategies as st

from rayline.router.stops import StopStrings

small = st.text("ab ", max_size=12)
stop_lists = st.lists(st.text("ab ", min_size=1, max_size=4), max_size=3)


def character_by_character(text: str, stops: list[str]) -> tuple[str, str | None]:
    """The definition: after each character, has a stop string just completed? The longest wins."""
    for end in range(1, len(text) + 1):
        done = [stop for stop in stops if text[:end].endswith(stop)]
        if done:
            longest = max(done, key=len)
            return text[: end - len(longest)], longest
    return text, None


@given(st.lists(small, max_size=8), stop_lists)
def test_the_cut_does_not_depend_on_the_pieces(parts: list[str], stops: list[str]) -> None:
    stream = StopStrings(stops)
    said = "".join(map(stream.push, parts)) + stream.finish()
    assert (said, stream.matched) == character_by_character("".join(parts), stops)


@given(st.lists(small, max_size=8), stop_lists)
def test_only_what_may_become_a_stop_string_is_held_back(parts: list[str], stops: list[str]) -> None:
    stream = StopStrings(stops)
    said, seen = "", ""
    for part in parts:
        said += stream.push(part)
        seen += part
        if stream.matched is None:
            held = seen[len(said) :]
            assert not held or any(stop.startswith(held) and stop != held for stop in stops)


def test_without_stop_strings_text_passes_at_once() -> None:
    stream = StopStrings(())
    assert stream.push("text") == "text"
    assert stream.finish() == ""


def test_a_beginning_that_leads_nowhere_is_let_go() -> None:
    stream = StopStrings(["<end>"])
    assert [stream.push("a <e"), stream.push("n"), stream.push("t> b")] == ["a ", "", "<ent> b"]


def test_a_stop_string_inside_one_piece_cuts_it() -> None:
    stream = StopStrings(["\n\n", "###"])
    assert stream.push("one\n\ntwo") == "one"
    assert stream.matched == "\n\n"
    assert stream.push("more") == "" and stream.finish() == ""


def test_the_string_that_completes_first_wins_over_the_one_that_began_first() -> None:
    stream = StopStrings(["abcd", "bc"])
    assert stream.push("xabcd") == "xa"
    assert stream.matched == "bc"


def test_of_two_that_complete_together_the_longer_wins() -> None:
    stream = StopStrings(["end", "the end"])
    assert stream.push("this is the end.") == "this is "
    assert stream.matched == "the end"


@given(st.text(alphabet="ab<", max_size=12), st.lists(st.text(alphabet="ab<", min_size=1, max_size=3), max_size=3))
def test_an_included_stop_string_is_all_that_is_added(text: str, stops: list[str]) -> None:
    without, included = StopStrings(stops), StopStrings(stops, included=True)
    said = [one.push(text) + one.finish() for one in (without, included)]
    assert included.matched == without.matched
    assert said[1] == said[0] + (without.matched or "")
