"""Which format rows are in: exactly one knows a shape, and names and tags are obeyed."""

from __future__ import annotations

from typing import Any

import pytest

from tunekit.errors import DataError
from tunekit.values import BadRow, Example, Message, Source, ToolCall
from tunekit_formats import Files, Preference

Q, A, S = Message("user", "q"), Message("assistant", "a"), Message("system", "s")
B = Message("assistant", "b")
SYSTEM, HUMAN, GPT = {"from": "system", "value": "s"}, {"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}
USER, ASSISTANT = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
OTHER = {"role": "assistant", "content": "b"}
PAIR = {"instruction": "q", "output": "a"}
CHOICE = {"chosen": "a", "rejected": "b"}
CALL = {"name": "find", "arguments": {"what": "é", "deep": [1, {"a": None}]}}
CALLED = ToolCall("find", {"what": "é", "deep": [1, {"a": None}]})


@pytest.mark.parametrize(
    ("row", "name"),
    [
        (PAIR, "alpaca"),
        ({**PAIR, "input": "", "text": "Below is an instruction"}, "alpaca"),
        ({**PAIR, "system": "s", "history": []}, "alpaca"),
        ({**PAIR, "label": "greeting"}, "alpaca"),
        ({**PAIR, "rejected": "b"}, "alpaca"),
        ({"conversations": [HUMAN, GPT]}, "sharegpt"),
        ({"conversations": [HUMAN, GPT], "system": "s", "tools": "[]"}, "sharegpt"),
        ({"conversations": []}, "sharegpt"),
        ({"messages": [HUMAN, GPT]}, "sharegpt"),
        ({"messages": [USER, ASSISTANT]}, "openai"),
        ({"messages": [USER, ASSISTANT], "label": 3}, "openai"),
        ({"messages": [USER, ASSISTANT], "prompt": "q", "prompt_id": "1"}, "openai"),
        ({"messages": None}, "openai"),
        ({"conversations": [USER, ASSISTANT]}, "openai"),
        ({"text": "a", "url": "b", "label": True}, "text"),
        ({"text": "a", "messages": [USER, ASSISTANT]}, "openai"),
        ({"prompt": "q", **CHOICE}, "preference"),
        ({"prompt": "q", **CHOICE, "messages": [USER, ASSISTANT]}, "preference"),
        ({"instruction": "q", **CHOICE}, "preference"),
        ({**PAIR, **CHOICE}, "preference"),
        ({"conversations": [HUMAN], "chosen": GPT, "rejected": GPT}, "preference"),
        ({"chosen": [USER, ASSISTANT], "rejected": [USER, OTHER]}, "preference"),
        ({"prompt": "q", "completion": "a", "label": True}, "labelled"),
        ({"messages": [USER, ASSISTANT], "label": False}, "labelled"),
        ({"messages": [USER, ASSISTANT], "label": "true"}, "labelled"),
        ({"conversations": [HUMAN, GPT], "kto_tag": 1}, "labelled"),
        ({**PAIR, "kto_tag": True}, "labelled"),
        ({"prompt": "q", "answer": "5"}, "prompt"),
        ({"prompt": [USER]}, "prompt"),
        ({"prompt": "q", **PAIR}, "alpaca"),
    ],
)
def test_exactly_one_format_recognises_a_shape(recognised: Any, row: dict[str, Any], name: str) -> None:
    assert list(recognised([row])) == [name]


@pytest.mark.parametrize(
    "row",
    [
        {"question": "q", "answer": "a"},
        {"instruction": "q"},
        {"prompt": "q", "completion": "a"},
        {"prompt": "q", "label": True},
        {**PAIR, "messages": []},
        {"messages": [], "conversations": []},
        {"messages": [USER, ASSISTANT], "prompt": "q", "completion": "a", "label": True},
        {"messages": [USER], "instruction": "q", **CHOICE},
        {"prompt": "q", **CHOICE, "label": True},
    ],
)
def test_no_format_guesses_where_columns_say_nothing_or_too_much(recognised: Any, row: dict[str, Any]) -> None:
    assert recognised([row]) == {}


def test_naming_a_format_settles_columns_that_fit_several(read_as: Any) -> None:
    row = {**PAIR, "text": "doc", "messages": [USER, OTHER], "label": 1, "prompt": "p", **CHOICE}
    made = {}
    for name in ("text", "preference", "labelled"):
        (made[name],) = read_as([row], name)
    assert made["text"].text == "doc"
    assert made["preference"].messages == (Message("user", "p"),)
    assert made["labelled"].messages == (Q, B)
    (plain,) = read_as([{**PAIR, "label": 1}], "alpaca")
    assert plain.messages == (Q, A)


def test_a_few_bad_rows_do_not_hide_the_shape_of_the_rest(recognised: Any) -> None:
    (results,) = recognised([{"instruction": "q"}, PAIR]).values()
    assert [type(result) for result in results] == [BadRow, Example]
    assert list(recognised([{"messages": None}, {"messages": [HUMAN, GPT]}])) == ["sharegpt"]
    assert list(recognised([{"messages": ["junk"]}, {"messages": [HUMAN, GPT]}])) == ["sharegpt"]
    assert list(recognised([PAIR, {"text": "a"}, {"text": "b"}])) == ["text"]
    labelled = {"messages": [USER, ASSISTANT], "label": True}
    (results,) = recognised([{"messages": [USER, ASSISTANT]}, labelled, labelled]).values()
    assert [type(result) for result in results] == [BadRow, Example, Example]


def test_a_label_of_more_classes_than_two_calls_no_answer_good(recognised: Any) -> None:
    rows = [{"messages": [USER, ASSISTANT], "label": label} for label in (0, 1, 2)]
    assert list(recognised(rows)) == ["openai"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "alpaca",
            r"format alpaca needs the columns instruction, output; not found: output; found: instruction, answer; say",
        ),
        ("sharegpt", r"format sharegpt needs the columns conversations or messages; .*\{conversations: instruction\}"),
        ("openai", r"format openai needs .*; not found: messages or conversations; found: instruction, answer"),
        ("preference", r"format preference needs .*not found: chosen, rejected; .*`columns: \{chosen: instruction\}`"),
        ("labelled", r"format labelled needs .*not found: kto_tag or label"),
        ("prompt", r"format prompt needs the columns prompt"),
        ("text", r"data \(data\): format text needs the columns text"),
    ],
)
def test_a_named_format_without_its_columns_names_both(read_as: Any, name: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_as([{"instruction": "q", "answer": "a"}], name)


def test_renamed_columns_are_recognised_like_native_ones() -> None:
    rows = [{"question": "q", "answer": "a", "worse": "b"}]
    columns = {"prompt": "question", "chosen": "answer", "rejected": "worse"}
    opened = Files().tunekit_read_data(Source(rows=rows, columns=columns))
    (example,) = Preference().tunekit_format_data(opened)
    assert (example.messages, example.chosen, example.rejected) == ((Q,), (A,), (B,))


# Tags


TAGS = {"role": "who", "content": "what", "user": "customer", "assistant": "agent", "function": "act"}


def test_tags_name_the_keys_and_roles_of_turns(recognised: Any, example_of: Any) -> None:
    turns = [
        {"who": "system", "what": "s"},
        {"who": "customer", "what": "q"},
        {"who": "act", "what": CALL},
        {"who": "observation", "what": "1"},
        {"who": "agent", "what": "a"},
    ]
    expected = (S, Q, Message("assistant", "", tool_calls=(CALLED,)), Message("tool", "1"), A)
    assert list(recognised([{"messages": turns}], tags=TAGS)) == ["sharegpt"]
    assert example_of({"messages": turns}, tags=TAGS).messages == expected
    assert example_of({"messages": turns, "label": True}, tags=TAGS).messages == expected
    row = {"conversations": turns[:2], "chosen": turns[4], "rejected": {"who": "agent", "what": "b"}}
    assert example_of(row, tags=TAGS).chosen == (A,)


def test_a_tag_takes_the_place_of_the_usual_names(example_of: Any, told_of: Any) -> None:
    told = told_of({"messages": [{"who": "human", "what": "q"}]}, "sharegpt", tags=TAGS)
    assert "a turn has an unknown role; turn 1 of column messages: 'human' is none of act, agent" in told
    swapped = {"user": "gpt", "assistant": "human"}
    assert example_of({"conversations": [GPT, HUMAN]}, tags=swapped).messages == (
        Message("user", "a"),
        Message("assistant", "q"),
    )


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        ({"rol": "who"}, r"data\.tags\.rol: means nothing; did you mean role\? tags are role, content, user,"),
        ({"role": ""}, r"data\.tags\.role: is empty"),
        ({"user": "x", "assistant": "x"}, r"data\.tags: gives the name 'x' to several \(user, assistant\)"),
        ({"role": "x", "content": "x"}, r"gives the name 'x' to several \(role, content\)"),
    ],
)
def test_tags_that_mean_nothing_are_refused(recognised: Any, tags: dict[str, str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        recognised([{"conversations": [HUMAN, GPT]}], tags=tags)


@pytest.mark.parametrize("row", [PAIR, {"text": "a"}, {"prompt": "q", **CHOICE}])
def test_tags_for_rows_without_turns_are_refused(recognised: Any, row: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=r"data\.tags: name keys and roles of turns, .* hold no list of turns"):
        recognised([row], tags={"user": "customer"})
