"""The reader and the formats satisfy what every reader and format has to."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tunekit.testing import FormatSuite, ReaderSuite
from tunekit.values import Source
from tunekit_formats import Alpaca, Files, Labelled, OpenAi, Preference, Prompts, ShareGpt, Text


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
        {"instruction": "Greet.", "input": "", "output": "<think>\nWarmly.\n</think>\n\nHello."},
        {"instruction": "<image>What is this?", "output": "A river.", "images": ["river.png"]},
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
        {
            "conversations": [
                {"from": "human", "value": "2 + 3"},
                {"from": "function_call", "value": '{"name": "add", "arguments": {"numbers": [2, 3]}}'},
                {"from": "observation", "value": "5"},
                {"from": "gpt", "value": "It is 5."},
            ],
            "tools": '[{"name": "add", "parameters": {"type": "object"}}]',
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
        {
            "messages": [
                {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}]},
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [{"id": "1", "function": {"name": "look", "arguments": "{}"}}],
                },
                {"role": "tool", "content": "A river.", "tool_call_id": "1"},
                {"role": "assistant", "content": "A river."},
            ],
            "tools": [{"type": "function", "function": {"name": "look"}}],
        },
    )
    bad_rows = (
        {"messages": [{"role": "user", "content": "Hi"}]},
        {"messages": [{"role": "assistant", "content": ""}]},
        {"messages": None},
    )


class TestPreference(FormatSuite):
    plugin = Preference()
    rows = (
        {"prompt": "2 + 3", "chosen": "5", "rejected": "6", "margin": 0.5},
        {"prompt": [{"role": "user", "content": "Hi"}], "chosen": "Hello.", "rejected": "What?"},
    )
    bad_rows = (
        {"prompt": "2 + 3", "chosen": "5", "rejected": "5"},
        {"prompt": "2 + 3", "chosen": "5", "rejected": None},
        {"chosen": "5", "rejected": "6"},
    )


class TestPreferenceOfWholeConversations(FormatSuite):
    plugin = Preference()
    rows = (
        {
            "chosen": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}],
            "rejected": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "What?"}],
        },
    )
    bad_rows = (
        {"chosen": "5", "rejected": "6"},
        {"chosen": [{"role": "user", "content": "Hi"}], "rejected": [{"role": "user", "content": "Hello"}]},
        {"chosen": [], "rejected": [{"role": "assistant", "content": "Hello."}]},
    )


class TestLabelled(FormatSuite):
    plugin = Labelled()
    rows = (
        {"prompt": "2 + 3", "completion": "5", "label": True},
        {"prompt": "2 + 3", "completion": "6", "label": False},
    )
    bad_rows = (
        {"prompt": "2 + 3", "completion": "5", "label": None},
        {"prompt": "2 + 3", "completion": "", "label": True},
        {"prompt": "2 + 3", "label": True},
    )


class TestText(FormatSuite):
    plugin = Text()
    rows = ({"text": "A plain answer."}, {"text": "A long one."})
    bad_rows = ({"text": None}, {"text": 5})


class TestPrompts(FormatSuite):
    plugin = Prompts()
    rows = (
        {"prompt": "What is two and three?", "result": 5},
        {"prompt": [{"role": "user", "content": "Hi"}], "result": None},
        {
            "prompt": [
                {"role": "user", "content": "2 + 3"},
                {"role": "assistant", "content": "5"},
                {"role": "user", "content": "+ 1"},
            ]
        },
    )
    bad_rows = (
        {"prompt": ""},
        {"prompt": 5},
        {"prompt": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]},
    )
