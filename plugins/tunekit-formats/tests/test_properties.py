"""What holds for every row: one result each, the same every time, and nothing lost between a row and its example."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunekit.errors import DataError
from tunekit.testing import rows_of
from tunekit.values import BadRow, Example, Image, Message, Source, ToolCall
from tunekit_formats import Alpaca, Labelled, OpenAi, Preference, Prompts, ShareGpt, Text

FORMATS: dict[str, Any] = {
    "alpaca": Alpaca(),
    "sharegpt": ShareGpt(),
    "openai": OpenAi(),
    "preference": Preference(),
    "labelled": Labelled(),
    "prompt": Prompts(),
    "text": Text(),
}
NAMES = st.sampled_from(sorted(FORMATS))
SOME = settings(max_examples=100, deadline=None)
MANY = settings(max_examples=100, deadline=None)


def read(rows: Sequence[Mapping[str, Any]], name: str | None = None) -> list[Example | BadRow] | None:
    """The results of the format named, or of the one that knows the rows; None where none does."""
    opened = rows_of(rows, Source(path="data", format=name))
    plugins = [FORMATS[name]] if name else FORMATS.values()
    answers = [answer for plugin in plugins if (answer := plugin.tunekit_format_data(opened)) is not None]
    assert len(answers) <= 1, "two formats recognise one source"
    return list(answers[0]) if answers else None


# Rows of anything

LEAF = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.binary(max_size=3)
    | st.text(max_size=8)
    | st.sampled_from(
        ["\ud800", "<image>", "<think>x</think>", "<think>", '{"name": "f", "arguments": ""}', "[[[", "🦊"]
    )
)
ROLES = st.sampled_from(["human", "gpt", "user", "assistant", "system", "tool", "function_call", "observation"])
KEYS = st.sampled_from(
    ("from", "value", "role", "content", "weight", "tool_calls", "function_call", "thinking", "name", "arguments")
)
JUNK = st.recursive(
    LEAF | ROLES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4), max_leaves=5
)
TURN = st.fixed_dictionaries({"from": ROLES | JUNK, "value": JUNK}) | st.fixed_dictionaries(
    {"role": ROLES | JUNK, "content": JUNK}, optional={"tool_calls": JUNK, "weight": JUNK, "thinking": JUNK}
)
COLUMNS = [
    *("instruction", "input", "output", "system", "history", "conversations", "messages", "text", "tools", "functions"),
    *("images", "videos", "prompt", "completion", "chosen", "rejected", "label", "kto_tag", "margin", "chosen_score"),
    "rejected_score",
]
ROW = st.dictionaries(st.sampled_from(COLUMNS), JUNK | st.lists(TURN | JUNK, max_size=3), max_size=5)


NEEDS = {
    "alpaca": [{"instruction"}, {"output"}],
    "sharegpt": [{"conversations", "messages"}],
    "openai": [{"conversations", "messages"}],
    "preference": [{"chosen"}, {"rejected"}],
    "labelled": [{"conversations", "messages", "prompt", "instruction"}, {"label", "kto_tag"}],
    "prompt": [{"prompt"}],
    "text": [{"text"}],
}


@given(first=ROW, others=st.lists(ROW, max_size=2), name=NAMES)
@MANY
def test_every_row_gives_exactly_one_result_and_the_same_again(first: Any, others: Any, name: str) -> None:
    rows = [first, *others]
    before = copy.deepcopy(rows)
    columns = {column for row in rows for column in row}
    if not all(columns & group for group in NEEDS[name]):
        with pytest.raises(DataError, match=f"format {name} needs the columns"):
            read(rows, name)
        return
    results = read(rows, name)
    assert results is not None
    assert repr(results) == repr(read(rows, name))
    assert repr(rows) == repr(before), "the rows themselves were changed"
    require_one_for_each(results, len(rows))


@given(rows=st.lists(ROW, min_size=1, max_size=3))
@MANY
def test_never_do_two_formats_recognise_one_source(rows: Any) -> None:
    results = read(rows)
    if results is not None:
        require_one_for_each(results, len(rows))


def require_one_for_each(results: list[Example | BadRow], count: int) -> None:
    assert [result.row for result in results] == list(range(1, count + 1))
    for result in results:
        if isinstance(result, BadRow):
            assert result.reason
            assert result.remedy
        else:
            require_trainable(result)


def require_trainable(example: Example) -> None:
    """There is something to learn from, and it can be written down: as UTF-8, and calls and tools as JSON."""
    if example.text is not None:
        assert example.text.strip()
        assert not example.messages
    else:
        turns = (*example.messages, *example.chosen, *example.rejected)
        assert any(turn.role == "assistant" for turn in turns) or turns[-1].role in ("user", "tool"), "no prompt"
        assert all(0 <= image.at <= len(turn.content) for turn in turns for image in turn.images)
    assert bool(example.chosen) == bool(example.rejected)
    repr(example).encode()
    json.dumps(example.tools, allow_nan=False)
    for turn in (*example.messages, *example.chosen, *example.rejected):
        turn.content.encode()
        json.dumps([call.arguments for call in turn.tool_calls], allow_nan=False)


# Examples, written as rows and read back

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=30) | st.sampled_from(
    ["", "\U0001f469\u200d\U0001f467 é", "a\u2028b\r\n", "<|im_end|>"]
)
WORDS = TEXTS.filter(str.strip)
SAID = WORDS.map(lambda text: text.lstrip("\r\n")).filter(lambda text: "<think>" not in text)
THOUGHT = st.none() | TEXTS.map(lambda text: text.strip("\r\n")).filter(lambda text: "</think>" not in text)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
OBJECTS = st.dictionaries(TEXTS, VALUES, max_size=3)
CALLS = st.lists(st.builds(ToolCall, WORDS, OBJECTS), min_size=1, max_size=2).map(tuple)
TOOLS = st.lists(
    st.builds(lambda name, more: {"type": "function", "function": {**more, "name": name}}, WORDS, OBJECTS.map(
        lambda schema: {"parameters": schema})), max_size=2
).map(tuple)  # fmt: skip
SYSTEMS = st.builds(Message, st.just("system"), WORDS)
USERS = st.builds(Message, st.just("user"), TEXTS)
ANSWERS = st.builds(Message, st.just("assistant"), SAID, thinking=THOUGHT)
ACTIONS = st.builds(Message, st.just("assistant"), st.just(""), thinking=THOUGHT, tool_calls=CALLS)
RESULTS = st.builds(Message, st.just("tool"), TEXTS)
MESSAGES = st.tuples(
    st.lists(SYSTEMS, max_size=1), st.lists(USERS | ANSWERS | ACTIONS | RESULTS, max_size=4), st.tuples(ANSWERS)
).map(lambda parts: tuple(message for part in parts for message in part))
PROMPTS = st.tuples(st.lists(SYSTEMS | USERS | ANSWERS, max_size=2), st.tuples(USERS)).map(
    lambda parts: tuple(message for part in parts for message in part)
)


def said(message: Message) -> str:
    """What the assistant thinks, as it is written before what it says."""
    thought = "" if message.thinking is None else f"<think>\n{message.thinking}\n</think>\n\n"
    return thought + message.content


def as_sharegpt(message: Message) -> dict[str, Any]:
    if not message.tool_calls:
        role = {"user": "human", "assistant": "gpt", "tool": "observation"}.get(message.role, message.role)
        return {"from": role, "value": said(message)}
    calls = [{"name": call.name, "arguments": call.arguments} for call in message.tool_calls]
    written = json.dumps(calls if len(calls) > 1 else calls[0])
    return {"from": "function_call", "value": said(replace(message, content=written))}


def as_openai(message: Message) -> dict[str, Any]:
    calls = [
        {"type": "function", "id": call.id, "function": {"name": call.name, "arguments": json.dumps(call.arguments)}}
        for call in message.tool_calls
    ]
    marked = message.content
    for image in reversed(message.images):
        marked = f"{marked[: image.at]}<image>{marked[image.at :]}"
    turn = {
        "role": message.role,
        "content": said(replace(message, content=marked)),
        "weight": message.weight,
        "name": message.name,
        "tool_call_id": message.call,
        "tool_calls": calls,
    }
    return {key: value for key, value in turn.items() if value is not None}


WRITERS = st.sampled_from([as_sharegpt, as_openai])


def same(row: Mapping[str, Any], **fields: Any) -> None:
    """The row is recognised and read as this example, also after a way through a file."""
    expected = [Example(1, "data, row 1", **fields)]
    assert read([row]) == expected
    assert read([json.loads(json.dumps(row))]) == expected


@given(messages=MESSAGES, tools=TOOLS, write=WRITERS)
@SOME
def test_a_conversation_is_read_back_as_it_was(messages: Any, tools: Any, write: Any) -> None:
    column = "conversations" if write is as_sharegpt else "messages"
    same({column: [write(message) for message in messages], "tools": tools}, messages=messages, tools=tools)
    written = {column: [write(message) for message in messages], "tools": json.dumps(tools)}
    same(written, messages=messages, tools=tools)


NAMED = st.builds(Message, st.sampled_from(["user", "assistant"]), SAID, weight=st.floats(0, 9), name=st.none() | WORDS)
RETURNED = st.builds(Message, st.just("tool"), TEXTS, name=st.none() | WORDS, call=WORDS)
CALLED = st.builds(
    lambda call: Message("assistant", "", tool_calls=(call,)), st.builds(ToolCall, WORDS, OBJECTS, id=WORDS)
)


@given(
    turns=st.lists(NAMED | RETURNED | CALLED, max_size=4),
    last=ANSWERS,
)
@SOME
def test_weights_names_and_ids_of_openai_are_read_back(turns: list[Message], last: Message) -> None:
    messages = (*turns, last)
    same({"messages": [as_openai(message) for message in messages]}, messages=messages)


@given(
    question=WORDS,
    answer=ANSWERS,
    system=st.none() | WORDS,
    history=st.lists(st.tuples(WORDS, ANSWERS), max_size=2),
    tools=TOOLS,
)
@SOME
def test_an_alpaca_row_is_read_back_as_it_was(
    question: str, answer: Any, system: Any, history: Any, tools: Any
) -> None:
    pairs = [(Message("user", asked), answered) for asked, answered in history]
    row = {
        "instruction": question,
        "output": said(answer),
        "system": system,
        "history": [[asked.content, said(answered)] for asked, answered in pairs],
        "tools": tools,
    }
    first = () if system is None else (Message("system", system),)
    before = tuple(message for pair in pairs for message in pair)
    same(row, messages=(*first, *before, Message("user", question), answer), tools=tools)


@given(
    prompt=PROMPTS,
    pair=st.tuples(ANSWERS | ACTIONS, ANSWERS | ACTIONS).filter(lambda pair: pair[0] != pair[1]),
    more=st.lists(USERS | ANSWERS, max_size=2),
    margin=st.none() | st.floats(allow_nan=False, allow_infinity=False),
    write=WRITERS,
)
@SOME
def test_a_preference_is_read_back_from_every_shape(prompt: Any, pair: Any, more: Any, margin: Any, write: Any) -> None:
    asked = [write(message) for message in prompt]
    chosen, rejected = (pair[0], *more), (pair[1],)
    ways = {"chosen": [write(message) for message in chosen], "rejected": [write(message) for message in rejected]}
    fields = {"messages": prompt, "chosen": chosen, "rejected": rejected, "margin": margin}
    for column in ("prompt", "messages", "conversations"):
        same({column: asked, **ways, "margin": margin}, **fields)
    same({**{name: asked + way for name, way in ways.items()}, "margin": margin}, **fields)


@given(question=WORDS, pair=st.tuples(ANSWERS, ANSWERS).filter(lambda pair: pair[0] != pair[1]), good=st.booleans())
@SOME
def test_preferences_and_labels_in_plain_text_are_read_back(question: str, pair: Any, good: bool) -> None:
    chosen, rejected = pair
    asked = (Message("user", question),)
    for column in ("prompt", "instruction"):
        row = {column: question, "chosen": said(chosen), "rejected": said(rejected)}
        same(row, messages=asked, chosen=(chosen,), rejected=(rejected,))
    same({"prompt": question, "completion": said(chosen), "label": good}, messages=(*asked, chosen), label=good)
    same({"instruction": question, "output": said(chosen), "kto_tag": good}, messages=(*asked, chosen), label=good)


@given(messages=MESSAGES, good=st.booleans(), write=WRITERS)
@SOME
def test_a_labelled_conversation_is_read_back_as_it_was(messages: Any, good: bool, write: Any) -> None:
    same({"messages": [write(message) for message in messages], "label": good}, messages=messages, label=good)


@given(text=WORDS)
@SOME
def test_a_document_is_read_back_as_it_was(text: str) -> None:
    same({"text": text}, text=text)


UNMARKED = SAID.filter(lambda text: "<image>" not in text)
PLACES = st.lists(st.integers(0, 30), max_size=3)


@given(turns=st.lists(st.tuples(st.sampled_from(["user", "assistant"]), UNMARKED, PLACES), max_size=4))
@SOME
def test_images_are_read_back_where_they_stood(turns: list[tuple[str, str, list[int]]]) -> None:
    sources = (f"{number}.png" for number in range(100))
    messages = [
        Message(role, text, images=tuple(Image(next(sources), min(at, len(text))) for at in sorted(places)))  # type: ignore[arg-type]
        for role, text, places in [*turns, ("assistant", "a", [])]
    ]
    images = [image.source for message in messages for image in message.images]
    same({"messages": [as_openai(message) for message in messages], "images": images}, messages=tuple(messages))


@given(messages=MESSAGES, times=st.integers(2, 3))
@SOME
def test_turns_that_are_written_twice_are_read_twice(messages: Any, times: int) -> None:
    turns = [as_openai(message) for message in messages]
    same({"messages": turns * times}, messages=messages * times)


# Good rows with one thing wrong

GOOD: list[dict[str, Any]] = [
    {"instruction": "q", "input": "x", "output": "a", "system": "s", "history": [["q", "a"]], "images": []},
    {"conversations": [{"from": "human", "value": "<image>q"},
                       {"from": "function_call", "value": [{"name": "f", "arguments": {"x": [1]}}]},
                       {"from": "gpt", "value": "a"}],
     "tools": [{"name": "f", "parameters": {"x": {}}}], "images": [{"path": "1.png"}]},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "q"}]},
                  {"role": "assistant", "content": "a", "weight": 1, "thinking": "t", "tool_calls": [
                      {"id": "1", "type": "function", "function": {"name": "f", "arguments": {"x": 1}}}]},
                  {"role": "tool", "content": "r", "tool_call_id": "1", "name": "f"},
                  {"role": "assistant", "content": "b"}]},
    {"prompt": [{"role": "user", "content": "q"}], "chosen": [{"role": "assistant", "content": "a"}],
     "rejected": {"role": "assistant", "content": "b"}, "margin": 1, "chosen_score": 2, "rejected_score": 1},
    {"prompt": "q", "completion": "a", "label": True},
    {"text": "a"},
]  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> Any:
    """The path to every value inside a value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*path, key)
        yield from places(inner, (*path, key))


@given(data=st.data(), row=st.sampled_from(GOOD), junk=JUNK, gone=st.booleans())
@MANY
def test_one_wrong_value_anywhere_costs_no_more_than_its_row(data: Any, row: Any, junk: Any, gone: bool) -> None:
    *path, key = data.draw(st.sampled_from(list(places(row))))
    wrong = copy.deepcopy(row)
    holder = wrong
    for step in path:
        holder = holder[step]
    if gone:
        del holder[key]
    else:
        holder[key] = junk
    results = read([row, row, wrong, row])
    assert results is not None
    require_one_for_each(results, 4)
    assert all(isinstance(results[number], Example) for number in (0, 1, 3))


@pytest.mark.parametrize("row", GOOD)
def test_the_order_of_columns_says_nothing(row: dict[str, Any]) -> None:
    (example,) = read([row]) or ()
    assert isinstance(example, Example)
    assert read([dict(reversed(row.items()))]) == [example]


MEGABYTE = 1_000_000


@pytest.mark.parametrize("unit", ["a", "🦊", "<image>", "<think>", "</think>", "\n", '{"a":', "[", "\x00"])
def test_rows_of_a_megabyte_give_one_result(unit: str) -> None:
    long = "".join(islice(iter(lambda: unit, None), MEGABYTE // len(unit))) + "."
    rows: list[tuple[str, dict[str, Any]]] = [
        ("alpaca", {"instruction": long, "output": long}),
        ("alpaca", {"instruction": long, "output": "a", "images": ["1.png"]}),
        ("sharegpt", {"conversations": [{"from": "function_call", "value": long}, {"from": "gpt", "value": long}]}),
        ("openai", {"messages": [{"role": "assistant", "content": long}] * 3, "tools": long}),
        ("preference", {"prompt": long, "chosen": long, "rejected": "b", "margin": long}),
        ("labelled", {"prompt": long, "completion": long, "label": long}),
        ("prompt", {"prompt": long}),
        ("text", {"text": long}),
    ]
    for name, row in rows:
        results = read([row], name)
        assert results is not None
        require_one_for_each(results, 1)
        (result,) = results
        assert isinstance(result, Example) or len(result.reason) + len(result.remedy) < 1000


def test_what_is_nested_deeply_gives_one_result_wherever_it_stands() -> None:
    deep: Any = "x"
    for _ in range(3000):
        deep = [{"role": deep}]
    for row in GOOD:
        for path in places(row):
            wrong = copy.deepcopy(row)
            holder = wrong
            for step in path[:-1]:
                holder = holder[step]
            holder[path[-1]] = deep
            results = read([row, wrong])
            assert results is not None
            assert [result.row for result in results] == [1, 2]
