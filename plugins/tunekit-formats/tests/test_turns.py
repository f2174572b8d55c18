"""What turns hold besides text: tools, reasoning traces and images, alike in every format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tunekit.values import Image, Message, ToolCall

Q, A, S = Message("user", "q"), Message("assistant", "a"), Message("system", "s")
SYSTEM, HUMAN, GPT = {"from": "system", "value": "s"}, {"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}
USER, ASSISTANT = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
PAIR = {"instruction": "q", "output": "a"}
CHOICE = {"chosen": "a", "rejected": "b"}
SCHEMA = {"name": "find", "description": "Find it.", "parameters": {"type": "object", "properties": {}}}
TOOL = {"type": "function", "function": SCHEMA}
CALL = {"name": "find", "arguments": {"what": "é", "deep": [1, {"a": None}]}}
CALLED = ToolCall("find", {"what": "é", "deep": [1, {"a": None}]})


# Tools


@pytest.mark.parametrize("value", [CALL, [CALL], json.dumps(CALL), json.dumps([CALL]), {**CALL, "id": None}])
def test_a_function_call_of_sharegpt_becomes_a_turn_of_its_own(example_of: Any, value: Any) -> None:
    turns = [HUMAN, {"from": "function_call", "value": value}, {"from": "observation", "value": "{}"}, GPT]
    example = example_of({"conversations": turns, "tools": json.dumps([SCHEMA])})
    assert example.messages == (Q, Message("assistant", "", tool_calls=(CALLED,)), Message("tool", "{}"), A)
    assert example.tools == (TOOL,)


def test_several_calls_in_one_turn_keep_their_order(example_of: Any) -> None:
    value = json.dumps([CALL, {"name": "stop", "arguments": "{}"}])
    example = example_of({"conversations": [HUMAN, {"from": "function_call", "value": value}]})
    assert example.messages[1].tool_calls == (CALLED, ToolCall("stop", {}))


def test_an_answer_and_a_call_after_it_stay_two_turns(example_of: Any) -> None:
    example = example_of({"conversations": [HUMAN, GPT, {"from": "function_call", "value": CALL}]})
    assert example.messages == (Q, A, Message("assistant", "", tool_calls=(CALLED,)))


@pytest.mark.parametrize("arguments", [CALL["arguments"], json.dumps(CALL["arguments"])])
def test_tool_calls_and_results_of_openai_keep_their_ids(example_of: Any, arguments: Any) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "find", "arguments": arguments}}
    result = {"role": "tool", "content": "here", "tool_call_id": "c1", "name": "find"}
    turns = [USER, {"role": "assistant", "content": None, "tool_calls": [call]}, result, ASSISTANT]
    called = ToolCall("find", CALLED.arguments, "c1")
    example = example_of({"messages": turns, "tools": [TOOL]})
    assert example.tools == (TOOL,)
    assert example.messages == (
        Q,
        Message("assistant", "", tool_calls=(called,)),
        Message("tool", "here", name="find", call="c1"),
        A,
    )


def test_text_beside_a_call_stays_with_it(example_of: Any) -> None:
    example = example_of({"messages": [USER, {**ASSISTANT, "tool_calls": [{"function": CALL}]}]})
    assert example.messages == (Q, Message("assistant", "a", tool_calls=(CALLED,)))


def test_the_older_way_of_openai_to_call_functions_is_read(example_of: Any) -> None:
    turns = [
        USER,
        {"role": "assistant", "content": None, "function_call": {"name": "find", "arguments": ""}},
        {"role": "function", "name": "find", "content": "here"},
    ]
    example = example_of({"messages": turns, "functions": [SCHEMA]})
    assert example.tools == (TOOL,)
    assert example.messages[1:] == (
        Message("assistant", "", tool_calls=(ToolCall("find", {}),)),
        Message("tool", "here", name="find"),
    )


@pytest.mark.parametrize("tools", [[SCHEMA], [TOOL], SCHEMA, json.dumps(TOOL), [{"type": "function", **SCHEMA}]])
def test_definitions_of_tools_are_read_however_they_are_wrapped(example_of: Any, tools: Any) -> None:
    assert example_of({"messages": [USER, ASSISTANT], "tools": tools}).tools == (TOOL,)
    assert example_of({"messages": [{**USER, "tools": tools}, ASSISTANT]}).tools == (TOOL,)
    assert example_of({**PAIR, "tools": tools}).tools == (TOOL,)
    assert example_of({"prompt": "q", **CHOICE, "tools": tools}).tools == (TOOL,)
    assert example_of({**PAIR, "kto_tag": True, "tools": tools}).tools == (TOOL,)


# Reasoning traces


@pytest.mark.parametrize(
    ("said", "thinking", "content"),
    [
        ("<think>t</think>a", "t", "a"),
        ("<think>\nt\n\nu\n</think>\n\na\n", "t\n\nu", "a\n"),
        ("\n<think>\r\nt\r\n</think>\r\na", "t", "a"),
        ("<think>\n\n</think>\n\na", "", "a"),
        ("<think>t<think>u</think>a</think>", "t<think>u", "a</think>"),
        ("<think> t </think> a", " t ", " a"),
        ("<think>t", None, "<think>t"),
        ("a <think>t</think>", None, "a <think>t</think>"),
        ("</think>a", None, "</think>a"),
    ],
)
def test_what_an_answer_begins_to_think_is_parted_from_what_it_says(
    example_of: Any, said: str, thinking: str | None, content: str
) -> None:
    expected = Message("assistant", content, thinking=thinking)
    assert example_of({**PAIR, "output": said}).messages[-1] == expected
    assert example_of({"conversations": [HUMAN, {"from": "gpt", "value": said}]}).messages[-1] == expected
    assert example_of({"messages": [USER, {**ASSISTANT, "content": said}]}).messages[-1] == expected
    assert example_of({"prompt": "q", "chosen": said, "rejected": "b"}).chosen == (expected,)
    assert example_of({"prompt": "q", "completion": said, "label": True}).messages[-1] == expected


def test_only_the_assistant_thinks(example_of: Any) -> None:
    said = "<think>t</think>q"
    assert example_of({**PAIR, "instruction": said}).messages[0] == Message("user", said)


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
def test_thinking_may_have_a_key_of_its_own(example_of: Any, told_of: Any, key: str) -> None:
    turn = {**ASSISTANT, key: "t\n"}
    assert example_of({"messages": [USER, turn]}).messages[1] == Message("assistant", "a", thinking="t\n")
    both = {**turn, "content": "<think>other</think>a"}
    assert "an answer is thought over twice, differently" in told_of({"messages": [USER, both]}, "openai")


def test_thinking_before_a_function_call_is_kept(example_of: Any) -> None:
    value = f"<think>\nt\n</think>\n\n{json.dumps(CALL)}"
    example = example_of({"conversations": [HUMAN, {"from": "function_call", "value": value}]})
    assert example.messages[1] == Message("assistant", "", thinking="t", tool_calls=(CALLED,))


def test_thoughts_and_calls_may_be_parts_of_a_content(example_of: Any) -> None:
    thought, other = {"type": "reasoning", "value": "t"}, {"type": "thinking", "thinking": "u"}
    call, text = {"type": "tool_call", "value": json.dumps(CALL)}, {"type": "text", "value": "a"}
    turns = [{**USER, "loss_weight": 0.0}, {**ASSISTANT, "content": [thought, other, text, call], "loss_weight": 1}]
    assert example_of({"messages": turns}).messages == (
        Message("user", "q", 0.0),
        Message("assistant", "a", 1.0, "tu", (CALLED,)),
    )


# Images


def test_images_take_the_place_of_their_marks_in_order(example_of: Any) -> None:
    turns = [{**USER, "content": "<image>Who<image>?"}, ASSISTANT, {**USER, "content": "And this: <image>"}, ASSISTANT]
    example = example_of({"messages": turns, "images": ["1.png", b"2", {"url": "https://x/3.png"}]})
    first, _, second, _ = example.messages
    assert first == Message("user", "Who?", images=(Image("1.png", 0), Image(b"2", 3)))
    assert second == Message("user", "And this: ", images=(Image("https://x/3.png", 10),))


@pytest.mark.parametrize(
    ("image", "source"),
    [
        ("a.png", "folder/a.png"),
        ("/a.png", "/a.png"),
        ("s3://x/a.png", "s3://x/a.png"),
        ("data:image/png;base64,AA", "data:image/png;base64,AA"),
        (Path("b/a.png"), "folder/b/a.png"),
        ({"path": "a.png", "bytes": None}, "folder/a.png"),
        ({"path": "a.png", "bytes": b"1"}, b"1"),
    ],
)
def test_an_image_is_a_path_from_the_folder_an_address_or_bytes(
    example_of: Any, image: Any, source: str | bytes
) -> None:
    row = {**PAIR, "instruction": "q<image>", "images": image}
    assert example_of(row, folder="folder").messages[0] == Message("user", "q", images=(Image(source, 1),))
    part = {"role": "user", "content": [{"type": "image_url", "image_url": image}, {"type": "text", "text": "q"}]}
    example = example_of({"messages": [part, ASSISTANT]}, folder="folder")
    assert example.messages[0] == Message("user", "q", images=(Image(source, 0),))


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "https://x"}},
        {"type": "image_url", "image_url": "https://x"},
        {"type": "input_image", "image_url": "https://x"},
        {"type": "image", "image": "https://x"},
        {"type": "image", "url": "https://x", "text": None},
    ],
)
def test_images_among_the_parts_of_a_content_stand_where_the_parts_do(example_of: Any, part: dict[str, Any]) -> None:
    content = [{"type": "text", "text": "Who"}, part, {"type": "text", "text": "is it?"}]
    example = example_of({"messages": [{**USER, "content": content}, ASSISTANT]})
    assert example.messages[0] == Message("user", "Whois it?", images=(Image("https://x", 3),))


def test_a_part_without_an_image_takes_the_next_of_the_column(example_of: Any) -> None:
    content = [{"type": "image"}, {"type": "text", "text": "q"}, {"type": "image", "image": None}]
    example = example_of({"messages": [{**USER, "content": content}, ASSISTANT], "images": ["1", "2"]})
    assert example.messages[0].images == (Image("1", 0), Image("2", 1))


def test_chosen_and_rejected_share_the_images_of_their_prompt_and_have_their_own(example_of: Any) -> None:
    row = {"prompt": "<image>q", "chosen": "a<image>", "rejected": "<image>b", "images": ["1", "2"]}
    example = example_of(row)
    assert example.messages == (Message("user", "q", images=(Image("1", 0),)),)
    assert example.chosen == (Message("assistant", "a", images=(Image("2", 1),)),)
    assert example.rejected == (Message("assistant", "b", images=(Image("2", 0),)),)


def test_without_a_column_of_images_the_mark_is_ordinary_text(example_of: Any) -> None:
    assert example_of({**PAIR, "instruction": "<image>"}).messages[0] == Message("user", "<image>")
