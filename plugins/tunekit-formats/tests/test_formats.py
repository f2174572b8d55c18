"""What the formats make of good rows: conversations, documents, preferences and labels."""

from __future__ import annotations

from typing import Any

import pytest

from tunekit.values import Example, Message, ToolCall

Q, A, S = Message("user", "q"), Message("assistant", "a"), Message("system", "s")
B = Message("assistant", "b")
SYSTEM, HUMAN, GPT = {"from": "system", "value": "s"}, {"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}
USER, ASSISTANT = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
OTHER = {"role": "assistant", "content": "b"}
PAIR = {"instruction": "q", "output": "a"}
CHOICE = {"chosen": "a", "rejected": "b"}
CALL = {"name": "find", "arguments": {"what": "é", "deep": [1, {"a": None}]}}
CALLED = ToolCall("find", {"what": "é", "deep": [1, {"a": None}]})


# Conversations


@pytest.mark.parametrize(
    ("row", "messages"),
    [
        (PAIR, [Q, A]),
        ({**PAIR, "input": None}, [Q, A]),
        ({**PAIR, "input": "this"}, [Message("user", "q\nthis"), A]),
        ({**PAIR, "instruction": "", "input": "this"}, [Message("user", "this"), A]),
        ({**PAIR, "system": "s"}, [S, Q, A]),
        ({**PAIR, "system": " "}, [Q, A]),
        ({**PAIR, "history": [["x", "y"]]}, [Message("user", "x"), Message("assistant", "y"), Q, A]),
        ({"conversations": [HUMAN, GPT]}, [Q, A]),
        ({"conversations": [HUMAN, GPT], "system": "s"}, [S, Q, A]),
        ({"conversations": [SYSTEM, HUMAN, GPT], "system": ""}, [S, Q, A]),
        ({"conversations": [{"from": "user", "value": "q"}, {"from": "assistant", "value": "a"}]}, [Q, A]),
        ({"conversations": [GPT, HUMAN, GPT, GPT]}, [A, Q, A, A]),
        ({"messages": [USER, ASSISTANT]}, [Q, A]),
        ({"messages": (USER, ASSISTANT), "tools": None}, [Q, A]),
        ({"messages": [{"role": "developer", "content": "s"}, USER, ASSISTANT]}, [S, Q, A]),
        ({"messages": [USER, {**ASSISTANT, "tool_calls": None, "name": None, "thinking": ""}]}, [Q, A]),
        ({"messages": [{**USER, "name": "Ada"}, ASSISTANT]}, [Message("user", "q", name="Ada"), A]),
        (
            {"messages": [USER, {**ASSISTANT, "weight": 0}, USER, {**ASSISTANT, "weight": 1}]},
            [Q, Message("assistant", "a", 0.0), Q, Message("assistant", "a", 1.0)],
        ),
        ({"messages": [USER, {**ASSISTANT, "content": "", "weight": 0}]}, [Q, Message("assistant", "", 0.0)]),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "q"}, {"type": "text", "text": "!"}]},
                          ASSISTANT]},
            [Message("user", "q!"), A],
        ),
    ],
)  # fmt: skip
def test_a_row_becomes_these_messages(example_of: Any, row: dict[str, Any], messages: list[Message]) -> None:
    assert example_of(row) == Example(1, "data, row 1", tuple(messages))


def test_a_text_row_becomes_a_document_as_it_stands(example_of: Any) -> None:
    assert example_of({"text": " a\n"}) == Example(1, "data, row 1", text=" a\n")


# Preferences


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"prompt": "q", **CHOICE}, [Q]),
        ({"prompt": USER, "chosen": ASSISTANT, "rejected": [OTHER]}, [Q]),
        ({"prompt": [USER], "chosen": [ASSISTANT], "rejected": "b"}, [Q]),
        ({"prompt": [{"role": "system", "content": "s"}, USER], **CHOICE}, [S, Q]),
        ({"prompt": "q", "system": "s", **CHOICE}, [S, Q]),
        ({"instruction": "q", **CHOICE}, [Q]),
        ({"instruction": "q", "input": "x", "output": "ignored", "history": [["q", "a"]], **CHOICE},
         [Q, A, Message("user", "q\nx")]),
        ({"conversations": [SYSTEM, HUMAN], "chosen": GPT, "rejected": {"from": "gpt", "value": "b"}}, [S, Q]),
        ({"messages": [USER, ASSISTANT, USER], "chosen": ASSISTANT, "rejected": OTHER}, [Q, A, Q]),
        ({"chosen": [USER, ASSISTANT], "rejected": [USER, OTHER]}, [Q]),
        ({"chosen": [USER, OTHER, USER, ASSISTANT], "rejected": [USER, OTHER, USER, OTHER]}, [Q, B, Q]),
        ({"chosen": [USER, ASSISTANT], "rejected": [USER, OTHER], "system": "s"}, [S, Q]),
        ({"chosen": [ASSISTANT, USER, ASSISTANT], "rejected": [ASSISTANT, USER, OTHER]}, [A, Q]),
        ({"prompt": "q", "messages": [USER, ASSISTANT], "chosen": [USER, ASSISTANT], "rejected": [USER, OTHER]}, [Q]),
        ({"prompt": "q", "chosen": [{"role": "system", "content": "s"}, USER, ASSISTANT],
          "rejected": [{"role": "system", "content": "s"}, USER, OTHER]}, [S, Q]),
    ],
)  # fmt: skip
def test_a_preference_has_a_prompt_and_two_ways_on(example_of: Any, row: dict[str, Any], prompt: list[Message]) -> None:
    assert example_of(row) == Example(1, "data, row 1", tuple(prompt), chosen=(A,), rejected=(B,))


def test_the_ways_on_may_be_several_turns(example_of: Any) -> None:
    call = {"from": "function_call", "value": CALL}
    row = {"conversations": [HUMAN], "chosen": [call, {"from": "observation", "value": "1"}, GPT], "rejected": [GPT]}
    example = example_of(row)
    assert example.chosen == (Message("assistant", "", tool_calls=(CALLED,)), Message("tool", "1"), A)
    assert example.rejected == (A,)


@pytest.mark.parametrize(
    ("columns", "margin"),
    [
        ({"margin": 2}, 2.0),
        ({"margin": "0.5"}, 0.5),
        ({"margin": None}, None),
        ({"chosen_score": 3, "rejected_score": 1.5}, 1.5),
        ({"score_chosen": 1, "score_rejected": 2}, -1.0),
        ({"chosen_rating": "5", "rejected_rating": "4"}, 1.0),
        ({"chosen-rating": 5, "rejected-rating": 4}, 1.0),
        ({"chosen_score": 3, "rejected_score": None}, None),
        ({"margin": 7, "chosen_score": 3, "rejected_score": 1}, 7.0),
    ],
)
def test_the_margin_is_given_or_the_difference_of_two_scores(
    example_of: Any, columns: dict[str, Any], margin: float | None
) -> None:
    assert example_of({"prompt": "q", **CHOICE, **columns}).margin == margin


# Labels


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "q", "completion": "a"},
        {"prompt": [USER], "completion": [ASSISTANT]},
        {"prompt": USER, "completion": ASSISTANT},
        {"messages": [USER, ASSISTANT]},
        {"conversations": [HUMAN, GPT]},
        PAIR,
    ],
)
@pytest.mark.parametrize("column", ["label", "kto_tag"])
def test_a_labelled_conversation_comes_in_several_shapes(example_of: Any, row: dict[str, Any], column: str) -> None:
    assert example_of({**row, column: False}) == Example(1, "data, row 1", (Q, A), label=False)
    assert example_of({**row, column: True, "system": "s"}).messages == (S, Q, A)


@pytest.mark.parametrize(
    ("label", "good"),
    [(True, True), (1, True), ("true", True), (" True ", True), ("1", True), (1.0, True),
     (False, False), (0, False), ("false", False), ("0", False)],
)  # fmt: skip
def test_a_label_is_true_or_false_however_it_is_written(example_of: Any, label: Any, good: bool) -> None:
    assert example_of({"messages": [USER, ASSISTANT], "label": label}).label is good
