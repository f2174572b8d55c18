"""The default data plugins: one that opens sources, seven that turn their rows into examples."""

from __future__ import annotations

from collections.abc import Iterator

from tunekit.hooks import hookimpl
from tunekit.plugin import Plugin, PluginConfig
from tunekit.values import BadRow, Example, Rows, Source

__all__ = [
    "Alpaca",
    "Files",
    "FilesConfig",
    "FormatConfig",
    "Labelled",
    "OpenAi",
    "Preference",
    "Prompts",
    "ShareGpt",
    "Text",
]


class FilesConfig(PluginConfig):
    """The reader has no options: what belongs to one source is said there."""


class Files(Plugin[FilesConfig]):
    """Opens files, folders, archives, addresses that fsspec knows, hub data sets, and rows given in Python."""

    provides = frozenset({"data.reader"})

    @hookimpl
    def tunekit_read_data(self, source: Source) -> Rows:
        """Open a source; its rows can be read again and again."""
        from .reading import open_source

        return open_source(source)


class FormatConfig(PluginConfig):
    """The formats have no options: other names are given in the source, with `columns` and `tags`."""


class Alpaca(Plugin[FormatConfig]):
    """Rows of `instruction`, `output` and perhaps `input`, `system`, `history`, `tools`, `images`."""

    provides = frozenset({"data.format"})

    @hookimpl
    def tunekit_format_data(self, rows: Rows) -> Iterator[Example | BadRow] | None:
        """Make a conversation of each row; None where `instruction` or `output` is missing."""
        from .formats import alpaca, shapes

        return None if shapes.recognise(rows, "alpaca") is None else alpaca.read(rows)


class ShareGpt(Plugin[FormatConfig]):
    """Rows of `conversations`, a list of `from` and `value`, and perhaps `system`, `tools`, `images`."""

    provides = frozenset({"data.format"})

    @hookimpl
    def tunekit_format_data(self, rows: Rows) -> Iterator[Example | BadRow] | None:
        """Make a conversation of each row; None where there is no list of `from` and `value`."""
        from .formats import conversations, shapes

        shape = shapes.recognise(rows, "sharegpt")
        return None if shape is None else conversations.read(rows, shape)


class OpenAi(Plugin[FormatConfig]):
    """Rows of `messages`, a list of `role` and `content`, and perhaps `system`, `tools`, `images`."""

    provides = frozenset({"data.format"})

    @hookimpl
    def tunekit_format_data(self, rows: Rows) -> Iterator[Example | BadRow] | None:
        """Make a conversation of each row; None where there is no list of `role` and `content`."""
        from .formats import conversations, shapes

        shape = shapes.recognise(rows, "openai")
        return None if shape is None else conversations.read(rows, shape)


class Preference(Plugin[FormatConfig]):
    """Rows of `chosen` and `rejected`, and a prompt: beside them, or what both begin with."""

    provides = frozenset({"data.format"})

    @hookimpl
    def tunekit_format_data(self, rows: Rows) -> Iterator[Example | BadRow] | None:
        """Make a preference of each row; None where `chosen` or `rejected` is missing."""
        from .formats import preferences, shapes

        shape = shapes.recognise(rows, "preference")
        return None if shape is None else preferences.read(rows, shape)


class Labelled(Plugin[FormatConfig]):
    """Conversations with `label` or `kto_tag`, which says whether the last answer is good."""

    provides = frozenset({"data.format"})

    @hookimpl
    def tunekit_format_data(self, rows: Rows) -> Iterator[Example | BadRow] | None:
        """Make a labelled conversation of each row; None where there is no conversation or no label."""
        from .formats import labels, shapes

        shape = shapes.recognise(rows, "labelled")
        return None if shape is None else labels.read(rows, shape)


class Prompts(Plugin[FormatConfig]):
    """Rows of `prompt` without an answer, for stages that learn from their own; other columns are for rewards."""

    provides = frozenset({"data.format"})

    @hookimpl
    def tunekit_format_data(self, rows: Rows) -> Iterator[Example | BadRow] | None:
        """Make a conversation that waits for its answer; None where there is no `prompt`, or an answer to it."""
        from .formats import prompts, shapes

        shape = shapes.recognise(rows, "prompt")
        return None if shape is None else prompts.read(rows, shape)


class Text(Plugin[FormatConfig]):
    """Rows of `text`: documents, for pretraining or for conversations that are already written out."""

    provides = frozenset({"data.format"})

    @hookimpl
    def tunekit_format_data(self, rows: Rows) -> Iterator[Example | BadRow] | None:
        """Make a document of each row; None where there is no `text`, or the columns of another format as well."""
        from .formats import documents, shapes

        return None if shapes.recognise(rows, "text") is None else documents.read(rows)
