"""Reading the calls of functions in what a model writes, as it writes it."""

from dataclasses import dataclass

from worker.serving.call_objects import CallObjectReader
from worker.serving.tool_formats import ToolFormat


@dataclass(frozen=True, slots=True)
class Content:
    """Text that is no call."""

    text: str


@dataclass(frozen=True, slots=True)
class CallBegun:
    """A call whose function is known."""

    index: int
    name: str


@dataclass(frozen=True, slots=True)
class Arguments:
    """A part of the JSON text of a call's arguments."""

    index: int
    text: str


Said = Content | CallBegun | Arguments


class CallReader:
    """Takes the text of one answer in pieces and tells content and calls apart.

    Arguments are passed on as they come. What turns out to be no call after all is content, as
    it was written. White space around calls is nobody's.

    Attributes:
        calls: how many there were so far.
    """

    def __init__(self, form: ToolFormat) -> None:
        self.calls = 0
        self._form = form
        self._sign = form.begin.split()[0] if form.begin else ""
        self._read = self._read_text
        # Text that nothing was made of yet; within a call, what comes after the object so far.
        self._left = ""
        self._space = ""  # Before the sign of a call.
        self._is_start = True
        self._expected = form.begin
        self._raw = ""  # Since the sign, as long as it may turn out to be content.
        self._object = CallObjectReader(form.arguments)

    @property
    def has_whole_calls(self) -> bool:
        """Whether there were calls, and all that were said to have begun are complete."""
        return self.calls > 0 and not self._is_in_call

    def push(self, text: str) -> list[Said]:
        """Return what a further piece of text makes certain."""
        self._left += text
        said: list[Said] = []
        while self._read(said):
            pass
        return said

    def finish(self) -> list[Said]:
        """Return the rest: no more text will come."""
        rest = self._left if self._read == self._read_text else self._raw
        if self._is_in_call or self._read == self._read_end or not (rest.strip() or not self.calls):
            return []
        return [Content(self._space + rest)] if rest else []

    @property
    def _is_in_call(self) -> bool:
        return self._read == self._read_object and self._object.name is not None

    def _read_text(self, said: list[Said]) -> bool:
        """Read up to the sign of a call; return whether to go on at once."""
        at = self._left.find(self._sign) if self._sign else self._brace()
        if at >= 0:
            text = self._left[:at].rstrip()
            _say(said, text)
            self._space, self._left = self._left[len(text) : at], self._left[at:]
            self._expect(self._form.begin)
            return True
        certain = len(self._left) - _beginning_of(self._sign, self._left)
        # Spaces before a call are no content, so that they wait for what follows.
        certain = len(self._left[:certain].rstrip())
        self._is_start = self._is_start and not certain
        _say(said, self._left[:certain])
        self._left = self._left[certain:]
        return False

    def _brace(self) -> int:
        """Return where a call begins, in a format where only the first character tells."""
        text = self._left.lstrip()
        return len(self._left) - len(text) if self._is_start and text.startswith("{") else -1

    def _expect(self, text: str) -> None:
        self._is_start = False
        self._expected, self._raw = text, ""
        self._object = CallObjectReader(self._form.arguments)
        self._read = self._read_beginning

    def _read_beginning(self, said: list[Said]) -> bool:
        """Read what stands before the object of a call."""
        end = _skip(self._left, self._expected + "{")
        if end is None:
            self._raw = self._left
            return False
        if end < 0:
            return self._take_as_content(said, self._left)
        self._raw, self._left = self._left[: end - 1], self._left[end - 1 :]
        self._read = self._read_object
        return True

    def _read_object(self, said: list[Said]) -> bool:
        """Read the object of a call, and pass on its arguments as they come."""
        had_name = self._object.name is not None
        taken = self._object.push(self._left)
        self._raw += self._left[:taken]
        self._left = self._left[taken:]
        if self._object.is_refused:
            return self._take_as_content(said, self._raw + self._left)
        if self._object.name is not None:
            if not had_name:
                said.append(CallBegun(self.calls, self._object.name))
                self.calls += 1
            if part := self._object.take():
                said.append(Arguments(self.calls - 1, part))
        if self._object.is_complete:
            self._read = self._read_end
        return self._object.is_complete

    def _read_end(self, said: list[Said]) -> bool:
        """Read what stands between two calls, or after the last."""
        end = _skip(self._left, self._form.end) if self._form.end else -1
        if end is None:
            return False
        if end > 0:
            self._space, self._left = "", self._left[end:]
            self._read = self._read_text
            return True
        follows = _skip(self._left, self._form.between)
        if follows is None:
            return False
        if follows > 0:
            self._expect(self._form.between)
        else:
            self._read = self._read_text
        return True

    def _take_as_content(self, said: list[Said], text: str) -> bool:
        """Say that what was taken for the sign of a call is none."""
        length = max(1, len(self._sign))
        _say(said, self._space + text[:length])
        self._space, self._left = "", text[length:]
        self._read = self._read_text
        return True


def _say(said: list[Said], text: str) -> None:
    if text:
        said.append(Content(text))


def _beginning_of(sign: str, text: str) -> int:
    """Return the length of the longest end of a text that `sign` can begin with."""
    for length in range(min(len(sign) - 1, len(text)), 0, -1):
        if text.endswith(sign[:length]):
            return length
    return 0


def _skip(text: str, expected: str) -> int | None:
    """Return the length of `expected` in front of a text, whatever the white space.

    Returns:
        None if that takes more text to know; -1 if the text is another.
    """
    at = 0
    for character in "".join(expected.split()):
        at += len(text[at:]) - len(text[at:].lstrip())
        if at == len(text):
            return None
        if text[at] != character:
            return -1
        at += 1
    return at
