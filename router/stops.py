"""Stop strings in a text that arrives in pieces cut anywhere."""

from collections.abc import Sequence


class StopStrings:
    """Lets text through up to the first stop string.

    The match is the one that completes first, character by character, and of those that complete together
    the longest; so it does not depend on how the text was cut into pieces. Text that may yet turn out to be
    the beginning of a stop string is held back. `included`: the match itself is let through as well.
    """

    def __init__(self, stops: Sequence[str], included: bool = False):
        self._stops = tuple(stops)
        self._included = included
        self._held = ""
        self.matched: str | None = None

    def push(self, text: str) -> str:
        """The text that is certain not to belong to a stop string. Nothing comes after a match."""
        if self.matched is not None or not text:
            return ""
        text = self._held + text
        ends = [(at + len(stop), -len(stop), stop) for stop in self._stops if (at := text.find(stop)) >= 0]
        if ends:
            end, _, self.matched = min(ends)
            self._held = ""
            return text[: end if self._included else end - len(self.matched)]
        keep = max((overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def finish(self) -> str:
        """The held text: no more comes that could complete it."""
        rest, self._held = self._held, ""
        return rest


def overlap(text: str, stop: str) -> int:
    """Length of the longest proper beginning of `stop` that ends `text`."""
    longest = min(len(stop) - 1, len(text))
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
