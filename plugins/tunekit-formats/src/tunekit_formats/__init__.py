"""The default data plugins: one that opens sources, four that turn their rows into examples."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import Field

from tunekit.hooks import hookimpl
from tunekit.plugin import Plugin, PluginConfig
from tunekit.values import BadRow, Example, Rows, Source

__all__ = ["Alpaca", "Files", "FilesConfig", "FormatConfig", "OpenAi", "ShareGpt", "Text"]


class FilesConfig(PluginConfig):
    """Options for data sets on the Hugging Face hub; files need none."""

    subset: str | None = Field(None, description="the configuration of a hub data set, where it has several")
    revision: str | None = Field(None, description="the branch, tag or commit of a hub data set; None: its main branch")


class Files(Plugin[FilesConfig]):
    """Opens JSON, JSON Lines, CSV, Parquet and text files, folders of them, hub data sets, and rows given in Python."""

    provides = frozenset({"data.reader"})

    @hookimpl
    def tunekit_read_data(self, source: Source) -> Rows:
        """Open a source; its rows can be read again and again."""
        from .sources import open_source

        return open_source(source, self.config.subset, self.config.revision)


class FormatConfig(PluginConfig):
    """The formats have no options: other names of columns are given in the source, with `columns`."""


class Alpaca(Plugin[FormatConfig]):
    """Rows of `instruction`, `output` and perhaps `input`, `system`, `history`."""

    provides = frozenset({"data.format"})

    @hookimpl
    def tunekit_format_data(self, rows: Rows) -> Iterator[Example | BadRow] | None:
        """Make a conversation of each row; None where `instruction` or `output` is missing."""
        from . import alpaca, shapes

        shape = shapes.recognise(rows, "alpaca")
        return None if shape is None else alpaca.convert(rows)


class ShareGpt(Plugin[FormatConfig]):
    """Rows of `conversations`, a list of `from` and `value`, and perhaps `system`."""

    provides = frozenset({"data.format"})

    @hookimpl
    def tunekit_format_data(self, rows: Rows) -> Iterator[Example | BadRow] | None:
        """Make a conversation of each row; None where there is no list of `from` and `value`."""
        from . import conversations, shapes

        shape = shapes.recognise(rows, "sharegpt")
        return None if shape is None else conversations.convert(rows, shape, conversations.SHAREGPT)


class OpenAi(Plugin[FormatConfig]):
    """Rows of `messages`, a list of `role` and `content`, each perhaps with a `weight`."""

    provides = frozenset({"data.format"})

    @hookimpl
    def tunekit_format_data(self, rows: Rows) -> Iterator[Example | BadRow] | None:
        """Make a conversation of each row; None where there is no list of `role` and `content`."""
        from . import conversations, shapes

        shape = shapes.recognise(rows, "openai")
        return None if shape is None else conversations.convert(rows, shape, conversations.OPENAI)


class Text(Plugin[FormatConfig]):
    """Rows of `text`: documents, for pretraining or for conversations that are already written out."""

    provides = frozenset({"data.format"})

    @hookimpl
    def tunekit_format_data(self, rows: Rows) -> Iterator[Example | BadRow] | None:
        """Make a document of each row; None where there is no `text`, or the columns of a conversation as well."""
        from . import documents, shapes

        shape = shapes.recognise(rows, "text")
        return None if shape is None else documents.convert(rows)
