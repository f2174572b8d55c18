"""Data on its way from a file to what a stage trains on: source, rows, examples."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

from .account import Account

Role = Literal["system", "user", "assistant", "tool"]
ROLES: tuple[Role, ...] = ("system", "user", "assistant", "tool")
Kind = Literal["text", "conversation", "preference", "labelled"]
RowsGiven = Iterable[Mapping[str, Any]] | Callable[[], Iterable[Mapping[str, Any]]]
"""Rows given in Python: something that can be iterated again and again, or a function that starts a fresh pass."""


@dataclass(frozen=True)
class Source:
    """One data set as the recipe names it.

    `path` is a file, a folder, an archive, an address that fsspec knows, or the name of a data set on a hub; `rows` are
    rows given in Python instead. `subset` and `revision` belong to hub data sets. `format` names a format plugin (None:
    recognised by its columns), `columns` renames columns (`{instruction: question}`), `tags` names the keys and roles
    inside turns (`{role: from, content: value, user: human, assistant: gpt}`), `limit` keeps the first so many rows,
    `weight` is its share when sources are interleaved, `folder` is where the files that its rows name lie. `bad_rows`
    says whether a row that cannot be used stops the run or is counted and left out. `key` is where the recipe says
    all this.
    """

    path: str | None = None
    rows: RowsGiven | None = None
    format: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    subset: str | None = None
    revision: str | None = None
    split: str = "train"
    limit: int | None = None
    weight: float = 1.0
    folder: str | None = None
    bad_rows: Literal["error", "drop"] = "error"
    key: str = "data"

    @property
    def name(self) -> str:
        """What to call the source in messages."""
        if self.path is None:
            return f"{self.key} (rows given in Python)"
        return "/".join(filter(None, (self.path, self.subset)))


@dataclass(frozen=True, slots=True)
class Mixing:
    """How the examples of several sources become one stream, and in which order it is trained.

    `order` concatenates the sources, or interleaves them by their weights `until` the `first` has ended, the `last` has
    (others start again), or `each` was read once. `shuffle` draws a new order every epoch. `streaming` reads while
    training, without storing tokens, and shuffles within a buffer of so many examples.
    """

    order: Literal["concatenate", "interleave"] = "concatenate"
    until: Literal["first", "last", "each"] = "each"
    shuffle: bool = True
    streaming: bool = False
    buffer: int = 10_000


@dataclass(frozen=True, slots=True)
class Row:
    """One row as it was read: its number from 1, where it stands (`alpaca.json, row 17`), and its values by column."""

    number: int
    where: str
    values: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that is not an example: why, and what to do."""

    row: int
    where: str
    reason: str
    remedy: str = ""


@dataclass(frozen=True)
class Rows:
    """A source opened for reading. `read()` starts a fresh pass each time; columns are those of the first row.

    A reader gives a row that cannot be read, where the next one can, as a BadRow; a format never meets one.
    `fingerprint` changes whenever a byte of the data does.
    """

    source: Source
    columns: tuple[str, ...]
    read: Callable[[], Iterator[Row | BadRow]]
    fingerprint: str


@dataclass(frozen=True, slots=True)
class ToolCall:
    """The assistant calls a tool by its name, with arguments of JSON values. `id` ties its result to it."""

    name: str
    arguments: Mapping[str, Any]
    id: str | None = None


@dataclass(frozen=True, slots=True)
class Image:
    """An image in a message: a path, an address or the bytes of a file.

    It stands before character `at` of the content.
    """

    source: str | bytes
    at: int = 0


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation.

    `content` is what is said; `thinking` is what the assistant thinks before it (without the tags around it), and
    `tool_calls` are the calls it ends its turn with. A turn of role `tool` is the result of a call, `name` that of the
    tool and `call` the id of the call. `weight` scales the loss of the whole turn: 0 leaves it out, None follows the
    stage's rule.
    """

    role: Role
    content: str
    weight: float | None = None
    thinking: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    images: tuple[Image, ...] = ()
    name: str | None = None
    call: str | None = None


@dataclass(frozen=True, slots=True)
class Example:
    """The canonical example, of one of four kinds.

    A document (`text`); a conversation (`messages`, answers and all); a preference (`messages` is the prompt, `chosen`
    and `rejected` are the two ways it goes on); or a labelled conversation (`label`: whether its last answer is good).
    `tools` are JSON schemas of functions, as OpenAI writes them: `{"type": "function", "function": {"name", ...}}`.
    `margin` says by how much the chosen answer is better, where the data tells.

    `row` and `where` lead back to the row it was made from, `source` to its source; `columns` are the values of that
    row as they were read, for who wants more of it than a format takes. `optional`: leave it out and count
    it where it turns out that it cannot be trained on, rather than stop (the source says `bad_rows: drop`). `again`: it
    comes from a later pass over its source, and what becomes of its row is counted already.
    """

    row: int
    where: str
    messages: tuple[Message, ...] = ()
    text: str | None = None
    chosen: tuple[Message, ...] = ()
    rejected: tuple[Message, ...] = ()
    label: bool | None = None
    margin: float | None = None
    tools: tuple[Mapping[str, Any], ...] = ()
    source: str = ""
    optional: bool = False
    again: bool = False
    columns: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def kind(self) -> Kind:
        """Which of the four kinds it is."""
        if self.text is not None:
            return "text"
        if self.chosen or self.rejected:
            return "preference"
        return "conversation" if self.label is None else "labelled"


@dataclass(frozen=True)
class Examples:
    """The examples of a stage, in the order of its sources and their mixing. Each pass reads anew.

    A row that is no example is left out and noted: in `account`, which a pass over the examples begins afresh, or in
    the account that `start` is given. `fingerprint` changes with the data, with how it is read and mixed, and with the
    versions of the plugins that read it, and not with where the data lies; empty, nothing made of these examples is to
    be kept. `names` are those of the sources: the places of rows begin with them.
    """

    start: Callable[[Account], Iterator[Example]]
    fingerprint: str = ""
    mixing: Mixing = field(default_factory=Mixing)
    account: Account = field(default_factory=Account)
    names: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[Example]:
        self.account.clear()
        return self.start(self.account)

    @classmethod
    def of(cls, examples: Iterable[Example], fingerprint: str = "", mixing: Mixing | None = None) -> Examples:
        """Make examples of those at hand."""
        kept = tuple(examples)

        def start(account: Account) -> Iterator[Example]:
            for example in kept:
                account.source(example.source).rows += 1
                yield example

        return cls(start, fingerprint, mixing or Mixing())


@runtime_checkable
class ToolFormat(Protocol):
    """How tools are written where the chat template cannot: as text."""

    @property
    def named(self) -> bool:
        """Whether the recipe names this format, so that it goes before what the chat template can do itself."""
        ...

    def write(self, messages: tuple[Message, ...], tools: tuple[Mapping[str, Any], ...]) -> tuple[Message, ...]:
        """The same conversation in plain messages: tools told in the system turn, calls and results in the text."""
        ...

    def parse(self, text: str) -> tuple[str, tuple[ToolCall, ...]]:
        """What an answer says besides its calls, and the calls in it."""
        ...
