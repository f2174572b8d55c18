"""Prepared items in a folder of flat files: written once, read at random in constant memory."""

from __future__ import annotations

import hashlib
import json
import os
import weakref
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cached_property
from io import FileIO
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from tunekit.errors import TunekitError
from tunekit.values import Account, Item, Mixing, TokenSequence

from .flat import FlatFile, Records
from .items import IndexedItems, Indices
from .whereabouts import Whereabouts

VERSION = 1
"""Changes whenever the files do."""
BLOCK = 1024
"""Items written, or read by a pass over all of them, at a time."""
TOKENS = 1 << 18
"""Tokens at a time: a block ends there where its items are long."""
MANIFEST = "manifest.json"

IDS = np.dtype(np.int32)
SPANS = np.dtype([("tokens", np.int32), ("weight", np.float64)])
"""Neighbouring tokens of one loss weight: about a fortieth of what the weights of single tokens would take."""
SEQUENCES = np.dtype(
    [("ids", np.int64), ("tokens", np.int32), ("spans", np.int64), ("span_count", np.int32), ("row", np.int64),
     ("text", np.int32), ("number", np.int64), ("cut", np.int32)]
)  # fmt: skip
ITEMS = np.dtype(
    [("first", np.int64), ("sequences", np.int32), ("tokens", np.int32), ("label", np.int8), ("margin", np.float64)]
)
FILES = {"ids": IDS, "spans": SPANS, "sequences": SEQUENCES, "items": ITEMS}


class DamagedStoreError(Exception):
    """The folder does not hold what its manifest says."""


def write_items(folder: Path, items: Iterable[Item], account: Account) -> None:
    """Write items, and the account as it is once the last one was taken, into an empty folder.

    Memory stays constant. The manifest comes last, after all else has reached the disk; without it the folder is
    nothing. Raises TunekitError where it cannot be written.
    """
    with ExitStack() as stack:
        with writing(folder):
            files = {name: stack.enter_context((folder / name).open("wb")) for name in FILES}
        writer = _Writer(files)
        for block in _blocks(items):
            with writing(folder):
                writer.add(block)
        with writing(folder):
            sizes = {name: _flush(file) for name, file in files.items()}
    manifest = {
        "version": VERSION,
        "bytes": sizes,
        "texts": writer.whereabouts.texts,
        "account": account.to_mapping(),
        "fingerprint": writer.digest.hexdigest(),
    }
    with writing(folder), (folder / MANIFEST).open("wb") as file:
        file.write(json.dumps(manifest).encode())
        _flush(file)


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Say what to do where something cannot be written."""
    try:
        yield
    except OSError as error:
        remedy = "make room there, or set TUNEKIT_CACHE to a folder that can be written"
        raise TunekitError(f"prepared data cannot be kept in {folder}: {error}", remedy) from error


class _Writer:
    """Appends blocks of items to the files."""

    def __init__(self, files: Mapping[str, BinaryIO]) -> None:
        self.files = files
        self.whereabouts, self.digest = Whereabouts(), hashlib.sha256()
        self.tokens = self.spans = self.sequences = 0

    def add(self, items: list[Item]) -> None:
        """Append a block."""
        sequences = [sequence for item in items for sequence in item.sequences]
        ids = np.concatenate([np.empty(0, IDS), *(np.asarray(sequence.ids, IDS) for sequence in sequences)])
        weights = np.concatenate([np.empty(0), *(np.asarray(sequence.weights, np.float64) for sequence in sequences)])
        assert len(ids) == len(weights), "each token has one weight"
        lengths = np.fromiter((len(sequence.ids) for sequence in sequences), np.int64, len(sequences))
        spans, span_counts = _spans(weights, lengths)
        self.files["sequences"].write(self._sequence_records(sequences, lengths, span_counts).tobytes())
        for name, records in {"items": self._item_records(items), "ids": ids, "spans": spans}.items():
            written = records.tobytes()
            self.files[name].write(written)
            self.digest.update(written)
        self.tokens += len(ids)
        self.spans += len(spans)
        self.sequences += len(sequences)

    def _item_records(self, items: list[Item]) -> Records:
        counts = np.fromiter((len(item.sequences) for item in items), np.int64, len(items))
        records = np.empty(len(items), ITEMS)
        records["first"], records["sequences"] = self.sequences + _starts(counts), counts
        records["tokens"] = [item.tokens for item in items]
        records["label"] = [-1 if item.label is None else int(item.label) for item in items]
        records["margin"] = [np.nan if item.margin is None else item.margin for item in items]
        return records

    def _sequence_records(self, sequences: list[TokenSequence], lengths: Indices, span_counts: Indices) -> Records:
        records = np.empty(len(sequences), SEQUENCES)
        records["ids"], records["tokens"] = self.tokens + _starts(lengths), lengths
        records["spans"], records["span_count"] = self.spans + _starts(span_counts), span_counts
        records["row"] = [sequence.row for sequence in sequences]
        records["cut"] = [sequence.cut for sequence in sequences]
        where = [self.whereabouts.add(sequence.where, sequence.row) for sequence in sequences]
        records["text"] = [text for text, _ in where]
        records["number"] = [number for _, number in where]
        return records


class StoredItems(IndexedItems):
    """Items in the order of the data, in a folder that `write_items` has filled.

    Equal to those written; ids and weights are arrays, int32 and float64, each time fresh ones. The files stay open as
    long as the object lives, and `closing` is closed with them.

    Raises DamagedStoreError where the folder is not what was written, FileNotFoundError where there is none.
    """

    def __init__(self, folder: Path, mixing: Mixing | None = None, closing: ExitStack | None = None) -> None:
        self.folder, self.mixing = folder, mixing or Mixing()
        manifest = _read_manifest(folder)
        try:
            self.account = Account.from_mapping(manifest["account"])
            self.fingerprint: str = manifest["fingerprint"]
            self._whereabouts = Whereabouts(manifest["texts"])
        except (KeyError, TypeError, ValueError) as error:
            raise DamagedStoreError(f"the manifest of {folder} cannot be read: {error!r}") from error
        self._count: int = manifest["bytes"]["items"] // ITEMS.itemsize
        closing = closing or ExitStack()
        self._files = {name: FlatFile(closing.enter_context(FileIO(folder / name)), FILES[name]) for name in FILES}
        weakref.finalize(self, closing.close)

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Item]:
        for start in range(0, len(self), BLOCK):
            records = self._files["items"].read(start, min(BLOCK, len(self) - start))
            parts = np.cumsum(records["tokens"], dtype=np.int64) // TOKENS
            for part in np.split(records, np.flatnonzero(np.diff(parts)) + 1):
                yield from self._items(part)

    def take(self, index: int) -> Item:
        """The item of this number."""
        return self._items(self._files["items"].read(index, 1))[0]

    @cached_property
    def lengths(self) -> Indices:
        """Tokens of each item."""
        blocks = [self._files["items"].read(at, min(1 << 16, len(self) - at))["tokens"]
                  for at in range(0, len(self), 1 << 16)]  # fmt: skip
        return np.concatenate(blocks).astype(np.int64) if blocks else np.empty(0, np.int64)

    def _items(self, records: Records) -> list[Item]:
        """Neighbouring items, with one look into each file."""
        items = records.tolist()
        sequences = iter(self._sequences(items[0][0], items[-1][0] + items[-1][1]))
        return [
            Item(tuple(islice(sequences, held)), None if label < 0 else bool(label),
                 None if margin != margin else margin)
            for _, held, _, label, margin in items
        ]  # fmt: skip

    def _sequences(self, start: int, end: int) -> Iterator[TokenSequence]:
        records = self._files["sequences"].read(start, end - start)
        if not len(records):
            return
        first_id, first_span = int(records["ids"][0]), int(records["spans"][0])
        ids = self._files["ids"].read(first_id, int(records["tokens"].sum()))
        spans = self._files["spans"].read(first_span, int(records["span_count"].sum()))
        weights = np.repeat(spans["weight"], spans["tokens"])
        for at, tokens, _, _, row, text, number, cut in records.tolist():
            inside = slice(at - first_id, at - first_id + tokens)
            where = self._whereabouts.text(text, number)
            yield TokenSequence(ids[inside], weights[inside], row, where, cut)  # type: ignore[arg-type]


def _blocks(items: Iterable[Item]) -> Iterator[list[Item]]:
    block: list[Item] = []
    tokens = 0
    for item in items:
        block.append(item)
        tokens += item.tokens
        if len(block) == BLOCK or tokens >= TOKENS:
            yield block
            block, tokens = [], 0
    if block:
        yield block


def _flush(file: BinaryIO) -> int:
    """Wait until all is on the disk; returns the size."""
    file.flush()
    os.fsync(file.fileno())
    return file.tell()


def _starts(counts: Indices) -> Indices:
    """Where each of several neighbours begins, from how long each is."""
    return np.cumsum(counts) - counts


def _spans(weights: Records, lengths: Indices) -> tuple[Records, Indices]:
    """The spans of equal weight inside each sequence, and how many each sequence has."""
    begins = np.zeros(len(weights) + 1, dtype=bool)
    begins[1:-1] = weights[1:] != weights[:-1]
    begins[_starts(lengths)] = True
    places = np.flatnonzero(begins[:-1])
    spans = np.empty(len(places), SPANS)
    spans["tokens"], spans["weight"] = np.diff(places, append=len(weights)), weights[places]
    borders = np.searchsorted(places, np.append(_starts(lengths), len(weights)))
    return spans, np.diff(borders)


def _read_manifest(folder: Path) -> dict[str, Any]:
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text())
        found = {name: (folder / name).stat().st_size for name in FILES}
    except (ValueError, FileNotFoundError) as error:
        if not folder.exists():
            raise
        raise DamagedStoreError(f"{folder} is not whole: {error}") from error
    if manifest.get("version") != VERSION or manifest.get("bytes") != found:
        raise DamagedStoreError(f"{folder} holds {found} bytes, and its manifest says {manifest.get('bytes')}")
    return manifest
