"""The four formats: what becomes of each shape of row, and that every row gives exactly one result."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunekit.errors import DataError
from tunekit.values import BadRow, Example, Message, Source
from tunekit_formats import Alpaca, Files, OpenAi, ShareGpt, Text

FORMATS: dict[str, Any] = {"alpaca": Alpaca(), "sharegpt": ShareGpt(), "openai": OpenAi(), "text": Text()}

Q, A = Message("user", "q"), Message("assistant", "a")
SYSTEM, HUMAN, GPT = {"from": "system", "value": "s"}, {"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}
USER, ASSISTANT = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
PAIR = {"instruction": "q", "output": "a"}


def _recognised(rows: Sequence[Mapping[str, Any]], **options: Any) -> dict[str, list[Example | BadRow]]:
    """Ask every format, as a run does, and keep those that answer."""
    opened = Files().tunekit_read_data(Source(rows=rows, **options))
    asked = {name: plugin.tunekit_format_data(opened) for name, plugin in FORMATS.items()}
    return {name: list(results) for name, results in asked.items() if results is not None}


def _only(row: Mapping[str, Any], **options: Any) -> Example | BadRow:
    ((result,),) = _recognised([row], **options).values()
    return result


def _reason(row: Mapping[str, Any], name: str) -> str:
    opened = Files().tunekit_read_data(Source(rows=[row], format=name))
    (result,) = FORMATS[name].tunekit_format_data(opened)
    assert isinstance(result, BadRow), result
    assert (result.row, result.where) == (1, "data (rows given in Python), row 1")
    assert result.remedy
    return f"{result.reason}; {result.remedy}"


@pytest.mark.parametrize(
    ("row", "name"),
    [
        (PAIR, "alpaca"),
        ({**PAIR, "input": "", "text": "Below is an instruction"}, "alpaca"),
        ({**PAIR, "system": "s", "history": []}, "alpaca"),
        ({"conversations": [HUMAN, GPT]}, "sharegpt"),
        ({"conversations": [HUMAN, GPT], "system": "s", "tools": "[]"}, "sharegpt"),
        ({"conversations": []}, "sharegpt"),
        ({"messages": [HUMAN, GPT]}, "sharegpt"),
        ({"messages": [USER, ASSISTANT]}, "openai"),
        ({"messages": None}, "openai"),
        ({"conversations": [USER, ASSISTANT]}, "openai"),
        ({"text": "a", "url": "b", "label": True}, "text"),
        ({"text": "a", "messages": [USER, ASSISTANT]}, "openai"),
    ],
)
def test_exactly_one_format_recognises_a_shape(row: dict[str, Any], name: str) -> None:
    assert list(_recognised([row])) == [name]


@pytest.mark.parametrize(
    "row",
    [
        {"question": "q", "answer": "a"},
        {"instruction": "q"},
        {**PAIR, "messages": []},
        {"messages": [], "conversations": []},
    ],
)
def test_no_format_guesses_where_columns_say_nothing_or_too_much(row: dict[str, Any]) -> None:
    assert _recognised([row]) == {}


@pytest.mark.parametrize(
    ("row", "messages"),
    [
        (PAIR, [Q, A]),
        ({**PAIR, "input": None}, [Q, A]),
        ({**PAIR, "input": "this"}, [Message("user", "q\nthis"), A]),
        ({**PAIR, "instruction": "", "input": "this"}, [Message("user", "this"), A]),
        ({**PAIR, "system": "s"}, [Message("system", "s"), Q, A]),
        ({**PAIR, "system": " "}, [Q, A]),
        ({**PAIR, "history": [["x", "y"]]}, [Message("user", "x"), Message("assistant", "y"), Q, A]),
        ({"conversations": [HUMAN, GPT]}, [Q, A]),
        ({"conversations": [HUMAN, GPT], "system": "s"}, [Message("system", "s"), Q, A]),
        ({"conversations": [SYSTEM, HUMAN, GPT], "system": ""}, [Message("system", "s"), Q, A]),
        ({"conversations": [{"from": "user", "value": "q"}, {"from": "assistant", "value": "a"}]}, [Q, A]),
        ({"conversations": [GPT, HUMAN, GPT, GPT]}, [A, Q, A, A]),
        ({"messages": [USER, ASSISTANT]}, [Q, A]),
        ({"messages": (USER, ASSISTANT), "tools": None}, [Q, A]),
        ({"messages": [{"role": "developer", "content": "s"}, USER, ASSISTANT]}, [Message("system", "s"), Q, A]),
        ({"messages": [USER, {**ASSISTANT, "tool_calls": None}]}, [Q, A]),
        (
            {"messages": [USER, {**ASSISTANT, "weight": 0}, USER, {**ASSISTANT, "weight": 1}]},
            [Q, Message("assistant", "a", 0.0), Q, Message("assistant", "a", 1.0)],
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "q"}, {"type": "text", "text": "!"}]},
                          ASSISTANT]},
            [Message("user", "q!"), A],
        ),
    ],
)  # fmt: skip
def test_a_row_becomes_these_messages(row: dict[str, Any], messages: list[Message]) -> None:
    assert _only(row) == Example(1, "data (rows given in Python), row 1", tuple(messages))


def test_a_text_row_becomes_a_document_as_it_stands() -> None:
    assert _only({"text": " a\n"}) == Example(1, "data (rows given in Python), row 1", text=" a\n")


def test_renamed_columns_are_recognised_like_native_ones() -> None:
    renamed = {"instruction": "question", "output": "answer"}
    assert _only({"question": "q", "answer": "a"}, columns=renamed) == _only(PAIR)
    assert _only({"chat": [HUMAN, GPT]}, columns={"conversations": "chat"}) == _only({"conversations": [HUMAN, GPT]})


IMAGE = {"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}
CALL = {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}


@pytest.mark.parametrize(
    ("name", "row", "reason"),
    [
        ("alpaca", {**PAIR, "output": None}, "column output is null, expected text"),
        ("alpaca", {**PAIR, "output": 42}, "column output is a number, expected text"),
        ("alpaca", {**PAIR, "output": ["a"]}, "column output is a list, expected text"),
        ("alpaca", {**PAIR, "output": "\n "}, "column output is empty; fill it in"),
        ("alpaca", {**PAIR, "output": "\ud83d"}, "column output holds half a character (U+D83D)"),
        ("alpaca", {**PAIR, "instruction": "", "input": " "}, "instruction and input are both empty"),
        ("alpaca", {**PAIR, "input": {}}, "column input is an object, expected text"),
        ("alpaca", {**PAIR, "system": True}, "column system is true or false, expected text"),
        ("alpaca", {**PAIR, "history": "x"}, "column history is text, expected a list of pairs"),
        ("alpaca", {**PAIR, "history": [["x"]]}, "item 1 of history is not a pair"),
        ("alpaca", {**PAIR, "history": [["x", None]]}, "answer 1 of history is null, expected text"),
        ("alpaca", {**PAIR, "rejected": "b"}, "this is preference data (columns rejected)"),
        ("alpaca", {**PAIR, "kto_tag": False}, "column kto_tag calls the answer good or bad"),
        ("sharegpt", {"conversations": "x"}, "column conversations is text, expected a list of turns"),
        ("sharegpt", {"conversations": None}, "column conversations is null, expected a list of turns"),
        ("sharegpt", {"conversations": []}, "no assistant turn (roles found: none); add the answer"),
        ("sharegpt", {"conversations": [HUMAN]}, "no assistant turn (roles found: user)"),
        ("sharegpt", {"conversations": [HUMAN, "a"]}, "turn 2 is text, expected from and value"),
        ("sharegpt", {"conversations": [HUMAN, {"from": "gpt"}]}, "turn 2 has no value (found: from)"),
        ("sharegpt", {"conversations": [USER, ASSISTANT]}, "turn 1 has no from and no value (found: role, content)"),
        ("sharegpt", {"conversations": [HUMAN, {"from": "gtp", "value": "a"}]}, "role 'gtp'; did you mean gpt?"),
        ("sharegpt", {"conversations": [HUMAN, {"from": 1, "value": "a"}]}, "from of turn 2 is a number"),
        ("sharegpt", {"conversations": [HUMAN, {"from": "gpt", "value": " "}]}, "the answer in turn 2 is empty"),
        ("sharegpt", {"conversations": [HUMAN, {"from": "gpt", "value": None}]}, "value of turn 2 is null"),
        ("sharegpt", {"conversations": [HUMAN, {"from": "function_call", "value": "{}"}]}, "of role function_call"),
        ("sharegpt", {"conversations": [HUMAN, GPT], "tools": '[{"name": "f"}]'}, "the row has a column tools"),
        ("sharegpt", {"conversations": [HUMAN, GPT], "chosen": GPT, "rejected": GPT}, "columns chosen and rejected"),
        (
            "sharegpt",
            {"conversations": [SYSTEM, HUMAN, GPT], "system": "t"},
            "there is a system column and a system turn as well",
        ),
        ("openai", {"messages": [USER, {**ASSISTANT, "content": None}]}, "content of turn 2 is null, expected text"),
        ("openai", {"messages": [USER, {**ASSISTANT, "content": ""}]}, "the answer in turn 2 is empty"),
        ("openai", {"messages": [USER, {**ASSISTANT, "role": "asistant"}]}, "did you mean assistant?"),
        ("openai", {"messages": [USER, {**ASSISTANT, "role": "bot"}]}, "known roles are assistant, developer, system"),
        ("openai", {"messages": [IMAGE, ASSISTANT]}, "content of turn 1 has a part of type image_url"),
        (
            "openai",
            {"messages": [{**USER, "content": ["q"]}, ASSISTANT]},
            "a part of the content of turn 1 is text, expected an object",
        ),
        ("openai", {"messages": [USER, CALL]}, "turn 2 calls a tool, and this format does not read tools"),
        ("openai", {"messages": [USER, {"role": "tool", "content": "1"}, ASSISTANT]}, "turn 2 is of role tool"),
        ("openai", {"messages": [USER, {**ASSISTANT, "weight": -1}]}, "weight of turn 2 is -1, expected a number"),
        ("openai", {"messages": [USER, {**ASSISTANT, "weight": True}]}, "weight of turn 2 is True"),
        ("openai", {"messages": [USER, {**ASSISTANT, "weight": float("nan")}]}, "weight of turn 2 is nan"),
        ("openai", {"messages": [USER, ASSISTANT], "label": False}, "would train on both alike"),
        ("openai", {"messages": [HUMAN, GPT]}, "turn 1 has no role and no content (found: from, value)"),
        ("text", {"text": None}, "column text is null, expected text"),
        ("text", {"text": ""}, "column text is empty"),
        ("text", {"text": 1.5}, "column text is a number, expected text"),
    ],
)
def test_a_row_that_cannot_be_used_says_why_and_what_to_do(name: str, row: dict[str, Any], reason: str) -> None:
    assert reason in _reason(row, name)


def test_an_answer_of_weight_zero_may_be_empty() -> None:
    row = {"messages": [USER, {**ASSISTANT, "content": "", "weight": 0}, USER, ASSISTANT]}
    assert _only(row) == Example(1, "data (rows given in Python), row 1", (Q, Message("assistant", "", 0.0), Q, A))


def test_a_missing_column_in_a_later_row_names_the_columns_found() -> None:
    bad = BadRow(
        2,
        "data (rows given in Python), row 2",
        "column output is missing (found: instruction, outptu)",
        "add it, or leave the row out",
    )
    assert _recognised([PAIR, {"instruction": "q", "outptu": "a"}])["alpaca"][1] == bad


def test_a_bad_row_at_the_start_does_not_hide_the_shape_of_the_rest() -> None:
    (results,) = _recognised([{"instruction": "q"}, PAIR]).values()
    assert [type(result) for result in results] == [BadRow, Example]
    assert list(_recognised([{"messages": None}, {"messages": [HUMAN, GPT]}])) == ["sharegpt"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "alpaca",
            r"format alpaca needs the columns instruction, output; not found: output; found: instruction, answer; say",
        ),
        ("sharegpt", r"format sharegpt needs the columns conversations; .*columns: \{conversations: instruction\}"),
        ("openai", r"format openai needs the columns messages; not found: messages; found: instruction, answer"),
        ("text", r"data \(rows given in Python\): format text needs the columns text"),
    ],
)
def test_a_named_format_without_its_columns_names_both(name: str, message: str) -> None:
    rows = Files().tunekit_read_data(Source(rows=[{"instruction": "q", "answer": "a"}], format=name))
    with pytest.raises(DataError, match=message):
        FORMATS[name].tunekit_format_data(rows)


def test_naming_a_format_settles_columns_that_fit_several() -> None:
    rows = Files().tunekit_read_data(
        Source(rows=[{**PAIR, "text": "doc", "messages": [USER, ASSISTANT]}], format="text")
    )
    results = FORMATS["text"].tunekit_format_data(rows)
    assert [result.text for result in results] == ["doc"]


# Properties

LEAF = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=8) | st.just("\ud800")
)
TURN = st.dictionaries(
    st.sampled_from(["from", "value", "role", "content", "weight", "tool_calls"]),
    LEAF | st.sampled_from(["human", "gpt", "user", "assistant", "system", "tool"]) | st.lists(LEAF, max_size=2),
)
COLUMNS = [
    "instruction",
    "output",
    "input",
    "system",
    "history",
    "conversations",
    "messages",
    "text",
    "tools",
    "chosen",
]
VALUE = LEAF | st.lists(TURN | LEAF | st.lists(LEAF, max_size=2), max_size=4)
ROW = st.dictionaries(st.sampled_from(COLUMNS), VALUE, max_size=6)


NEEDED = {"alpaca": {"instruction", "output"}, "sharegpt": {"turns"}, "openai": {"turns"}, "text": {"text"}}
"""`turns` stands for either of the two columns a list of turns may be in."""


@given(first=ROW, others=st.lists(ROW, max_size=4), name=st.sampled_from(sorted(FORMATS)))
@settings(max_examples=300, deadline=None)
def test_every_row_gives_exactly_one_result_twice_the_same(first: Any, others: list[Any], name: str) -> None:
    rows = [first, *others]
    opened = Files().tunekit_read_data(Source(rows=rows, format=name))
    columns = {"turns" if column in ("messages", "conversations") else column for row in rows for column in row}
    if not NEEDED[name] <= columns:
        with pytest.raises(DataError, match=f"format {name} needs"):
            FORMATS[name].tunekit_format_data(opened)
        return
    passes = [list(FORMATS[name].tunekit_format_data(opened)) for _ in range(2)]
    assert passes[0] == passes[1]
    assert [result.row for result in passes[0]] == list(range(1, len(rows) + 1))
    for result in passes[0]:
        if isinstance(result, Example):
            _require_trainable(result)
        else:
            assert result.reason
            assert result.remedy


def _require_trainable(example: Example) -> None:
    texts = [message.content for message in example.messages] if example.text is None else [example.text]
    assert all(isinstance(text, str) and text.encode() is not None for text in texts)
    assert example.text or any(message.role == "assistant" for message in example.messages)


@given(row=ROW)
@settings(max_examples=300, deadline=None)
def test_never_do_two_formats_recognise_one_source(row: Any) -> None:
    assert len(_recognised([row])) <= 1


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20).filter(str.strip)


@given(turns=st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=3))
@settings(max_examples=100, deadline=None)
def test_the_same_talk_gives_the_same_messages_in_every_format(turns: list[tuple[str, str]]) -> None:
    *history, (question, answer) = turns
    flat = [(role, text) for pair in turns for role, text in zip(("user", "assistant"), pair, strict=True)]
    rows = [
        {"instruction": question, "output": answer, "history": history},
        {
            "conversations": [
                {"from": {"user": "human", "assistant": "gpt"}[role], "value": text} for role, text in flat
            ]
        },
        {"messages": [{"role": role, "content": text} for role, text in flat]},
    ]
    made = [_only(json.loads(json.dumps(row))) for row in rows]
    assert made[0] == made[1] == made[2]
    assert isinstance(made[0], Example)
    assert [message.content for message in made[0].messages] == [text for _, text in flat]
