"""The program: output for people and for scripts, exit codes, no traceback for a user's mistake."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tunekit.cli.app import run


@pytest.fixture
def recipe(world, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    path = tmp_path / "recipe.yaml"
    path.write_text("model: m\ndata: rows.jsonl\nuse: {sizes: {}}\nstages: [{steps: {steps: 2}}]\noutput: runs/x\n")
    return str(path)


def test_plan_shows_a_table_or_json(recipe, capsys):
    assert run(["plan", recipe]) == 0
    assert "Steps, in order" in capsys.readouterr().out
    assert run(["plan", recipe, "--json", "stages.steps.steps=4"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["estimate"]["memory_bytes"] == {"weights": 110}
    assert {entry["name"]: entry["options"] for entry in plan["plugins"]}["steps"]["steps"] == 4


def test_train_resume_and_chat_follow_each_other(recipe, capsys, monkeypatch):
    assert run(["train", recipe, "stages.steps.stop_at=1"]) == 130
    assert "tunekit resume runs/x" in capsys.readouterr().err
    assert run(["resume", "runs/x"]) == 0
    assert "talk to it: tunekit chat runs/x" in capsys.readouterr().out
    assert run(["chat", "runs/x", "--ask", "abc", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [{"question": "abc", "answer": "cba"}]
    assert run(["chat", "m", "--ask", "abc"]) == 0
    assert capsys.readouterr().out == "cba\n"


def test_train_writes_json_for_scripts(recipe, capsys):
    assert run(["train", recipe, "--json", "--output", "runs/y"]) == 0
    written = json.loads(capsys.readouterr().out)
    assert (written["status"], written["folder"]) == ("finished", "runs/y")


def test_what_a_library_prints_does_not_spoil_the_json(world, recipe, capsys):
    code = """
from tunekit import Plugin, PluginConfig, hookimpl
from tunekit.values import Event
class Nothing(PluginConfig):
    pass
class Loud(Plugin[Nothing]):
    @hookimpl
    def tunekit_event(self, event: Event) -> None:
        print("[INFO] how are you?")
"""
    world("fake-loud", {"loud": "fake_loud:Loud"}, code)
    assert run(["train", recipe, "use.loud={}", "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["status"] == "finished"
    assert "how are you?" in captured.err


def test_a_users_mistake_ends_with_2_and_without_a_traceback(recipe, capsys):
    assert run(["train", recipe, "use.sises={}"]) == 2
    said = capsys.readouterr().err
    assert "did you mean 'sizes'?" in said
    assert "Traceback" not in said


def test_debug_shows_the_traceback(recipe):
    from tunekit.errors import PlanError

    with pytest.raises(PlanError):
        run(["--debug", "train", recipe, "use.sises={}"])


def test_a_plugins_failure_ends_with_1(recipe, capsys):
    assert run(["train", recipe, "use.transformers.fail=true"]) == 1
    assert "plugin transformers (fake-world 1.0) failed in tunekit_load_model" in capsys.readouterr().err


def test_the_version_is_that_of_the_core(capsys):
    from importlib.metadata import version

    assert run(["--version"]) == 0
    assert capsys.readouterr().out.strip() == version("tunekit-core")


def test_wrong_arguments_end_with_2(capsys):
    assert run(["plan"]) == 2
    assert run(["nonsense"]) == 2


def test_plugins_lists_what_is_installed(world, capsys):
    world("fake-bad", {"bad": "fake_bad:Bad"}, "raise RuntimeError('boom')")
    assert run(["plugins", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["bad"]["status"] == "broken"
    assert rows["steps"]["summary"] == "A stage that counts."
    assert run(["plugins"]) == 0
    assert "boom" in capsys.readouterr().out


def test_schema_goes_to_a_file_or_to_the_screen(world, capsys, tmp_path):
    assert run(["schema", "-o", str(tmp_path / "s.json")]) == 0
    assert run(["schema"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads((tmp_path / "s.json").read_text())


def test_a_plugin_adds_a_subcommand_that_is_imported_only_when_called(world, capsys):
    code = """
import typer
from tunekit import Plugin, PluginConfig, hookimpl
class Nothing(PluginConfig):
    pass
class Greeter(Plugin[Nothing]):
    @hookimpl
    def tunekit_command(self, app: typer.Typer) -> None:
        @app.command("greet")
        def greet(name: str = "you") -> None:
            print("hello", name)
"""
    world("fake-greet", {"greet": "fake_greet:Greeter"}, code, group="tunekit.commands")
    assert run(["--help"]) == 0
    assert "fake_greet" not in sys.modules
    capsys.readouterr()
    assert run(["greet", "--name", "Ada"]) == 0
    assert capsys.readouterr().out == "hello Ada\n"


def test_importing_tunekit_imports_almost_nothing():
    code = "import sys; before = set(sys.modules); import tunekit; print('\\n'.join(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {name for name in done.stdout.split() if name.partition(".")[0] not in sys.stdlib_module_names} == {
        "tunekit"
    }


def test_help_imports_neither_pydantic_nor_torch():
    code = (
        "import sys; from tunekit.cli.app import run; run(['--help'])\n"
        "assert not {'pydantic', 'torch', 'pluggy', 'yaml'} & set(sys.modules), 'too much'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
