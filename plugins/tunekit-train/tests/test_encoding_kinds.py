"""Pairs, thinking and tools: what is shown, what is trained, and what cannot be."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.resources import files
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from tunekit.errors import DataError
from tunekit.values import Example, Message, ToolCall
from tunekit_train.encoding.frames import Frame
from tunekit_train.encoding.testing import (
    CHATML,
    byte_tokenizer,
    control_tokens,
    dicts,
    encode,
    fast_tokenizer,
    sequence,
    talk,
    trained,
    with_template,
)

LETTERS = st.characters(exclude_categories=["Co", "Cs"])
"""Any characters but private ones and halves of pairs."""


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """One token per byte, ChatML."""
    return byte_tokenizer()


def published(name: str) -> Any:
    """A byte tokenizer with a template that TRL ships."""
    pytest.importorskip("trl")
    template = (files("trl") / "chat_templates" / f"{name}.jinja").read_text(encoding="utf-8")
    return byte_tokenizer(template, ("<s>", "</s>", *control_tokens(template)))


# Pairs.

PAIR = Example(
    1,
    "pairs.json, row 1",
    (Message("user", "Say hi."),),
    chosen=(Message("assistant", "Hi!"),),
    rejected=(Message("assistant", "No."),),
    margin=0.5,
)


def test_a_pair_is_one_item_of_two_sequences_with_the_same_prompt_and_weights_behind_it(tokenizer: Any) -> None:
    ((item,), account) = encode(PAIR, tokenizer)
    chosen, rejected = item.sequences
    prompt = len(tokenizer.apply_chat_template(dicts(PAIR.messages), add_generation_prompt=True)["input_ids"])
    assert list(chosen.ids[:prompt]) == list(rejected.ids[:prompt])
    assert [trained(found, tokenizer) for found in item.sequences] == [["Hi!<|im_end|>"], ["No.<|im_end|>"]]
    assert item.margin == 0.5
    assert (account.source("").sequences, account.source("").kept) == (2, 1)


def test_answers_before_the_pair_parts_are_not_trained_whatever_the_rule(tokenizer: Any) -> None:
    history = (Message("user", "a"), Message("assistant", "b"), *PAIR.messages)
    for supervise in ("assistant", "last", "all"):
        ((item,), _) = encode(replace(PAIR, messages=history), tokenizer, supervise=supervise)
        assert [trained(found, tokenizer) for found in item.sequences] == [["Hi!<|im_end|>"], ["No.<|im_end|>"]]


def test_a_pair_without_a_prompt_trains_both_whole_answers(tokenizer: Any) -> None:
    ((item,), _) = encode(replace(PAIR, messages=()), tokenizer)
    assert [trained(found, tokenizer) for found in item.sequences] == [["Hi!<|im_end|>"], ["No.<|im_end|>"]]


def test_a_pair_that_goes_on_for_several_turns_trains_its_answers_alone(tokenizer: Any) -> None:
    longer = (*PAIR.chosen, Message("user", "And?"), Message("assistant", "Bye!"))
    ((item,), _) = encode(replace(PAIR, chosen=longer), tokenizer)
    assert trained(item.sequences[0], tokenizer) == ["Hi!<|im_end|>", "Bye!<|im_end|>"]


def test_tokens_that_would_melt_with_the_prompt_are_kept_apart_so_that_it_is_shared() -> None:
    letters = [chr(number) for number in range(32, 127)]
    vocabulary = {letter: number for number, letter in enumerate([*letters, "\n", ":a"])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[(":", "a")]))
    backend.pre_tokenizer = pre_tokenizers.Split("\n", "isolated")
    template = (
        "{% for m in messages %}{{ m['role'] + ':' + m['content'] + '</s>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
    )
    melting = fast_tokenizer(backend, template)
    pair = replace(PAIR, chosen=(Message("assistant", "aye"),), rejected=(Message("assistant", "no"),))
    ((item,), _) = encode(pair, melting)
    prompt = melting.apply_chat_template(dicts(PAIR.messages), add_generation_prompt=True)["input_ids"]
    whole = melting.apply_chat_template(dicts(pair.messages + pair.chosen))["input_ids"]
    assert whole[: len(prompt)] != prompt, "it does melt"
    for found in item.sequences:
        assert list(found.ids[: len(prompt)]) == prompt
        assert not found.weights[: len(prompt)].any()  # type: ignore[attr-defined]
        assert found.weights[len(prompt) :].all()  # type: ignore[attr-defined]


@pytest.mark.parametrize("mention", ["<|im_end|>", "plain"])
def test_a_mentioned_token_in_one_answer_leaves_the_prompt_shared(tokenizer: Any, mention: str) -> None:
    pair = replace(PAIR, chosen=(Message("assistant", f"a {mention} b"),))
    ((item,), _) = encode(pair, tokenizer)
    assert trained(item.sequences[0], tokenizer) == [f"a {mention} b<|im_end|>"]


def test_equal_answers_are_an_error(tokenizer: Any) -> None:
    with pytest.raises(DataError, match="the chosen and the rejected answer are the same; mend the pair"):
        sequence(replace(PAIR, rejected=PAIR.chosen), tokenizer)
    trimmed = with_template(tokenizer, CHATML.replace("m['content']", "m['content'] | trim"))
    with pytest.raises(DataError, match="the chosen and the rejected answer are the same"):
        sequence(replace(PAIR, rejected=(Message("assistant", " Hi! "),)), trimmed)


def test_a_pair_without_an_answer_is_an_error(tokenizer: Any) -> None:
    with pytest.raises(DataError, match="no assistant turn"):
        sequence(replace(PAIR, rejected=()), tokenizer)


def test_a_template_that_renders_the_prompt_by_its_answer_is_refused_for_pairs(tokenizer: Any) -> None:
    peeks = with_template(tokenizer, "{{ messages | length }}" + CHATML)
    longer = (*PAIR.chosen, Message("user", "And?"), Message("assistant", "Bye!"))
    with pytest.raises(DataError, match="renders the prompt of the chosen and the rejected answer differently"):
        sequence(replace(PAIR, chosen=longer), peeks)


# Thinking.

THOUGHT = talk(
    ("user", "q"), Message("assistant", "one", thinking="hm"), ("user", "r"), Message("assistant", "two", thinking="ah")
)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("keep", ["<think>\nhm\n</think>\n\none<|im_end|>", "<think>\nah\n</think>\n\ntwo<|im_end|>"]),
        ("last", ["one<|im_end|>", "<think>\nah\n</think>\n\ntwo<|im_end|>"]),
        ("drop", ["one<|im_end|>", "two<|im_end|>"]),
        ("mask", ["one<|im_end|>", "two<|im_end|>"]),
    ],
)
def test_thinking_is_written_before_the_answer_where_a_template_has_no_key_for_it(
    tokenizer: Any, rule: str, expected: list[str]
) -> None:
    found = sequence(THOUGHT, tokenizer, thinking=rule)
    assert trained(found, tokenizer) == expected
    assert ("ah" in tokenizer.decode(found.ids)) is (rule != "drop")
    assert ("hm" in tokenizer.decode(found.ids)) is (rule in ("keep", "mask"))


@pytest.mark.parametrize(
    ("name", "rule", "expected"),
    [
        ("qwen3", "keep", ["one<|im_end|>", "<think>\nah\n</think>\n\ntwo<|im_end|>"]),
        ("qwen3", "mask", ["one<|im_end|>", "two<|im_end|>"]),
        ("qwen3", "drop", ["one<|im_end|>", "<think>\n\n</think>\n\ntwo<|im_end|>"]),
        (
            "qwen3_training",
            "keep",
            ["<think>\nhm\n</think>\n\none<|im_end|>\n", "<think>\nah\n</think>\n\ntwo<|im_end|>\n"],
        ),
        (
            "qwen3_training",
            "last",
            ["<think>\n\n</think>\n\none<|im_end|>\n", "<think>\nah\n</think>\n\ntwo<|im_end|>\n"],
        ),
        ("qwen3_6", "keep", ["one<|im_end|>", "ah\n</think>\n\ntwo<|im_end|>"]),
        (
            "gptoss",
            "keep",
            [
                "<|channel|>final<|message|>one<|end|>",
                "<|channel|>analysis<|message|>ah<|end|><|start|>assistant<|channel|>final<|message|>two<|return|>",
            ],
        ),
        (
            "gptoss",
            "mask",
            ["<|channel|>final<|message|>one<|end|>", "<|channel|>final<|message|>two<|return|>"],
        ),
        ("glm4moe", "mask", ["\n<think></think>\none<|user|>", "\n", "two"]),
    ],
)
def test_thinking_goes_under_the_key_that_a_published_template_reads(name: str, rule: str, expected: list[str]) -> None:
    tokenizer = published(name)
    found = sequence(THOUGHT, tokenizer, thinking=rule)
    assert trained(found, tokenizer) == expected
    if rule in ("keep", "mask"):
        turns = [
            {**turn, "reasoning_content": message.thinking} if message.thinking else turn
            for turn, message in zip(dicts(THOUGHT.messages), THOUGHT.messages, strict=True)
        ]
        assert list(found.ids) == tokenizer.apply_chat_template(turns)["input_ids"]


def test_the_last_answer_is_all_that_follows_the_users_last_turn(tokenizer: Any) -> None:
    example = talk(*THOUGHT.messages, Message("assistant", "three", thinking="oh"))
    runs = trained(sequence(example, tokenizer, thinking="last"), tokenizer)
    assert [("<think>" in run) for run in runs] == [False, True, True]


def test_thinking_that_the_template_leaves_out_of_the_last_answer_is_an_error_with_a_way_out() -> None:
    tokenizer = published("deepseek_r1_distill")
    with pytest.raises(DataError, match=r"leaves out the thinking of the last answer; message 4 .*`thinking: drop`"):
        sequence(THOUGHT, tokenizer)
    assert len(trained(sequence(THOUGHT, tokenizer, thinking="drop"), tokenizer)) == 2


def test_special_tokens_in_thinking_stay_text(tokenizer: Any) -> None:
    example = talk(("user", "q"), Message("assistant", "a", thinking="x<|im_end|>y"))
    found = sequence(example, tokenizer)
    assert list(found.ids).count(tokenizer.convert_tokens_to_ids("<|im_end|>")) == 2
    assert trained(found, tokenizer) == ["<think>\nx<|im_end|>y\n</think>\n\na<|im_end|>"]


@given(thought=st.text(LETTERS, min_size=1, max_size=30), answer=st.text(LETTERS, max_size=30))
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_masked_thinking_is_never_trained_and_the_answer_always_is(tokenizer: Any, thought: str, answer: str) -> None:
    example = talk(("user", "q"), Message("assistant", answer, thinking=thought))
    masked = sequence(example, tokenizer, thinking="mask")
    (run,) = trained(masked, tokenizer)
    assert run.strip() == (answer + "<|im_end|>").strip()
    assert list(masked.ids) == list(sequence(example, tokenizer).ids)


# Tools.

WEATHER: Mapping[str, Any] = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tell the weather.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string", "description": "where"}}},
    },
}
CALLING = Example(
    1,
    "tools.json, row 1",
    (
        Message("user", "Is it hot?"),
        Message("assistant", "", tool_calls=(ToolCall("weather", {"city": "Åre", "days": 1}, "call12345"),)),
        Message("tool", '{"t": 3}', name="weather", call="call12345"),
        Message("assistant", "No."),
    ),
    tools=(WEATHER,),
)
TURNS = [
    {"role": "user", "content": "Is it hot?"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {
                "type": "function",
                "function": {"name": "weather", "arguments": {"city": "Åre", "days": 1}},
                "id": "call12345",
            }
        ],
    },
    {"role": "tool", "content": '{"t": 3}', "name": "weather", "tool_call_id": "call12345"},
    {"role": "assistant", "content": "No."},
]
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Åre", "days": 1}}\n</tool_call><|im_end|>'
XML = "<parameter=city>\nÅre\n</parameter>\n<parameter=days>\n1\n</parameter>\n</function>\n</tool_call><|im_end|>"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("qwen2_5", [CALL, "No.<|im_end|>"]),
        ("qwen3", [CALL, "<think>\n\n</think>\n\nNo.<|im_end|>"]),
        ("qwen3_6", ["\n</think>\n\n<tool_call>\n<function=weather>\n" + XML, "\n</think>\n\nNo.<|im_end|>"]),
        ("llama3_1", ['{"name": "weather", "parameters": {"city": "Åre", "days": 1}}<|eot_id|>', "No.<|eot_id|>"]),
        (
            "gptoss",
            [
                ' to=functions.weather<|channel|>commentary json<|message|>{"city": "Åre", "days": 1}<|call|>',
                "<|channel|>final<|message|>No.<|return|>",
            ],
        ),
        (
            "gemma4",
            ['<|tool_call>call:weather{city:<|"|>Åre<|"|>,days:1}<tool_call|><|tool_response>', "No.<turn|>"],
        ),
    ],
)
def test_calls_are_trained_with_their_turn_and_results_never(name: str, expected: list[str]) -> None:
    tokenizer = published(name)
    found = sequence(CALLING, tokenizer)
    assert trained(found, tokenizer) == expected
    assert list(found.ids) == tokenizer.apply_chat_template(TURNS, tools=[dict(WEATHER)])["input_ids"]


TRAINING = ["qwen2_5", "qwen3", "qwen3_6", "qwen3_instruct_2507", "gptoss", "glm4moe", "lfm2_v2", "nemotron_3_nano"]


@pytest.mark.parametrize("name", TRAINING)
def test_masks_of_calls_are_those_that_transformers_finds_by_generation_marks(name: str) -> None:
    tokenizer = published(f"{name}_training")
    expected = tokenizer.apply_chat_template(TURNS, tools=[dict(WEATHER)], return_assistant_tokens_mask=True)
    found = sequence(CALLING, tokenizer)
    assert list(found.ids) == expected["input_ids"]
    assert [int(weight) for weight in found.weights] == expected["assistant_masks"]


@pytest.mark.parametrize("name", ["qwen2_5", "qwen3", "gptoss"])
def test_under_all_the_results_of_tools_are_not_trained(name: str) -> None:
    tokenizer = published(name)
    runs = trained(sequence(CALLING, tokenizer, supervise="all"), tokenizer)
    assert not any('"t": 3' in run for run in runs)
    assert any("Is it hot?" in run for run in runs)


def test_special_tokens_in_tools_calls_and_results_stay_text() -> None:
    tokenizer = published("qwen2_5")
    end = "<|im_end|>"
    forged = replace(
        CALLING,
        messages=(
            CALLING.messages[0],
            Message("assistant", "", tool_calls=(ToolCall("weather", {end: [end, {"a": end}]}),)),
            Message("tool", end, name=end, call=end),
            CALLING.messages[3],
        ),
        tools=({"type": "function", "function": {"name": "weather", "description": end}},),
    )
    found = sequence(forged, tokenizer)
    plain = sequence(CALLING, tokenizer)
    number = tokenizer.convert_tokens_to_ids(end)
    assert list(found.ids).count(number) == list(plain.ids).count(number)
    assert len(trained(found, tokenizer)) == 2


@pytest.mark.parametrize("written", ["value", "value | tojson(ensure_ascii=true)"])
def test_special_tokens_that_a_template_escapes_with_what_is_around_them_are_refused(written: str) -> None:
    escapes = CHATML.replace(
        "+ m['content'] +",
        "+ m['content'] + '' }}{% for call in m.tool_calls or [] %}{{ call.function.name }}"
        f"{{% for value in call.function.arguments.values() %}}{{{{ {written} }}}}{{% endfor %}}{{% endfor %}}{{{{"
        " ('' if tools else '') +",
    )
    arguments = {"places": [{"city": "x<|im_end|>y"}]}
    calls = Message("assistant", "", tool_calls=(ToolCall("weather", arguments),))
    forged = replace(CALLING, messages=(CALLING.messages[0], calls, *CALLING.messages[2:]))
    items, account = encode(forged, byte_tokenizer(escapes))
    assert not items
    (problem,) = account.problems
    assert problem.message == "special tokens in a message cannot be kept apart as text"
    assert problem.remedy == "remove '<|im_end|>' from the message"


def test_arguments_are_json_text_where_the_template_wants_that() -> None:
    wants_text = CHATML.replace(
        "+ m['content'] +",
        "+ m['content'] + (('CALL ' + m.tool_calls[0].function.name + ' ' + m.tool_calls[0].function.arguments) "
        "if m.tool_calls else '') + ('' if tools else '') +",
    )
    prints_python = wants_text.replace(
        "' ' + m.tool_calls[0].function.arguments", "' ~ m.tool_calls[0].function.arguments"
    )
    prints_python = prints_python.replace("function.name + ' ~", "function.name ~ ' ' ~")
    for template in (wants_text, prints_python):
        tokenizer = byte_tokenizer(template)
        assert (
            trained(sequence(CALLING, tokenizer), tokenizer)[0] == 'CALL weather {"city": "Åre", "days": 1}<|im_end|>'
        )


@dataclass
class Braces:
    """A tool format for tests: tools and calls in braces."""

    named: bool = False

    def write(self, messages: tuple[Message, ...], tools: tuple[Mapping[str, Any], ...]) -> tuple[Message, ...]:
        """Write the conversation in plain messages."""
        told = "".join(f"{{{tool['function']['name']}}}" for tool in tools)
        return (Message("system", told), *(self._plain(message) for message in messages))

    def parse(self, text: str) -> tuple[str, tuple[ToolCall, ...]]:
        """Not asked for here."""
        return text, ()

    def _plain(self, message: Message) -> Message:
        if message.role == "tool":
            return Message("user", f"result {message.content}")
        calls = "".join(
            f"{{{call.name} {json.dumps(dict(call.arguments), ensure_ascii=False)}}}" for call in message.tool_calls
        )
        return replace(message, content=message.content + calls, tool_calls=())


def test_a_tool_format_writes_tools_where_the_template_cannot(tokenizer: Any) -> None:
    found = sequence(CALLING, tokenizer, Braces())
    assert trained(found, tokenizer) == ['{weather {"city": "Åre", "days": 1}}<|im_end|>', "No.<|im_end|>"]
    assert tokenizer.decode(found.ids).startswith("<|im_start|>system\n{weather}<|im_end|>")


def test_a_tool_format_goes_before_the_template_only_where_the_recipe_names_it() -> None:
    tokenizer = published("qwen2_5")
    assert CALL in trained(sequence(CALLING, tokenizer, Braces()), tokenizer)
    named = trained(sequence(CALLING, tokenizer, Braces(named=True)), tokenizer)
    assert named[0].strip() == '{weather {"city": "Åre", "days": 1}}<|im_end|>'


def test_tools_without_a_way_to_write_them_leave_the_row_out(tokenizer: Any) -> None:
    for example in (CALLING, replace(CALLING, tools=()), talk(("user", "q"), ("assistant", "a"), tools=(WEATHER,))):
        with pytest.raises(DataError, match="the model's chat template cannot write them; name a tool format"):
            sequence(example, tokenizer)


def test_a_template_that_swallows_a_call_is_an_error(tokenizer: Any) -> None:
    swallows = with_template(tokenizer, "{{ tools | length if tools else '' }}" + CHATML)
    with pytest.raises(DataError, match="leaves out a tool call; message 2 would lose it"):
        sequence(CALLING, swallows)


def test_a_pair_with_tools_shares_the_prompt_that_the_format_writes(tokenizer: Any) -> None:
    pair = Example(
        1, "w", CALLING.messages[:3], chosen=(Message("assistant", "No."),), rejected=(Message("assistant", "Yes."),),
        tools=(WEATHER,),
    )  # fmt: skip
    ((item,), _) = encode(pair, tokenizer, Braces())
    assert [trained(found, tokenizer) for found in item.sequences] == [["No.<|im_end|>"], ["Yes.<|im_end|>"]]
    ((item,), _) = encode(pair, published("qwen2_5"))
    assert len(item.sequences) == 2


def test_a_format_that_refuses_leaves_the_row_out_with_its_words(tokenizer: Any) -> None:
    class Refuses(Braces):
        def write(self, messages: Any, tools: Any) -> Any:
            raise ValueError("a result without a call")

    with pytest.raises(DataError, match="the tool format cannot write this conversation; a result without a call"):
        sequence(CALLING, tokenizer, Refuses())


SAID = st.text(LETTERS, max_size=20) | st.sampled_from(
    ["<|im_end|>", "x <|im_start|>assistant\nno", "<think>", "</s>", "", "\n", " a "]
)


@pytest.mark.parametrize("name", ["qwen3", "qwen2_5", "llama3_1", "gemma3", "phi3", "glm4moe", "gptoss", "cohere2"])
@given(said=st.lists(SAID, min_size=2, max_size=6), data=st.data())
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
def test_ids_are_those_of_sanitised_chats_whatever_is_said(name: str, said: list[str], data: st.DataObject) -> None:
    tokenizer = published(name)
    roles = ("user", "assistant")
    turns = [(roles[index % 2], text) for index, text in enumerate(said[: len(said) // 2 * 2])]
    items, account = encode(talk(*turns), tokenizer)
    if not items:
        assert account.problems
        return
    expected = tokenizer.apply_chat_template(dicts(talk(*turns).messages), sanitize_control_tokens=True)
    assert list(items[0].sequences[0].ids) == expected["input_ids"]


@pytest.mark.parametrize("name", ["qwen3", "llama3_1", "gemma3", "glm4moe", "gptoss", "lfm2_2_5"])
@given(
    said=st.lists(SAID | st.sampled_from(["\n\n", " \n x \n "]), min_size=2, max_size=6),
    rule=st.sampled_from(["keep", "mask"]),
)
@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
def test_turns_found_by_frame_are_those_found_by_probing_each_message(name: str, said: list[str], rule: str) -> None:
    tokenizer = published(name)
    turns = [
        Message("assistant", text, thinking="ah") if index % 2 else Message("user", text)
        for index, text in enumerate(said[: len(said) // 2 * 2])
    ]
    framed, account = encode(talk(*turns), tokenizer, thinking=rule)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Frame, "fit", lambda self, text, messages: None)
        probed, other = encode(talk(*turns), tokenizer, thinking=rule)
    assert account.to_mapping() == other.to_mapping()
    assert [list(item.sequences[0].weights) for item in framed] == [list(item.sequences[0].weights) for item in probed]
