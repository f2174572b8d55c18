"""Rows that cannot be used: every one says why and what to do."""

from __future__ import annotations

from typing import Any

import pytest

from tunekit.values import BadRow

SYSTEM, HUMAN, GPT = {"from": "system", "value": "s"}, {"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}
USER, ASSISTANT = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
OTHER = {"role": "assistant", "content": "b"}
PAIR = {"instruction": "q", "output": "a"}
CHOICE = {"chosen": "a", "rejected": "b"}
SCHEMA = {"name": "find", "description": "Find it.", "parameters": {"type": "object", "properties": {}}}
TOOL = {"type": "function", "function": SCHEMA}
CALL = {"name": "find", "arguments": {"what": "é", "deep": [1, {"a": None}]}}


# Bad rows


OPENED = object()
CALLING = {"role": "assistant", "content": None}


@pytest.mark.parametrize(
    ("name", "row", "told"),
    [
        ("alpaca", {**PAIR, "output": None}, "column output is null, expected text"),
        ("alpaca", {**PAIR, "output": 42}, "column output is a number, expected text"),
        ("alpaca", {**PAIR, "output": ["a"]}, "column output is a list, expected text"),
        ("alpaca", {**PAIR, "output": "\n "}, "an answer is empty; column output: fill it in"),
        ("alpaca", {**PAIR, "output": "<think>t</think>\n"}, "an answer is empty"),
        ("alpaca", {**PAIR, "output": "\ud83d"}, "column output holds half a character; repair the encoding of the "
         "data (U+D83D"),
        ("alpaca", {**PAIR, "instruction": "", "input": " "}, "instruction and input are both empty"),
        ("alpaca", {**PAIR, "input": {}}, "column input is an object, expected text"),
        ("alpaca", {**PAIR, "system": True}, "column system is true or false, expected text"),
        ("alpaca", {**PAIR, "history": "x"}, "column history is text, expected a list of pairs"),
        ("alpaca", {**PAIR, "history": [["x"]]}, "an item of history is not a pair; item 1 of history: write [["),
        ("alpaca", {**PAIR, "history": [["x", None]]}, "an answer of history is null, expected text; item 1"),
        ("alpaca", {**PAIR, "rejected": "b"}, "this is preference data (columns rejected), which plain training would "
         "learn alike; name the format preference"),
        ("alpaca", {**PAIR, "kto_tag": 0}, "column kto_tag calls the answer good or bad"),
        ("alpaca", {**PAIR, "videos": ["v.mp4"]}, "column videos is filled, and only images are read"),
        ("alpaca", {**PAIR, "images": "1.png"}, "the images do not match the places they stand in; write <image> once "
         "for each image of column images, in order (found: 1 images, 0 places)"),
        ("alpaca", {**PAIR, "instruction": "<image>", "images": None}, "(found: 0 images, more places)"),
        ("alpaca", {**PAIR, "images": [OPENED]}, "an image is object, expected a path, an address or bytes; image 1:"),
        ("alpaca", {**PAIR, "images": b""}, "an image is empty"),
        ("alpaca", {**PAIR, "images": {"path": None}}, "an image is null"),
        ("alpaca", {**PAIR, "output": "<image><think>t</think>a", "images": "1"}, "an image stands in what the"),
        ("sharegpt", {"conversations": "x"}, "column conversations is text, expected a list of turns"),
        ("sharegpt", {"conversations": None}, "column conversations is null, expected a list of turns"),
        ("sharegpt", {"conversations": []}, "no assistant turn; add the answer, or leave the row out (roles found: n"),
        ("sharegpt", {"conversations": [HUMAN, HUMAN]}, "or leave the row out (roles found: user)"),
        ("sharegpt", {"conversations": [HUMAN, "a"]}, "a turn is text, expected an object of from and value"),
        ("sharegpt", {"conversations": [HUMAN, {"from": "gpt"}]}, "a turn has no value; turn 2 of column"),
        ("sharegpt", {"conversations": [USER, ASSISTANT]}, "a turn has no from and no value; turn 1 of column "
         "conversations: name them from and value, say in `tags`"),
        ("sharegpt", {"conversations": [HUMAN, {"from": "gtp", "value": "a"}]}, "a turn has an unknown role; turn 2 of "
         "column conversations: did you mean gpt? 'gtp' is none of"),
        ("sharegpt", {"conversations": [HUMAN, {"from": 1, "value": "a"}]}, "the from of a turn is a number"),
        ("sharegpt", {"conversations": [HUMAN, {"from": "gpt", "value": " "}]}, "an answer is empty; turn 2"),
        ("sharegpt", {"conversations": [HUMAN, {"from": "gpt", "value": None}]}, "the content of a turn is null"),
        ("sharegpt", {"conversations": [HUMAN, GPT], "chosen": GPT, "rejected": GPT}, "columns chosen and rejected"),
        ("sharegpt", {"conversations": [SYSTEM, HUMAN, GPT], "system": "t"}, "there is a system column and a system"),
        ("openai", {"messages": [USER, {**ASSISTANT, "content": None}]}, "the content of a turn is null"),
        ("openai", {"messages": [USER, {**ASSISTANT, "content": ""}]}, "an answer is empty"),
        ("openai", {"messages": [USER, {**ASSISTANT, "role": "asistant"}]}, "did you mean assistant?"),
        ("openai", {"messages": [{**USER, "content": [{"type": "audio"}]}, ASSISTANT]}, "a part of an unknown "
         "type; turn 1 of column messages: leave the row out (type 'audio'"),
        ("openai", {"messages": [{**USER, "content": [{"type": "image"}]}, ASSISTANT]}, "images do not match"),
        ("openai", {"messages": [{**USER, "content": ["q"]}, ASSISTANT]}, "a part of a content is text, expected an"),
        ("openai", {"messages": [USER, {**ASSISTANT, "weight": -1}]}, "the weight of a turn is no number from 0 up; "
         "turn 2 of column messages: write 0, 1, or nothing (found: -1)"),
        ("openai", {"messages": [USER, {**ASSISTANT, "weight": True}]}, "(found: True)"),
        ("openai", {"messages": [USER, {**ASSISTANT, "weight": float("nan")}]}, "(found: nan)"),
        ("openai", {"messages": [USER, {**ASSISTANT, "weight": 10**400}]}, "no number from 0 up"),
        ("openai", {"messages": [USER, ASSISTANT], "label": False}, "would learn both alike; name the format labelled"),
        ("openai", {"messages": [{**USER, "name": 1}, ASSISTANT]}, "name of a turn is a number, expected text"),
        ("preference", {"prompt": "q", "chosen": "a", "rejected": "a"}, "chosen and rejected are the same"),
        ("preference", {"prompt": "", **CHOICE}, "column prompt is empty"),
        ("preference", {"prompt": [], **CHOICE}, "there is no prompt"),
        ("preference", CHOICE, "there is no prompt; say which column it is, as in `columns: {prompt: question}`"),
        ("preference", {"prompt": "q", "chosen": "a", "rejected": None}, "column rejected is null, expected a list of"),
        ("preference", {"prompt": "q", "chosen": "a", "rejected": " "}, "column rejected is empty"),
        ("preference", {"prompt": "q", "chosen": [USER, ASSISTANT], "rejected": "b"}, "one is an answer, one a whole"),
        ("preference", {"prompt": "q", "chosen": "a", "rejected": USER}, "do not part with an answer of the assistant"),
        ("preference", {"chosen": [USER, ASSISTANT], "rejected": [USER, ASSISTANT]}, "are the same"),
        ("preference", {"chosen": [USER, ASSISTANT, USER, OTHER], "rejected": [USER, ASSISTANT]}, "one of chosen and "
         "rejected holds no answer of its own"),
        ("preference", {"chosen": [USER, ASSISTANT], "rejected": [{**USER, "content": "other"}, ASSISTANT]},
         "do not part with an answer of the assistant; leave the row out (found a turn of the user)"),
        ("preference", {"prompt": "x", "chosen": [USER, ASSISTANT], "rejected": [USER, OTHER]}, "the prompt is not "
         "what chosen and rejected begin with"),
        ("preference", {"chosen": [ASSISTANT], "rejected": [OTHER]}, "there is no prompt"),
        ("preference", {"prompt": "q", **CHOICE, "margin": "much"}, "column margin is no finite number; write a number "
         "or nothing (found: 'much')"),
        ("preference", {"prompt": "q", **CHOICE, "margin": True}, "column margin is no finite number"),
        ("preference", {"prompt": "q", **CHOICE, "margin": float("inf")}, "column margin is no finite number"),
        ("preference", {"prompt": "q", **CHOICE, "chosen_score": 1e308, "rejected_score": -1e308}, "no finite number"),
        ("preference", {"prompt": "q", **CHOICE, "images": "1"}, "the images do not match"),
        ("prompt", {"prompt": []}, "the prompt has no turn; column prompt: write what is asked, or leave the row out"),
        ("labelled", {"prompt": [], "completion": "a", "label": True}, "the prompt has no turn"),
        ("labelled", {"messages": [USER, ASSISTANT], "label": "good"}, "column label is neither true nor false; write "
         "true or false, or leave the row out (found: 'good')"),
        ("labelled", {"messages": [USER, ASSISTANT], "label": 2}, "column label is neither true nor false"),
        ("labelled", {"messages": [USER, ASSISTANT], "label": None}, "column label is neither true nor false"),
        ("labelled", {"messages": [ASSISTANT, USER], "label": True}, "the conversation does not end with an answer"),
        ("labelled", {"messages": [USER], "label": True}, "no assistant turn"),
        ("labelled", {"prompt": "q", "completion": "", "label": True}, "column completion is empty"),
        ("labelled", {"prompt": "q", "completion": [], "label": True}, "the completion does not begin with an answer"),
        ("labelled", {"prompt": "q", "completion": [USER, ASSISTANT], "label": True}, "does not begin with an answer"),
        ("labelled", {"prompt": "q", "label": True}, "column completion is missing"),
        ("text", {"text": None}, "column text is null, expected text"),
        ("text", {"text": ""}, "column text is empty"),
        ("text", {"text": 1.5}, "column text is a number, expected text"),
    ],
)  # fmt: skip
def test_a_row_that_cannot_be_used_says_why_and_what_to_do(
    told_of: Any, name: str, row: dict[str, Any], told: str
) -> None:
    assert told in told_of(row, name)


@pytest.mark.parametrize(
    ("call", "told"),
    [
        ("{broken", "a tool call is not JSON; turn 2 of column conversations: repair it, or leave the row out (Expect"),
        ('{"name": "f", "arguments": {"x": NaN}}', "a tool call is not JSON"),
        ("[" * 100_000, "a tool call is not JSON"),
        ("", "a tool call is empty"),
        ("[]", "a turn that calls tools names none"),
        ("null", "a turn that calls tools names none"),
        ("3", "a tool call is a number, expected an object; turn 2 of column conversations: write {"),
        ({"arguments": {}}, "a tool call has no name; turn 2 of column conversations: add it (found: arguments)"),
        ({"name": "f", "parameters": {}}, "a tool call has no arguments"),
        ({"name": " ", "arguments": {}}, "the name in a tool call is empty"),
        ({"name": "f", "arguments": [1]}, "the arguments object of a tool call is a list, expected an object"),
        ({"name": "f", "arguments": "x"}, "the arguments object of a tool call is not JSON"),
        (
            {"name": "f", "arguments": {"x": float("inf")}},
            "holds a number that is not finite, which JSON",
        ),
        ({"name": "f", "arguments": {"x": b"1"}}, "the arguments object of a tool call holds bytes"),
        ({"name": "f", "arguments": {1: 2}}, "a key of the arguments object of a tool call is a number"),
        ({"name": "f", "arguments": {"x": "\ud800"}}, "the arguments object of a tool call holds half a character"),
        ({"type": "custom", "name": "f", "arguments": {}}, "a tool call is not of a function"),
        ({"function": "f"}, "the function of a tool call is text, expected an object"),
        ({"id": 1, **CALL}, "the id of a tool call is a number"),
    ],
)
def test_a_broken_tool_call_says_what_is_wrong_with_it(told_of: Any, call: Any, told: str) -> None:
    assert told in told_of({"conversations": [HUMAN, {"from": "function_call", "value": call}]}, "sharegpt")


@pytest.mark.parametrize(
    "turn",
    [
        {**USER, "tool_calls": [{"function": CALL}]},
        {**USER, "content": [{"type": "tool_call", "value": CALL}]},
        {**USER, "content": [{"type": "reasoning", "value": "t"}]},
    ],
)
def test_only_the_assistant_thinks_and_calls_tools(told_of: Any, turn: dict[str, Any]) -> None:
    told = told_of({"messages": [turn, ASSISTANT]}, "openai")
    assert "a turn that is not the assistant's thinks or calls a tool; turn 1 of column messages" in told


def test_what_is_nested_too_deeply_is_refused(told_of: Any) -> None:
    deep: Any = {}
    for _ in range(2000):
        deep = {"deeper": [deep]}
    row = {"messages": [USER, {**CALLING, "tool_calls": [{"function": {"name": "f", "arguments": deep}}]}]}
    assert "nested more than 100 levels deep" in told_of(row, "openai")
    assert "a turn has an unknown role" in told_of({"messages": [{"role": "x", "content": deep}]}, "openai")
    assert "no finite number" in told_of({"prompt": "q", **CHOICE, "margin": [deep]}, "preference")


@pytest.mark.parametrize(
    ("tools", "told"),
    [
        ("{", "the definition of tools is not JSON; column tools: repair it"),
        (3, "the definition of tools is a number, expected a list"),
        ([3], "a tool is a number, expected an object; tool 1 of column tools"),
        ([{"type": "web_search"}], "a tool is not a function; tool 1 of column tools: leave the row out (found: type"),
        ([{"description": "x"}], "a tool has no name"),
        ([{"name": None}], "the name of a tool is null"),
        ([{"type": "function", "function": "f"}], "the function of a tool is text"),
        ([{"name": "f", "parameters": {"x": b""}}], "a tool holds bytes"),
    ],
)
def test_broken_definitions_of_tools_say_what_is_wrong_with_them(told_of: Any, tools: Any, told: str) -> None:
    assert told in told_of({"messages": [USER, ASSISTANT], "tools": tools}, "openai")


def test_tools_given_twice_must_agree(example_of: Any, told_of: Any) -> None:
    row = {"messages": [{**USER, "tools": [SCHEMA]}, ASSISTANT], "tools": [TOOL]}
    assert example_of(row).tools == (TOOL,)
    assert "tools are given twice, differently" in told_of({**row, "tools": [{"name": "other"}]}, "openai")


@pytest.mark.parametrize(
    ("good", "bad", "told"),
    [
        (PAIR, {"instruction": "q", "outptu": "a"}, "column output is missing (instruction, outptu)"),
        ({"prompt": "q", **CHOICE}, {"prompt": "q", "chosen": "a"}, "column rejected is missing (prompt, chosen)"),
        ({"messages": [USER, ASSISTANT]}, {"turns": []}, "column messages is missing (turns)"),
        ({"text": "a"}, {}, "column text is missing (none)"),
    ],
)
def test_a_missing_column_in_a_later_row_names_the_columns_found(
    recognised: Any, good: dict[str, Any], bad: dict[str, Any], told: str
) -> None:
    ((_, result),) = recognised([good, bad]).values()
    assert isinstance(result, BadRow)
    found = result.remedy.removeprefix("add it, or leave the row out (columns found: ")
    assert f"{result.reason} ({found}" == told


def test_rows_with_one_fault_are_counted_under_one_reason(recognised: Any) -> None:
    bad = [
        {"conversations": [HUMAN, {"from": "gtp", "value": "a"}]},
        {"conversations": [{"from": "stranger", "value": "a"}]},
    ]
    (results,) = recognised(bad).values()
    assert {result.reason for result in results if isinstance(result, BadRow)} == {"a turn has an unknown role"}
    assert len({result.remedy for result in results if isinstance(result, BadRow)}) == 2
