"""A list of JSON, parsed item by item from a short piece of its text, so that its length does not matter."""

from __future__ import annotations

import codecs
import json
import re
from typing import BinaryIO

from tunekit.errors import DataError

from ..problems import data_error
from .blobs import BUFFER, Blob
from .json_values import DECODER, row_of, why
from .lines import not_utf8
from .tables import Pass

_after_blanks = re.compile(r"[ \t\r\n]*").match

MARGIN = 16
"""Characters at the end of a piece of text within which a word or a number may be cut off."""


def read_list(blob: Blob) -> Pass:
    """The items of a list. Raises DataError where it is broken: where the next item starts cannot be known."""
    with blob.open() as stream:
        text = _Text(stream, blob.name)
        text.peek()  # the bracket that made it a list
        text.step()
        number = 0
        more = text.peek() != "]"
        while more:
            number += 1
            yield row_of(text.value(), number, blob.name, f"{blob.name}, row {number}")
            more = text.peek() == ","
            if more:
                text.step()
        if text.peek() != "]":
            raise text.error(ValueError("expected a comma or the end of the list"))
        text.step()
        if text.peek():
            raise text.error(ValueError("there is more after the end of the list"))


class _Text:
    """The text of a stream, of which only a piece is held: `_piece`, read up to `_at`."""

    def __init__(self, stream: BinaryIO, name: str) -> None:
        self._stream, self._name = stream, name
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._piece, self._at, self._ended = "", 0, False
        self._lines, self._column = 0, 0

    def peek(self) -> str:
        """The next character that is not blank; empty at the end."""
        while True:
            self._at = _after_blanks(self._piece, self._at).end()  # type: ignore[union-attr]
            if self._at < len(self._piece):
                return self._piece[self._at]
            if not self._read_on():
                return ""

    def step(self) -> None:
        """Step over the character that was peeked at."""
        self._at += 1

    def value(self) -> object:
        """Parse the next value; text is read on until it is complete."""
        self.peek()
        while True:
            try:
                value, end = DECODER.raw_decode(self._piece, self._at)
            except json.JSONDecodeError as error:
                if not (self._may_be_cut(error) and self._read_on()):
                    raise self.error(error) from error
            except (ValueError, RecursionError) as error:
                raise self.error(error) from error
            else:
                if end < len(self._piece) or not self._read_on():
                    self._at = end
                    return value

    def error(self, error: Exception) -> DataError:
        """What is wrong, with the line where it is."""
        at = error.pos if isinstance(error, json.JSONDecodeError) else self._at
        line, column = self._place(at)
        return data_error(f"{self._name}, line {line}", why(error, column), "correct the file there")

    def _may_be_cut(self, error: json.JSONDecodeError) -> bool:
        """Whether more text could mend it: a string that has not ended, or anything at the end of the piece."""
        return error.msg.startswith("Unterminated string") or error.pos >= len(self._piece) - MARGIN

    def _read_on(self) -> bool:
        """Drop what was read and add as much text as is left, or a buffer of it; False at the end of the stream.

        Doubling what is held keeps the time for one long value in proportion to its length.
        """
        if self._ended:
            return False
        lines, column = self._place(self._at)
        self._lines, self._column = lines - 1, column - 1
        self._piece, self._at = self._piece[self._at :], 0
        block = self._stream.read(max(BUFFER, len(self._piece)))
        self._ended = not block
        try:
            self._piece += self._decoder.decode(block, final=self._ended)
        except UnicodeDecodeError as error:
            line = self._place(len(self._piece))[0] + error.object.count(b"\n", 0, error.start)
            raise not_utf8(self._name, line, error) from error
        return True

    def _place(self, at: int) -> tuple[int, int]:
        """Line and column, from 1, of a place in the piece."""
        lines = self._piece.count("\n", 0, at)
        column = at - self._piece.rfind("\n", 0, at) - 1 if lines else self._column + at
        return self._lines + lines + 1, column + 1
