"""The reader and the formats satisfy what every reader and format has to."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tunekit.testing import FormatSuite, ReaderSuite
from tunekit.values import Source
from tunekit_formats import Alpaca, Files, OpenAi, ShareGpt, Text


class TestFiles(ReaderSuite):
    plugin = Files()

    def source(self, folder: Path, rows: Sequence[Mapping[str, Any]]) -> Source:
        path = folder / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return Source(path=str(path))


class TestRowsGivenInPython(ReaderSuite):
    plugin = Files()

    def source(self, folder: Path, rows: Sequence[Mapping[str, Any]]) -> Source:
        return Source(rows=rows)


class TestAlpaca(FormatSuite):
    plugin = Alpaca()
    rows = (
        {"instruction": "Add.", "input": "2, 3", "output": "5"},
        {"instruction": "Greet.", "input": "", "output": "Hello."},
    )
    bad_rows = ({"instruction": "Add.", "output": 5}, {"instruction": "", "output": "5"}, {"instruction": "Add."})


class TestShareGpt(FormatSuite):
    plugin = ShareGpt()
    rows = (
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}]},
        {
            "conversations": [{"from": "user", "value": "2 + 3"}, {"from": "assistant", "value": "5"}],
            "system": "Short.",
        },
    )
    bad_rows = (
        {"conversations": [{"from": "human", "value": "Hi"}]},
        {"conversations": [{"from": "stranger", "value": "Hi"}]},
        {"conversations": "Hi"},
    )


class TestOpenAi(FormatSuite):
    plugin = OpenAi()
    rows = (
        {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]},
        {"messages": [{"role": "user", "content": "2 + 3"}, {"role": "assistant", "content": "5", "weight": 0.5}]},
    )
    bad_rows = (
        {"messages": [{"role": "user", "content": "Hi"}]},
        {"messages": [{"role": "assistant", "content": ""}]},
        {"messages": None},
    )


class TestText(FormatSuite):
    plugin = Text()
    rows = ({"text": "A plain answer."}, {"text": "A long one."})
    bad_rows = ({"text": None}, {"text": 5})
