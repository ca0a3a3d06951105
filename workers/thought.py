"""Where a sequence is in the model's thinking: before it, inside of it, or behind it. Thinking comes once."""

from rayline.protos.types import Thinking


class Thought:
    """Follows output tokens. `is_open`: inside. `may_begin`: before.

        x x <start> y y y y y <end> z z z       a prompt may end inside: then <start> is the prompt's
                    |<-spent->|

    comes_first: thinking begins with the output or not at all, because a grammar begins there otherwise.
    """

    def __init__(self, thinking: Thinking, *, comes_first: bool) -> None:
        self._marks = thinking
        self._comes_first = comes_first
        self._matched = 0  # ids of the next mark, start or end, that stand at the end of the output
        self._spent = 0
        self.is_open = thinking.is_open and bool(thinking.end_ids)
        self.may_begin = not thinking.is_open and bool(thinking.start_ids and thinking.end_ids)

    def append(self, token_id: int) -> bool:
        """Go on by one output token; whether it belongs to the thinking, its marks included."""
        if self.is_open:
            self._spent += 1
            self._matched = _matched(self._marks.end_ids, self._matched, token_id)
            if self._matched == len(self._marks.end_ids):
                self.is_open, self._matched = False, 0
            return True
        if not self.may_begin:
            return False
        matched = _matched(self._marks.start_ids, self._matched, token_id)
        if self._comes_first and matched <= self._matched:
            self.may_begin = False
            return False
        self._matched = matched
        if matched == len(self._marks.start_ids):
            self.is_open, self.may_begin, self._matched = True, False, 0
        return True

    @property
    def first(self) -> int | None:
        """The token that begins thinking, while it may begin."""
        return self._marks.start_ids[0] if self.may_begin else None

    @property
    def begun(self) -> int | None:
        """The next token of a mark that has begun where only thinking or a grammar can: it is written to its end."""
        is_inside_mark = self._comes_first and self.may_begin and self._matched > 0
        return self._marks.start_ids[self._matched] if is_inside_mark else None

    @property
    def forced(self) -> int | None:
        """The next token of the end mark once the budget is spent; what of it stands there already is not repeated."""
        budget_tokens = self._marks.budget_tokens
        if not self.is_open or budget_tokens is None or self._spent < budget_tokens:
            return None
        return self._marks.end_ids[self._matched]

    def copy(self) -> "Thought":
        twin = Thought(self._marks, comes_first=self._comes_first)
        twin._matched, twin._spent = self._matched, self._spent
        twin.is_open, twin.may_begin = self.is_open, self.may_begin
        return twin


def _matched(mark: tuple[int, ...], before: int, token_id: int) -> int:
    """How long a beginning of `mark` stands at the end, of which mark[:before] stood there before `token_id` came."""
    tail = (*mark[:before], token_id)
    return next((size for size in range(len(tail), 0, -1) if mark[:size] == tail[-size:]), 0)
