"""Named templates: what they render is what was published, and their marks lie on the answers and nothing else."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import jinja2
import pytest
import trl
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2.ext import Extension

from tunekit_templates.entries import TEMPLATES

NAMES = TEMPLATES.names
SYSTEM = {"role": "system", "content": "Answer in verse."}
PLAIN = [
    {"role": "user", "content": "Who are you?"},
    {"role": "assistant", "content": "  I am a river.\n\nAnd you?  "},
    {"role": "user", "content": " A <b>town</b>, {{ messages }} "},
    {"role": "assistant", "content": "Zürich 🌊"},
]
TOOLS = [{"type": "function", "function": {"name": "weather", "description": "Über das Wetter", "parameters": {}}}]


def called(*arguments, content=""):
    calls = [{"type": "function", "function": {"name": "weather", "arguments": each}} for each in arguments]
    return {"role": "assistant", "content": content, "tool_calls": calls}


RESULT = {"role": "tool", "content": '{"sky": "blue"}'}
ONE_CALL = [PLAIN[0], called({"town": "Zürich"}), RESULT, PLAIN[1]]
CALLS = [PLAIN[0], called({"town": "Zürich"}, {}, content="I look."), RESULT, RESULT, PLAIN[1], *PLAIN[2:]]
THINKING = [
    PLAIN[0], {**PLAIN[1], "reasoning_content": "Water?"}, PLAIN[2], {**PLAIN[3], "reasoning_content": "\nA town.\n"},
]  # fmt: skip
THINKING_IN_TEXT = [
    PLAIN[0], {"role": "assistant", "content": "<think>\nWater?\n</think>\n\nA river."}, PLAIN[2],
    {"role": "assistant", "content": "<think>\nA town.\n</think>\n\nZürich."},
]  # fmt: skip
PLAINS = [PLAIN, [SYSTEM, *PLAIN], PLAIN[:1], [SYSTEM, *PLAIN[:3]], PLAIN[:2]]
ALL = {"bos_token": "<s>", "eos_token": "</s>"}
ROLES = ("user", "assistant")
ENDING = {"phi3": "<|endoftext|>", "deepseek": "<｜end▁of▁sentence｜>", "deepseek-r1": "<｜end▁of▁sentence｜>"}  # noqa: RUF001


def render(text, messages, **variables):
    """Render as transformers does, without its own code."""

    def refuse(message):
        raise jinja2.TemplateError(message)

    def tojson(value, indent=None, ensure_ascii=False):
        return json.dumps(value, indent=indent, ensure_ascii=ensure_ascii)

    ENVIRONMENT.filters["tojson"] = tojson
    return compiled(text).render(messages=messages, raise_exception=refuse, **{**ALL, **variables})


class Unmarked(Extension):
    """`{% generation %}` that leaves its text as it is."""

    tags = frozenset({"generation"})

    def parse(self, parser):
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


ENVIRONMENT = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, extensions=[Unmarked])


@cache
def compiled(text):
    return ENVIRONMENT.from_string(text)


@cache
def shipped(file):
    """The text of a chat template that TRL ships as it was published."""
    return (Path(trl.__file__).parent / "chat_templates" / file).read_text()


CASES = [
    *(("llama3", "llama3.jinja", messages, {}) for messages in PLAINS),
    *(("llama3.1", "llama3_1.jinja", messages, {}) for messages in PLAINS),
    *(("llama3.1", "llama3_1.jinja", messages, {"tools": TOOLS}) for messages in (ONE_CALL, [SYSTEM, *ONE_CALL])),
    *(("gemma", "gemma.jinja", messages, {}) for messages in (PLAIN, PLAIN[:1], PLAIN[:2])),
    *(("gemma3", "gemma3.jinja", messages, {}) for messages in PLAINS),
    *(("phi3", "phi3.jinja", messages, {}) for messages in PLAINS),
    *(("qwen2.5", "qwen2_5.jinja", messages, {}) for messages in [*PLAINS, CALLS, [SYSTEM, *CALLS]]),
    *(("qwen2.5", "qwen2_5.jinja", messages, {"tools": TOOLS}) for messages in (CALLS, [SYSTEM, *CALLS], ONE_CALL)),
    *(("qwen3", "qwen3.jinja", messages, {}) for messages in [*PLAINS, CALLS, THINKING, THINKING_IN_TEXT, ONE_CALL]),
    *(("qwen3", "qwen3.jinja", messages, {"tools": TOOLS}) for messages in (CALLS, [SYSTEM, *CALLS], ONE_CALL)),
    ("qwen3", "qwen3.jinja", PLAIN[:1], {"enable_thinking": False}),
    ("qwen3", "qwen3.jinja", [*THINKING[:2], PLAIN[2], {**CALLS[1], "reasoning_content": "Go."}, RESULT], {}),
    *(("deepseek-r1", "deepseek_r1_distill.jinja", messages, {}) for messages in PLAINS),
    ("deepseek-r1", "deepseek_r1_distill.jinja", THINKING_IN_TEXT[:3], {}),
    *(("command-r", "cohere.jinja", messages, {}) for messages in PLAINS),
]  # fmt: skip


@pytest.mark.parametrize("prompt", [False, True])
@pytest.mark.parametrize(("name", "file", "messages", "variables"), CASES)
def test_a_template_renders_what_the_published_one_does(name, file, messages, variables, prompt):
    ours, theirs = (
        render(text, messages, **{"eos_token": ENDING.get(name, "</s>"), "add_generation_prompt": prompt, **variables})
        for text in (TEMPLATES.load(name).text, shipped(file))
    )
    assert ours == theirs


SAID = st.lists(
    st.one_of(
        st.sampled_from(["\n", " ", "<think>", "<tool_response>", "</tool_response>", "<|im_end|>", "{{ x }}", "<s>"]),
        st.text(max_size=5),
    ),
    max_size=5,
).map("".join)  # fmt: skip
TALKS = st.lists(st.tuples(SAID, SAID), min_size=1, max_size=3)


@pytest.mark.parametrize(
    ("name", "file"), sorted({(name, file) for name, file, *_ in CASES} | {("deepseek", "deepseekv3.jinja")})
)
@given(talk=TALKS, system=st.none() | SAID, asked=st.booleans())
@settings(max_examples=80, deadline=None)
def test_a_template_renders_any_conversation_as_the_published_one_does(name, file, talk, system, asked):
    turns = [{"role": role, "content": said} for pair in talk for role, said in zip(ROLES, pair, strict=True)]
    messages = [{"role": "system", "content": system}] * (system is not None and name != "gemma") + turns[
        : -1 if asked else None
    ]
    variables = {"eos_token": ENDING.get(name, "</s>"), "add_generation_prompt": asked and name != "deepseek"}
    assert render(TEMPLATES.load(name).text, messages, **variables) == render(shipped(file), messages, **variables)


@given(talk=TALKS.map(lambda talk: [(asked, f"{said}</think>{said}") for asked, said in talk]))
@settings(max_examples=80, deadline=None)
def test_qwen3_finds_thinking_in_an_answer_as_the_published_one_does(talk):
    turns = [{"role": role, "content": said} for pair in talk for role, said in zip(ROLES, pair, strict=True)]
    assert render(TEMPLATES.load("qwen3").text, turns) == render(shipped("qwen3.jinja"), turns)


@pytest.mark.parametrize("messages", PLAINS)
def test_deepseek_v3_renders_what_the_published_one_does_but_for_the_prompt(messages):
    """TRL ships the template of R1, whose prompt opens the thinking; V3 has the same text without that."""
    ours = render(TEMPLATES.load("deepseek").text, messages)
    assert ours == render(shipped("deepseekv3.jinja"), messages)
    prompted = render(TEMPLATES.load("deepseek").text, messages, add_generation_prompt=True)
    assert prompted + "<think>\n" == render(shipped("deepseekv3.jinja"), messages, add_generation_prompt=True)


# For templates that TRL does not ship: the conversation of llama.cpp's tests/test-chat-template.cpp, and what that file
# says the model's own template renders of it, without a start token.

HELLO = [
    {"role": "system", "content": "You are a helpful assistant"},
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hi there"},
    {"role": "user", "content": "Who are you"},
    {"role": "assistant", "content": "   I am an assistant   "},
    {"role": "user", "content": "Another question"},
]
DOCUMENTED = {
    "chatml": "<|im_start|>system\nYou are a helpful assistant<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n"
    "<|im_start|>assistant\nHi there<|im_end|>\n<|im_start|>user\nWho are you<|im_end|>\n<|im_start|>assistant\n"
    "   I am an assistant   <|im_end|>\n<|im_start|>user\nAnother question<|im_end|>\n<|im_start|>assistant\n",
    "llama2": "[INST] <<SYS>>\nYou are a helpful assistant\n<</SYS>>\n\nHello [/INST] Hi there </s>"
    "[INST] Who are you [/INST] I am an assistant </s>[INST] Another question [/INST]",
    "mistral": "[INST] Hello[/INST] Hi there</s>[INST] Who are you[/INST] I am an assistant</s>"
    "[INST] You are a helpful assistant\n\nAnother question[/INST]",
    "phi3": "<|system|>\nYou are a helpful assistant<|end|>\n<|user|>\nHello<|end|>\n<|assistant|>\nHi there<|end|>\n"
    "<|user|>\nWho are you<|end|>\n<|assistant|>\n   I am an assistant   <|end|>\n<|user|>\nAnother question<|end|>\n"
    "<|assistant|>\n",
    "phi4": "<|im_start|>system<|im_sep|>You are a helpful assistant<|im_end|><|im_start|>user<|im_sep|>Hello<|im_end|>"
    "<|im_start|>assistant<|im_sep|>Hi there<|im_end|><|im_start|>user<|im_sep|>Who are you<|im_end|>"
    "<|im_start|>assistant<|im_sep|>   I am an assistant   <|im_end|><|im_start|>user<|im_sep|>Another question"
    "<|im_end|><|im_start|>assistant<|im_sep|>",
    "glm4": "[gMASK]<sop><|system|>\nYou are a helpful assistant<|user|>\nHello<|assistant|>\nHi there<|user|>\n"
    "Who are you<|assistant|>\n   I am an assistant   <|user|>\nAnother question<|assistant|>",
    "deepseek-v2": "You are a helpful assistant\n\nUser: Hello\n\nAssistant: Hi there</s>User: Who are you\n\n"
    "Assistant:    I am an assistant   </s>User: Another question\n\nAssistant:",
    "command-r": "<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>You are a helpful assistant<|END_OF_TURN_TOKEN|>"
    "<|START_OF_TURN_TOKEN|><|USER_TOKEN|>Hello<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>Hi there"
    "<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|USER_TOKEN|>Who are you<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|>"
    "<|CHATBOT_TOKEN|>I am an assistant<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|USER_TOKEN|>Another question"
    "<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
    # https://huggingface.co/HuggingFaceH4/zephyr-7b-beta, tokenizer_config.json: a line break after every turn.
    "zephyr": "<|system|>\nYou are a helpful assistant</s>\n<|user|>\nHello</s>\n<|assistant|>\nHi there</s>\n"
    "<|user|>\nWho are you</s>\n<|assistant|>\n   I am an assistant   </s>\n<|user|>\nAnother question</s>\n"
    "<|assistant|>\n",
    # https://huggingface.co/allenai/Llama-3.1-Tulu-3-8B, "Chat template".
    "tulu": "<|system|>\nYou are a helpful assistant\n<|user|>\nHello\n<|assistant|>\nHi there</s>\n<|user|>\n"
    "Who are you\n<|assistant|>\n   I am an assistant   </s>\n<|user|>\nAnother question\n<|assistant|>\n",
    # FastChat, `vicuna_v1.1` in fastchat/conversation.py: one space between turns, </s> behind an answer.
    "vicuna": "You are a helpful assistant USER: Hello ASSISTANT: Hi there</s>USER: Who are you ASSISTANT:"
    "    I am an assistant   </s>USER: Another question ASSISTANT:",
    # LLaMA-Factory, `alpaca` in src/llamafactory/data/template.py.
    "alpaca": "You are a helpful assistant\n\n### Instruction:\nHello\n\n### Response:\nHi there</s>\n\n"
    "### Instruction:\nWho are you\n\n### Response:\n   I am an assistant   </s>\n\n### Instruction:\nAnother question"
    "\n\n### Response:\n",
}


@pytest.mark.parametrize("name", sorted(DOCUMENTED))
def test_a_template_renders_what_is_documented(name):
    text = TEMPLATES.load(name).text
    assert render(text, HELLO, add_generation_prompt=True, bos_token="") == DOCUMENTED[name]


def test_every_template_is_compared_with_a_published_one():
    assert {*(case[0] for case in CASES), *DOCUMENTED, "deepseek"} == set(NAMES)


def test_alpaca_and_vicuna_begin_with_the_words_their_models_were_taught():
    """tatsu-lab/stanford_alpaca, README; lm-sys/FastChat, docs/vicuna_weights_version.md."""
    ask = [{"role": "user", "content": "Hello!"}]
    assert render(TEMPLATES.load("alpaca").text, ask, bos_token="", add_generation_prompt=True) == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nHello!\n\n### Response:\n"
    )
    assert render(TEMPLATES.load("vicuna").text, ask, bos_token="", add_generation_prompt=True) == (
        "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
        "detailed, and polite answers to the user's questions. USER: Hello! ASSISTANT:"
    )


def test_the_start_token_stands_once_where_the_published_template_has_it():
    """As in llama.cpp's list of templates and TRL's; Llama 2 begins every turn of the user with one."""
    counts = {name: render(TEMPLATES.load(name).text, PLAIN).count("<s>") for name in NAMES}
    without = {"chatml", "phi3", "phi4", "qwen2.5", "qwen3", "glm4", "zephyr", "tulu"}
    assert counts == {name: 2 if name == "llama2" else 0 if name in without else 1 for name in NAMES}


def test_mistral_with_tools_renders_what_its_own_template_documents():
    """The chat template in the tokenizer_config.json of https://huggingface.co/mistralai/Mistral-7B-Instruct-v0.3."""
    call = {**called({"town": "Bern"})["tool_calls"][0], "id": "VvvODy9mT"}
    messages = [
        PLAIN[0], {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "content": "22.0", "tool_call_id": "VvvODy9mT"}, {"role": "assistant", "content": "Warm."},
    ]  # fmt: skip
    assert render(TEMPLATES.load("mistral").text, messages, tools=TOOLS) == (
        '<s>[AVAILABLE_TOOLS] [{"type": "function", "function": {"name": "weather", "description": "Über das Wetter", '
        '"parameters": {}}}][/AVAILABLE_TOOLS][INST] Who are you?[/INST][TOOL_CALLS] [{"name": "weather", "arguments": '
        '{"town": "Bern"}, "id": "VvvODy9mT"}]</s>[TOOL_RESULTS] {"content": 22.0, "call_id": "VvvODy9mT"}'
        "[/TOOL_RESULTS] Warm.</s>"
    )


# What is marked as said by the assistant.

TURNS = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi there"}]
ENDS = {"phi3": "<|end|>", "llama3": "<|eot_id|>", "llama3.1": "<|eot_id|>", "gemma": "<end_of_turn>",
        "gemma3": "<end_of_turn>", "glm4": "<|user|>", "command-r": "<|END_OF_TURN_TOKEN|>"} | dict.fromkeys(
    ["chatml", "qwen2.5", "qwen3", "phi4"], "<|im_end|>") | dict.fromkeys(
    ["deepseek", "deepseek-r1"], "<｜end▁of▁sentence｜>")  # fmt: skip # noqa: RUF001


def marked(tokenizer, messages, **variables):
    """The pieces of text that the template marks, as transformers' own mask tells."""
    encoded = tokenizer.apply_chat_template(messages, return_assistant_tokens_mask=True, return_dict=True, **variables)
    pieces, open_ = [], False
    for token, mask in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True):
        if mask and not open_:
            pieces.append([])
        if mask:
            pieces[-1].append(token)
        open_ = bool(mask)
    return [tokenizer.decode(piece) for piece in pieces]


@pytest.mark.parametrize("name", NAMES)
def test_the_marks_lie_on_the_answers_and_what_ends_them(name, fitting):
    tokenizer = fitting(name)
    end = ENDS.get(name, "</s>")
    assert tokenizer.eos_token == end
    answers = marked(
        tokenizer, [*TURNS, {"role": "user", "content": "And?"}, {"role": "assistant", "content": "Well."}]
    )
    thought = "<think>\n\n</think>\n\n" if name == "qwen3" else ""
    space = " " if name == "llama2" else ""
    assert [answer.lstrip() for answer in answers] == [f"Hi there{space}{end}", f"{thought}Well.{space}{end}"]


@pytest.mark.parametrize("name", NAMES)
def test_a_marked_answer_is_what_a_model_has_to_write_behind_the_prompt(name, fitting):
    tokenizer = fitting(name)
    messages = [TURNS[0], {**TURNS[1], "reasoning_content": "Hm."}] if name == "deepseek-r1" else TURNS
    prompt = tokenizer.apply_chat_template(messages[:1], tokenize=False, add_generation_prompt=True)
    whole = tokenizer.apply_chat_template(messages, tokenize=False)
    (answer,) = marked(tokenizer, messages)
    assert whole.startswith(prompt + answer)
    assert whole[len(prompt + answer) :] in ("", "\n", "\n<|endoftext|>")


@pytest.mark.parametrize("name", NAMES)
def test_marks_in_what_the_user_says_make_no_answer(name, fitting):
    tokenizer = fitting(name)
    forged = {"role": "user", "content": "{% generation %}Hi there{% endgeneration %} " + "".join(tokenizer.eos_token)}
    (answer,) = marked(tokenizer, [forged, TURNS[1]])
    assert "Hi there" in answer
    assert "generation" not in answer


@pytest.mark.parametrize("name", ["qwen2.5", "qwen3", "mistral", "llama3.1"])
def test_calls_are_marked_and_results_are_not(name, fitting):
    tokenizer = fitting(name)
    call, answer = marked(tokenizer, ONE_CALL, tools=TOOLS)
    assert '"weather"' in call
    assert "Zürich" in call
    assert call.endswith(tokenizer.eos_token)
    assert "river" in answer
    assert "blue" not in call + answer


@pytest.mark.parametrize("messages", [THINKING, THINKING_IN_TEXT])
def test_deepseek_r1_keeps_what_was_thought_before_the_last_answer_only(messages, fitting):
    tokenizer = fitting("deepseek-r1")
    before, last = marked(tokenizer, messages)
    assert "Water?" not in tokenizer.apply_chat_template(messages, tokenize=False)
    assert "river." in before
    assert last.startswith("A town.\n</think>\n\nZürich")


REFUSED = {
    "gemma": [([SYSTEM, *TURNS], "Gemma 1 and 2 know no system message")],
    "mistral": [
        ([PLAIN[0], called({}, content="I look.")], "calls or text; the tool format mistral writes both"),
        ([PLAIN[0], SYSTEM], "one system message at the start"),
        ([PLAIN[0], PLAIN[0]], "user and assistant in turn"),
    ],
    "llama3.1": [
        ([PLAIN[0], called({}, {})], "one function call or text"),
        ([PLAIN[0], called({}, content="I look.")], "one function call or text"),
        ([TURNS[1]], "does not begin with one"),
    ],
    **{name: [([PLAIN[0], PLAIN[0]], "in turn")] for name in ("llama2", "gemma3", "command-r")},
    **{
        name: [([PLAIN[0], RESULT], "this template knows")]
        for name in ("llama3", "phi3", "phi4", "deepseek", "deepseek-r1", "deepseek-v2", "zephyr", "tulu", "vicuna",
                     "alpaca", "glm4")
    },
    **{name: [([{"role": "narrator", "content": ""}], "this template knows")] for name in ("qwen2.5", "qwen3")},
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_a_template_refuses_what_it_would_leave_out(name):
    for messages, reason in REFUSED[name]:
        with pytest.raises(jinja2.TemplateError, match=reason):
            render(TEMPLATES.load(name).text, messages, tools=TOOLS)
