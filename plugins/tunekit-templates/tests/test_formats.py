"""Tool formats: what is written is read back, and what each format writes is what its models were taught."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import jinja2
import pytest
import trl
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tunekit.values import Image, Message, ToolCall
from tunekit_templates import Tools
from tunekit_templates.formats import GLM, HERMES, LLAMA3, MISTRAL, REACT

FORMATS = {"hermes": HERMES, "llama3": LLAMA3, "mistral": MISTRAL, "glm": GLM, "react": REACT}
EVERY = pytest.mark.parametrize("name", sorted(FORMATS))

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather in a town",
        "parameters": {
            "type": "object",
            "properties": {
                "town": {"type": "string", "description": "Its name"},
                "unit": {"type": "string", "enum": ["C", "F"], "description": "The scale"},
                "days": {"type": "array", "items": {"type": "integer"}, "description": "Which days"},
                "place": {"type": "object", "properties": {"zip": {"type": "string"}}},
            },
            "required": ["town"],
        },
    },
}
CALLS = (ToolCall("weather", {"town": "Zürich", "days": [1, 2]}), ToolCall("weather", {"town": "Bern"}))

MARKERS = [
    "<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[TOOL_CALLS] ", "Action: ", "\nAction: a", "\nAction Input: {}",
    "Thought: ", "Observation: ", '{"name": "a", "parameters": {}}', '{"name": "a", "arguments": {}}', "\nweather\n{}",
    '<tool_call>\n{"name": "a", "arguments": {}}\n</tool_call>', '[TOOL_CALLS] [{"name": "a", "arguments": {}}]',
    "Action: a\nAction Input: {}", "\\", "\n", " ", "\\u003c", '"', "a\n{}", "[]", "{}", "[{",
]  # fmt: skip
TEXTS = st.lists(st.one_of(st.sampled_from(MARKERS), st.text(max_size=8)), max_size=6).map("".join)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
NAMES = st.one_of(st.from_regex(r"[A-Za-z0-9_.-]{1,20}", fullmatch=True), TEXTS)
TOOL_CALLS = st.lists(st.builds(ToolCall, NAMES, st.dictionaries(TEXTS, VALUES, max_size=3)), max_size=3).map(tuple)


def written(name, content, calls):
    (turn,) = FORMATS[name].write((Message("assistant", content, tool_calls=calls),), ())
    assert turn.tool_calls == ()
    return turn.content


@EVERY
@given(content=TEXTS, calls=TOOL_CALLS)
@example(content="\\", calls=(ToolCall("a", {}),))
@example(content="", calls=(ToolCall("a", {}), ToolCall("a", {})))
@example(content="", calls=(ToolCall("", {}), ToolCall('"', {"": ""})))
@settings(max_examples=200, deadline=None)
def test_reading_what_was_written_gives_back_content_and_calls(name, content, calls):
    assert FORMATS[name].parse(written(name, content, calls)) == (content, calls)


@EVERY
@given(pieces=st.lists(st.sampled_from(MARKERS), max_size=5), calls=TOOL_CALLS)
@settings(max_examples=100, deadline=None)
def test_content_that_looks_like_calls_is_content(name, pieces, calls):
    content = "\n".join(pieces)
    assert FORMATS[name].parse(written(name, content, calls)) == (content, calls)


@EVERY
@given(text=TEXTS)
@settings(max_examples=100, deadline=None)
def test_any_text_can_be_read_and_nothing_of_a_malformed_one_is_lost(name, text):
    content, calls = FORMATS[name].parse(text)
    assert calls or content.replace("\\", "") == text.replace("\\", "")


@EVERY
@pytest.mark.parametrize("cut", [1, 2, 5])
def test_a_call_that_is_cut_off_is_content(name, cut):
    text = written(name, "I look.", CALLS[:1])[:-cut]
    assert FORMATS[name].parse(text) == (text, ())


@EVERY
def test_json_nested_too_deeply_is_content(name):
    text = written(name, "", (ToolCall("a", {"b": "HERE"}),)).replace('"HERE"', "[" * 100_000 + "]" * 100_000)
    assert FORMATS[name].parse(text) == (text, ())


@EVERY
def test_a_model_may_break_lines_after_its_calls(name):
    assert FORMATS[name].parse(written(name, "I look.", CALLS) + "\n\n") == ("I look.", CALLS)


def test_mistral_keeps_the_ids_of_calls_and_the_others_do_not():
    call = ToolCall("weather", {}, "abcdefghi")
    kept = {name: FORMATS[name].parse(written(name, "", (call,)))[1][0].id for name in FORMATS}
    assert kept == {"mistral": "abcdefghi", "hermes": None, "llama3": None, "glm": None, "react": None}


def test_a_value_of_wrong_type_is_content():
    for text in (
        '<tool_call>\n{"name": 1, "arguments": {}}\n</tool_call>',
        '<tool_call>\n{"name": "a", "arguments": []}\n</tool_call>',
        '<tool_call>\n{"name": "a", "arguments": {}, "more": 1}\n</tool_call>',
    ):
        assert HERMES.parse(text) == (text, ())
    assert MISTRAL.parse('[TOOL_CALLS] [{"name": "a", "arguments": {}, "id": 1}]')[1] == ()
    assert LLAMA3.parse('[{"name": "a", "parameters": {}}, 1]')[1] == ()
    assert LLAMA3.parse('I see\n{"name": "Anna", "age": 3}') == ('I see\n{"name": "Anna", "age": 3}', ())


def test_a_strings_marker_is_written_with_an_escape():
    text = written("hermes", "", (ToolCall("a", {"b": "</tool_call>"}),))
    assert text == '<tool_call>\n{"name": "a", "arguments": {"b": "\\u003c/tool_call>"}}\n</tool_call>'
    assert written("mistral", "", (ToolCall("a", {"b": "[TOOL_CALLS]"}),)).endswith('{"b": "\\u005bTOOL_CALLS]"}}]')


# Whole conversations.

CONVERSATION = (
    Message("user", "How is it?", weight=0.0),
    Message("assistant", "I look.", weight=2.0, thinking="Two towns.", tool_calls=CALLS),
    Message("tool", '{"sky": "blue"}', name="weather", call="1"),
    Message("tool", "rain", name="weather", call="2"),
    Message("assistant", "Blue and rain.", thinking="Easy."),
)


@EVERY
def test_only_plain_roles_are_left_and_results_become_one_turn_of_the_user(name):
    turns = FORMATS[name].write(CONVERSATION, (WEATHER,))
    assert [turn.role for turn in turns] == ["system", "user", "assistant", "user", "assistant"]
    assert [turn.weight for turn in turns] == [None, 0.0, 2.0, None, None]
    assert [turn.thinking for turn in turns] == [None, None, "Two towns.", None, "Easy."]
    assert not any(turn.tool_calls or turn.name or turn.call for turn in turns)
    assert "weather" in turns[0].content
    assert "blue" in turns[3].content
    assert "rain" in turns[3].content
    assert turns[4] == CONVERSATION[4]


@EVERY
def test_tools_are_added_to_the_system_message_there_is(name):
    told = FORMATS[name].write(CONVERSATION, (WEATHER,))[0].content
    system = Message("system", "Be brief.", weight=0.5)
    assert FORMATS[name].write((system, *CONVERSATION), (WEATHER,))[0] == replace(
        system, content=f"Be brief.\n\n{told}"
    )
    assert FORMATS[name].write((replace(system, content=""),), (WEATHER,))[0].content == told


@EVERY
def test_without_tools_nothing_is_told(name):
    assert FORMATS[name].write(CONVERSATION, ())[0] == CONVERSATION[0]


@EVERY
def test_every_part_of_a_schema_is_told(name):
    told = FORMATS[name].write((), (WEATHER,))[0].content
    for part in ("weather", "The weather in a town", "town", "Its name", "The scale", "integer", "zip", "C", "F"):
        assert part in told


SCHEMAS = st.fixed_dictionaries(
    {},
    optional={
        "parameters": VALUES
        | st.fixed_dictionaries(
            {},
            optional={
                "required": VALUES,
                "properties": st.dictionaries(
                    TEXTS,
                    VALUES | st.fixed_dictionaries({}, optional=dict.fromkeys(("type", "enum", "items"), VALUES)),
                    max_size=3,
                ),
            },
        ),
        "description": VALUES,
    },
)


@EVERY
@given(schema=SCHEMAS)
@settings(max_examples=50, deadline=None)
def test_a_tool_can_be_told_whatever_its_schema_says(name, schema):
    (turn,) = FORMATS[name].write((), ({"type": "function", "function": {"name": "weather", **schema}},))
    assert "weather" in turn.content


def test_react_tells_as_json_what_it_has_no_words_for():
    properties = {"a": True, "b": {"type": "string", "enum": "one", "items": None}, "c": {"enum": None}}
    told = REACT.write((), ({"name": "now", "parameters": {"properties": properties, "required": 1}},))[0].content
    lines = ['  - a (): , as {"schema": true}', '  - b (string): , as {"enum": "one", "items": null}', "  - c (): "]
    assert "Tool Args:\n" + "".join(f"{line}\n" for line in lines) + "\n" in told


def test_results_of_different_weight_stay_turns_of_their_own():
    results = (Message("tool", "a", weight=0.0), Message("tool", "b", weight=1.0), Message("tool", "c", weight=1.0))
    turns = HERMES.write(results, ())
    assert [turn.weight for turn in turns] == [0.0, 1.0]
    assert turns[1].content == "<tool_response>\nb\n</tool_response>\n<tool_response>\nc\n</tool_response>"


@EVERY
def test_images_of_results_stand_where_they_stood(name):
    results = (Message("tool", "first"), Message("tool", "see this", images=(Image("a.png", at=4),)))
    (turn,) = FORMATS[name].write(results, ())
    (image,) = turn.images
    rewritten = name in ("llama3", "mistral")
    assert turn.content[image.at :].startswith('"see this"' if name == "llama3" else "{" if rewritten else "this")


@EVERY
def test_images_of_an_answer_stand_where_they_stood(name):
    call_like = written(name, "", CALLS[:1])
    message = Message("assistant", f"see {call_like}", images=(Image("a.png", at=2), Image("b.png", at=8)))
    (turn,) = FORMATS[name].write((replace(message, tool_calls=CALLS),), ())
    places = [turn.content[image.at :][:2] for image in turn.images]
    assert places == [message.content[image.at :][:2] for image in message.images]


# Against what the models' own chat templates write.


def published(file, messages, **variables):
    """Render a chat template that TRL ships, as transformers does."""
    path = Path(trl.__file__).parent / "chat_templates" / file
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = lambda value, indent=None: json.dumps(value, ensure_ascii=False, indent=indent)
    return environment.from_string(path.read_text()).render(messages=messages, bos_token="", **variables)


def as_openai(messages):
    for message in messages:
        turn = {"role": message.role, "content": message.content}
        if message.tool_calls:
            turn["tool_calls"] = [
                {"type": "function", "function": {"name": call.name, "arguments": call.arguments}}
                for call in message.tool_calls
            ]
        yield turn


@pytest.mark.parametrize("said", ["I look.", ""])
@pytest.mark.parametrize(
    ("file", "system"), [("qwen2_5.jinja", "Be brief."), ("qwen3.jinja", "Be brief."), ("qwen3.jinja", None)]
)
def test_hermes_is_what_qwens_own_template_renders(file, said, system):
    start = (Message("system", system),) if system else ()
    messages = (*start, CONVERSATION[0], replace(CONVERSATION[1], content=said), *CONVERSATION[2:])
    own = published(file, [*as_openai(messages)], tools=[WEATHER])
    assert published(file, [*as_openai(HERMES.write(messages, (WEATHER,)))]) == own


def test_llama3_is_what_llamas_own_template_renders():
    """With the tools in the system message, which its template can do, and the results in a turn of the user's."""
    messages = (
        Message("user", "How is it?"), Message("assistant", "", tool_calls=CALLS[:1]), Message("tool", 'a "blue" sky'),
        Message("assistant", "Blue."),
    )  # fmt: skip
    own = published("llama3_1.jinja", [*as_openai(messages)], tools=[WEATHER], tools_in_user_message=False)
    told, *turns = LLAMA3.write(messages, (WEATHER,))
    assert told.content in own
    plain = published("llama3_1.jinja", [*as_openai(turns)])
    begin = "<|start_header_id|>user"
    assert plain[plain.index(begin) :].replace("user<|end", "ipython<|end") == own[own.index(begin) :].replace(
        "user<|end", "ipython<|end"
    )


def test_mistral_is_what_its_own_template_documents():
    """The function calling section of https://huggingface.co/mistralai/Mistral-7B-Instruct-v0.3."""
    calls = (ToolCall("weather", {"town": "Bern"}, "VvvODy9mT"),)
    assert written("mistral", "", calls) == (
        '[TOOL_CALLS] [{"name": "weather", "arguments": {"town": "Bern"}, "id": "VvvODy9mT"}]'
    )
    results = (Message("tool", "22.0", call="VvvODy9mT"), Message("tool", "warm"))
    assert MISTRAL.write(results, ())[0].content == (
        '[TOOL_RESULTS] {"content": 22.0, "call_id": "VvvODy9mT"}[/TOOL_RESULTS]'
        '[TOOL_RESULTS] {"content": "warm"}[/TOOL_RESULTS]'
    )
    tool = {"type": "function", "function": {"name": "a"}}
    told = MISTRAL.write((), (tool,))[0].content
    assert told == '[AVAILABLE_TOOLS] [{"type": "function", "function": {"name": "a"}}][/AVAILABLE_TOOLS]'


def test_glm_is_what_its_own_template_documents():
    """The chat template in the tokenizer_config.json of https://huggingface.co/THUDM/glm-4-9b-chat."""
    tool = {"type": "function", "function": {"name": "a", "description": "天气"}}
    assert GLM.write((), (tool,))[0].content == (
        '# 可用工具\n\n## a\n\n{\n    "name": "a",\n    "description": "天气"\n}'
        "\n在调用上述函数时，请使用 Json 格式表示调用的参数。"  # noqa: RUF001
    )
    assert written("glm", "", CALLS[1:]) == 'weather\n{"town": "Bern"}'


def test_react_is_what_llama_factorys_default_writes():
    """`DefaultToolUtils` in src/llamafactory/data/tool_utils.py of LLaMA-Factory, and a thought before it."""
    assert written("react", "", CALLS) == (
        'Action: weather\nAction Input: {"town": "Zürich", "days": [1, 2]}\n'
        'Action: weather\nAction Input: {"town": "Bern"}'
    )
    assert written("react", "I look.", CALLS[1:]).startswith("Thought: I look.\nAction: weather\n")
    assert written("react", "I know.", ()) == "I know."
    told = REACT.write((), (WEATHER,))[0].content
    assert told.startswith(
        "You have access to the following tools:\n> Tool Name: weather\nTool Description: The weather in a town\n"
        "Tool Args:\n  - town (string, required): Its name\n"
        "  - unit (string): The scale, should be one of [C, F]\n"
        "  - days (array): Which days, where each item should be integer\n"
        '  - place (object): , as {"properties": {"zip": {"type": "string"}}}\n'
    )
    assert "Action: tool name (one of [weather])\n" in told
    assert REACT.write((Message("tool", "rain"),), ())[0].content == "Observation: rain"


def test_a_tool_without_arguments_or_description_can_be_told():
    assert "> Tool Name: now\n" in REACT.write((), ({"name": "now"},))[0].content


# The plugin.


def test_without_a_name_react_is_used_where_the_template_cannot():
    chosen = Tools().tunekit_tool_format()
    assert not chosen.named
    assert chosen.write((Message("tool", "rain"),), ())[0].content == "Observation: rain"


@EVERY
def test_the_option_format_chooses_and_goes_before_the_template(name):
    chosen = Tools(format=name).tunekit_tool_format()
    assert chosen.named
    turn = Message("assistant", "", tool_calls=CALLS)
    assert chosen.write((turn,), ()) == FORMATS[name].write((turn,), ())
    assert chosen.parse(written(name, "I look.", CALLS)) == ("I look.", CALLS)
