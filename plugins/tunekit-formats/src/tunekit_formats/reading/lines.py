"""Lines of text, decoded one by one so that a wrong byte is found where it stands; and text files."""

from __future__ import annotations

from collections.abc import Iterator

from tunekit.errors import DataError
from tunekit.values import BadRow, Row

from ..problems import data_error
from .blobs import Blob
from .tables import Pass

MARK = b"\xef\xbb\xbf"
"""The byte order mark that some programs put before UTF-8."""

UTF8 = "save the file as UTF-8"


def raw_lines(blob: Blob) -> Iterator[bytes]:
    """The lines of a blob as bytes, without a byte order mark."""
    with blob.open() as stream:
        for line in stream:
            yield line.removeprefix(MARK)
            break
        yield from stream


def read_text(blob: Blob) -> Pass:
    """Each line is a document; blank lines are left out."""
    number = 0
    for line, raw in enumerate(raw_lines(blob), 1):
        if not raw.strip():
            continue
        number += 1
        try:
            text = raw.decode().rstrip("\r\n")
        except UnicodeDecodeError as error:
            yield BadRow(number, f"{blob.name}, line {line}", wrong_byte(error), UTF8)
        else:
            yield Row(number, f"{blob.name}, row {number}", {"text": text})


def wrong_byte(error: UnicodeDecodeError) -> str:
    """What is wrong with a line that cannot be decoded."""
    return f"is not UTF-8 (byte 0x{error.object[error.start]:02x})"


def not_utf8(name: str, line: int, error: UnicodeDecodeError) -> DataError:
    """The error where nothing after a wrong byte can be read."""
    return data_error(f"{name}, line {line}", wrong_byte(error), UTF8)
