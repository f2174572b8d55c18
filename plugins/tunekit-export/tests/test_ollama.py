"""The Ollama model file: its template, evaluated as Go does, says what the chat template says."""

from __future__ import annotations

import re

import pytest

from tunekit.errors import ExportError
from tunekit.testing import tiny_tokenizer
from tunekit.testing.options import shows
from tunekit_export import Ollama
from tunekit_export.ollama import go_template, stops_of, usage_of
from tunekit_export.roles import roles_of

CHATML = tiny_tokenizer().chat_template
DEFAULT = "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\nYou help.<|im_end|>\n' }}{% endif %}" + CHATML
LLAMA3 = (
    "{{ '<|endoftext|>' }}{% for message in messages %}{{ '<|im_start|>' + message.role + '|\n\n' + message.content"
    " | trim + '<|im_end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant|\n\n' }}{% endif %}"
)
ALPACA = (
    "{% for message in messages %}{% if message.role == 'user' %}{{ '### Instruction:\n' + message.content + '\n\n' }}"
    "{% elif message.role == 'assistant' %}{{ '### Response:\n' + message.content + '<|im_end|>\n\n' }}"
    "{% else %}{{ message.content + '\n\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '### Response:\n' }}{% endif %}"
)
PHI3 = (
    "{% for message in messages %}{{ '<|' + message.role + '|>\n' + message.content + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
GLM4 = (
    "{{ '[gMASK]<sop>' }}{% for message in messages %}{{ '<|' + message.role + '|>\n' + message.content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
CONVERSATIONS = [
    [("user", "Who?")],
    [("system", "Short."), ("user", "Who {{ .Content }}?")],
    [("user", "a"), ("assistant", "b\n"), ("user", "c")],
    [("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"), ("user", "e")],
]


def evaluated(template, turns):
    """What Go makes of the little of its language that is used: one range over messages, branches by role."""
    head, body, tail = re.fullmatch(r"(.*?){{ range \.Messages }}(.*){{ end }}{{ end }}(.*)", template, re.S).groups()
    branches = re.split(r'{{ (?:else )?if eq \.Role "(\w+)" }}', body)[1:]
    by_role = dict(zip(branches[::2], branches[1::2], strict=True))
    said = "".join(by_role[role].replace("{{ .Content }}", content, 1) for role, content in turns)
    return head + said + tail


@pytest.mark.parametrize(
    "jinja", [CHATML, DEFAULT, ALPACA, PHI3, GLM4], ids=["chatml", "default system", "alpaca", "phi 3", "glm 4"]
)
def test_the_template_says_what_the_chat_template_says(jinja):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = jinja
    roles = roles_of(tokenizer)
    assert roles.system == ("You help." if jinja == DEFAULT else None)
    for turns in CONVERSATIONS:
        messages = [{"role": role, "content": content} for role, content in turns]
        expected = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        given = turns if turns[0][0] == "system" or roles.system is None else [("system", roles.system), *turns]
        assert evaluated(go_template(roles), given) == expected


@pytest.mark.parametrize("trimmed", [True, False])
def test_a_template_that_takes_blanks_away_is_told_of_in_the_card(trimmed):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = LLAMA3 if trimmed else LLAMA3.replace(" | trim", "")
    roles = roles_of(tokenizer)
    assert roles.trims is trimmed
    assert ("neither begin nor end with them" in usage_of(roles)) is trimmed


def test_what_the_reader_puts_first_by_itself_is_left_out():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = LLAMA3.replace(" | trim", "")
    messages = [{"role": "user", "content": "Hi"}]
    expected = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    roles = roles_of(tokenizer, begin="<|endoftext|>")
    assert "<|endoftext|>" + evaluated(go_template(roles), [("user", "Hi")]) == expected
    assert stops_of(tokenizer, roles) == ["<|im_end|>"]


def test_an_answer_ends_at_the_token_that_the_template_puts_behind_it_whatever_the_end_token_is():
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = "<|endoftext|>"
    assert stops_of(tokenizer, roles_of(tokenizer)) == ["<|endoftext|>", "<|im_end|>"]


@pytest.mark.parametrize(
    "jinja",
    [
        CHATML.replace("message['content']", "message['content'] | upper"),
        CHATML.replace("{% for message in messages %}", "{% for message in messages[-2:] %}"),
        "{% for message in messages %}{{ message.content }}{{ loop.index }}{% endfor %}",
    ],
    ids=["changed", "shortened", "counted"],
)
def test_a_template_that_does_more_is_refused(jinja):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = jinja
    with pytest.raises(ExportError, match="cannot be said without Jinja"):
        roles_of(tokenizer)


@shows("temperature", "top_p", "repeat_penalty", "context", "system")
def test_the_model_file_names_the_gguf_and_says_what_was_asked(run):
    made = run.export(
        Ollama(quantization="f16", temperature=0.7, top_p=0.9, repeat_penalty=1.1, context=512, system="Be kind.")
    )
    text = (made.folder / "Modelfile").read_text()
    assert text.startswith("FROM ./tiny-F16.gguf\nTEMPLATE ")
    assert (made.folder / "tiny-F16.gguf").is_file()
    for line in ("temperature 0.7", "top_p 0.9", "repeat_penalty 1.1", "num_ctx 512", 'stop "<|im_end|>"'):
        assert f"\nPARAMETER {line}\n" in text
    assert '\nSYSTEM """Be kind."""\n' in text
    assert made.verification.kl < 0.01 * made.verification.base_kl
    plain = run.export("ollama", folder=str(made.folder.parent / "plain"), rows=1)
    written = (plain.folder / "Modelfile").read_text()
    assert "temperature" not in written
    assert "SYSTEM" not in written
