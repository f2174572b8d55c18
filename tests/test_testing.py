"""The conformance kit: each of its tests catches the fault it is there for, and its helpers are what they say."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import faults.backends
import faults.data
import faults.exports
import faults.models
import faults.plugins
import faults.rewards
import faults.tokenizers
import faults.training  # noqa: F401  (each of these registers its faults)
import pytest
from faults.plugins import Hears, install
from faults.registry import FAULTS, Fault, good

from tunekit import testing
from tunekit.cli.new import Hook
from tunekit.errors import PlanError
from tunekit.hooks import hookimpl
from tunekit.plugin import Plugin
from tunekit.testing import PluginSuite, runs
from tunekit.testing import plugins as plugin_suite
from tunekit.values import Event, Message

SUITES = [getattr(testing, name) for name in testing.__all__ if name.endswith("Suite")]


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A folder on sys.path for a fake distribution, which the kit looks at afresh."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    for cached in (runs.installed, plugin_suite._imported_by):
        cached.cache_clear()
    yield folder
    sys.modules.pop("fake_hears", None)
    for cached in (runs.installed, plugin_suite._imported_by):
        cached.cache_clear()


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_a_fault_is_caught_by_the_test_that_is_there_for_it(
    fault: Fault, tmp_path: Path, site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = inspect.signature(fault.make).parameters
    given = {"site": site, "monkeypatch": monkeypatch}
    suite = fault.make(**{name: given[name] for name in wanted})
    test = getattr(suite, fault.test)
    arguments = dict(fault.arguments)
    for name in inspect.signature(test).parameters:
        if name == "tmp_path":
            arguments[name] = tmp_path
        elif name == "monkeypatch":
            arguments[name] = monkeypatch
        elif name == "backend":
            arguments[name] = suite.open(tmp_path)
    with pytest.raises((AssertionError, pytest.fail.Exception), match=fault.says):
        test(**arguments)


@pytest.mark.parametrize("suite", SUITES, ids=lambda suite: suite.__name__)
def test_every_test_of_the_kit_has_a_fault_that_it_catches(suite: type) -> None:
    tests = {name for name in vars(suite) if name.startswith("test_")}
    assert tests == {fault.test for fault in FAULTS if fault.suite is suite}


INSTALLED_IN_A_PROJECT = """
import sys
import importlib_metadata  # takes the place of the standard library's finder
from tunekit.testing.distributions import readme_of
sys.path.insert(0, sys.argv[1])
import fake_hears
print(readme_of(fake_hears.Hears, "fake-hears"))
"""


def test_an_installed_readme_is_read_beside_the_backport_and_inside_another_project(site: Path) -> None:
    install(site, readme="`loud` says how loud.")
    (site.parent / "pyproject.toml").write_text('[project]\nname = "another"\n')
    (site.parent / "README.md").write_text("Another project, whose environment this is.")
    done = subprocess.run(
        [sys.executable, "-c", INSTALLED_IN_A_PROJECT, str(site)], capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "`loud` says how loud.", done.stderr


def test_a_test_cannot_be_replaced_in_silence() -> None:
    with pytest.raises(TypeError, match=r"replaces a test of PluginSuite; mark it @pytest.mark.xfail"):

        class Replacing(PluginSuite):
            plugin = Hears()

            def test_every_option_is_described(self) -> None:
                """Look away."""


def test_a_test_cannot_be_taken_away_or_excused_without_a_reason() -> None:
    for replacement in (None, pytest.mark.xfail(lambda self: None), pytest.mark.skip(reason="slow")(lambda self: None)):
        with pytest.raises(TypeError, match="replaces a test"):
            type("Replacing", (PluginSuite,), {"test_every_option_is_described": replacement})


def test_a_test_can_be_replaced_with_a_reason() -> None:
    class Excused(PluginSuite):
        plugin = Hears()

        @pytest.mark.xfail(reason="the options are described elsewhere")
        def test_every_option_is_described(self) -> None:
            """Known."""

    assert Excused().plugin.config is not None


def test_helpers_of_a_suite_can_be_replaced_freely() -> None:
    class Other(PluginSuite):
        def make(self) -> Plugin[Any]:
            return Hears()

    assert Other().make().config is not None


@pytest.mark.parametrize("text", ["Which river?", "  two\n\nlines ", "naïve 北京 🎉", "<|im_end|> is no text"])
def test_the_tiny_tokenizer_gives_every_text_back(text: str) -> None:
    tokenizer = testing.tiny_tokenizer()
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=False) == text
    assert max(tokenizer(text)["input_ids"]) < testing.tiny_model().config.vocab_size


def test_the_tiny_tokenizer_has_merges_and_a_chat_template() -> None:
    tokenizer = testing.tiny_tokenizer()
    assert len(tokenizer("The river")["input_ids"]) < len("The river")
    turns = [{"role": "user", "content": "Hi"}]
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert text == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.convert_ids_to_tokens(tokenizer.eos_token_id) == "<|im_end|>"
    assert testing.tiny_model().config.eos_token_id == tokenizer.eos_token_id
    assert testing.tiny_model().config.pad_token_id == tokenizer.pad_token_id


def test_the_tiny_model_is_the_same_whatever_came_before() -> None:
    import torch

    first = testing.tiny_model()
    state = torch.random.get_rng_state()
    torch.randn(5)
    weights = (model.lm_head.weight for model in (first, testing.tiny_model(), testing.tiny_model(seed=1)))
    one, again, other = weights
    assert one.equal(again)
    assert not one.equal(other)
    torch.random.set_rng_state(state)
    testing.tiny_model()
    assert torch.random.get_rng_state().equal(state)


def test_a_tiny_bundle_is_stored_as_the_policy_says() -> None:
    assert {str(p.dtype) for p in testing.tiny_bundle(precision=testing.MIXED).model.parameters()} == {"torch.bfloat16"}
    assert testing.tiny_bundle(saved_adapter=Path("a")).saved_adapter == Path("a")


def test_a_saved_tiny_model_loads_as_it_was(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = testing.save_tiny_model(tmp_path / "model", dtype="bfloat16")
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    expected = testing.tiny_model(dtype="bfloat16").state_dict()
    assert all(value.equal(expected[name]) for name, value in loaded.state_dict().items())
    assert AutoTokenizer.from_pretrained(folder).chat_template == testing.tiny_tokenizer().chat_template


def test_a_plan_holds_the_plugins_in_order_and_says_what_does_not_fit() -> None:
    patch, adapter = good(Hook.PATCH).GoodPatch(), good(Hook.ADAPTER).GoodAdapter()
    plan = testing.plan_for(adapter, patch, machine=testing.fake_machine(cores=3))
    assert [step.plugin for step in plan.steps] == ["goodpatch", "goodadapter"]
    assert plan.machine.cores == 3

    class Needy(Hears):
        @property
        def requires(self) -> frozenset[str]:
            return frozenset({"a.stranger"})

    with pytest.raises(PlanError, match=r"needy needs 'a\.stranger'"):
        testing.plan_for(Needy())


def test_contexts_carry_what_they_are_given(tmp_path: Path) -> None:
    heard: list[Event] = []
    context = testing.stage_context(Hears(), folder=tmp_path / "stage", seed=3, watch=heard.append, resume=True)
    assert (context.seed, context.resume, context.key) == (3, True, "stages.0.stage")
    assert context.folder.is_dir()
    context.emit(Event("started", "stage"))
    assert [event.kind for event in heard] == ["started"]
    assert testing.run_context(folder=tmp_path, precision=testing.MIXED).precision is testing.MIXED


def test_rows_and_examples_are_numbered_from_1() -> None:
    rows = testing.rows_of([{"a": 1}, {"a": 2}])
    assert [(row.number, row.values["a"]) for row in rows.read()] == [(1, 1), (2, 2)]
    assert rows.columns == ("a",)
    (example,) = testing.examples_of([[Message("user", "Hi")]])
    assert example.row == 1
    examples = testing.conversations(20)
    assert sum(1 for _ in examples) == examples.account.kept == 20


def test_pairs_and_labelled_answers_are_of_the_kinds_they_are_named_after() -> None:
    pairs, answers = list(testing.preferences(20)), list(testing.labelled(20))
    assert {example.kind for example in pairs} == {"preference"}
    assert all(example.chosen != example.rejected for example in pairs)
    assert [example.label for example in answers] == [True, False] * 10
    assert len({example.messages for example in answers}) == 8


def test_hints_that_are_imported_for_type_checkers_only_are_compared_too() -> None:
    class Commands(Plugin[Any]):
        @hookimpl
        def tunekit_command(self, app: Any) -> None:
            """Add nothing."""

    from tunekit.hooks import HookSpecs
    from tunekit.testing.signatures import differences

    found = list(differences(Commands, "tunekit_command", HookSpecs.tunekit_command))
    assert found == ["tunekit_command: app is typing.Any, but the spec says <class 'typer.main.Typer'>"]
