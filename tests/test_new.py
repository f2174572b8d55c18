"""`tunekit new plugin`: what it writes works at once, in an environment that knows nothing of this repository."""

from __future__ import annotations

import json
import os
import site
import subprocess
import sys
import venv
from pathlib import Path

import pytest
import tomllib

from tunekit.catalog import Catalog
from tunekit.cli.app import run
from tunekit.cli.new import Hook, NewPluginError, check_name, write_plugin

ROOT = Path(__file__).resolve().parent.parent
HOOKS = [hook.value for hook in Hook]
NEEDED = ["tunekit-transformers", "tunekit-train", "tunekit-formats", "tunekit-templates"]


class Fresh:
    """A new environment outside the repository: our wheels are installed in it, everything else is borrowed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        venv.create(folder / "venv", with_pip=False, symlinks=True)
        self.bin = folder / "venv" / "bin"
        home = next((folder / "venv").glob("lib/python*/site-packages"))
        (home / "borrowed.pth").write_text("\n".join(site.getsitepackages()) + "\n")

    def install(self, *sources: Path) -> None:
        """Build wheels and install them, asking no index."""
        wheels = self.folder / "wheels"
        pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
        build = ["wheel", "--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", str(wheels)]
        subprocess.run([*pip, *build, *map(str, sources)], check=True, cwd=self.folder)
        names = [source.name.replace("-", "_") if source != ROOT else "tunekit_core" for source in sources]
        files = [str(next(wheels.glob(f"{name}-*.whl"))) for name in names]
        target = ["--python", str(self.bin / "python")]
        subprocess.run([*pip, *target, "install", "--no-deps", "--no-index", "--force-reinstall", *files], check=True)

    def run(self, program: str, *arguments: str) -> str:
        """Run a program of the environment and return what it wrote."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "TUNEKIT"))}
        done = subprocess.run(
            [str(self.bin / program), *arguments],
            capture_output=True,
            text=True,
            cwd=self.folder,
            env={**kept, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Fresh:
    """The environment, with a new plugin of every kind written, built and installed in it."""
    fresh = Fresh(tmp_path_factory.mktemp("fresh"))
    fresh.install(ROOT, *(ROOT / "plugins" / name for name in NEEDED))
    for hook in HOOKS:
        fresh.run("tunekit", "new", "plugin", f"fresh-{hook}", "--hook", hook)
    fresh.install(*(fresh.folder / f"tunekit-fresh-{hook}" for hook in HOOKS))
    return fresh


@pytest.fixture(scope="module")
def recipe(fresh: Fresh) -> str:
    """One recipe in which all seven new plugins take part."""
    from tunekit.testing import save_tiny_model

    save_tiny_model(fresh.folder / "model")
    rows = [{"question": f"What is {number}?", "answer": f"It is {number}."} for number in range(8)]
    (fresh.folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (fresh.folder / "recipe.yaml").write_text(
        "model: model\n"
        "data: {path: rows.jsonl, format: fresh-format}\n"
        "use: {fresh-format: {system: Be brief.}, fresh-precision: {}, fresh-patch: {}, fresh-adapter: {},\n"
        "      fresh-optimizer: {}, fresh-infer: {}}\n"
        "stages: [{fresh-stage: {epochs: 4, learning_rate: 0.01}}]\n"
        "output: run\n"
    )
    return "recipe.yaml"


def test_the_wheels_are_what_the_fresh_environment_imports(fresh):
    code = "import tunekit, tunekit_fresh_patch; print(tunekit.__file__, tunekit_fresh_patch.__file__)"
    assert all(Path(file).is_relative_to(fresh.folder) for file in fresh.run("python", "-c", code).split())


def test_the_new_plugins_are_listed_with_what_they_do(fresh):
    listed = {row["name"]: row for row in json.loads(fresh.run("tunekit", "plugins", "--json"))}
    assert {listed[f"fresh-{hook}"]["status"] for hook in HOOKS} == {"available"}
    assert listed["fresh-patch"]["hooks"] == ["tunekit_patch"]
    assert listed["fresh-patch"]["summary"].startswith("Word dropout")


def test_the_new_plugins_pass_the_conformance_kit(fresh):
    folders = [f"tunekit-fresh-{hook}" for hook in HOOKS]
    filters = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]["filterwarnings"]
    strict = [option for each in filters for option in ("-W", each)]  # libraries that are borrowed as well
    options = ["-q", "--import-mode=importlib", "-p", "no:cacheprovider", *strict]
    assert " passed" in fresh.run("python", "-m", "pytest", *options, *folders)


def test_a_recipe_that_uses_them_all_plans_trains_and_answers(fresh, recipe):
    plan = json.loads(fresh.run("tunekit", "plan", recipe, "--json"))
    assert plan["owners"]["tunekit_optimizer"] == "fresh-optimizer"
    assert {f"fresh-{hook}" for hook in HOOKS} <= {step["plugin"] for step in plan["steps"]}
    assert plan["precision"]["reason"] == "fp32 for everything was asked for"
    outcome = json.loads(fresh.run("tunekit", "train", recipe, "--json"))
    assert outcome["status"] == "finished"
    (stage,) = outcome["stages"]
    assert stage["metrics"]["train_loss_last"] < stage["metrics"]["train_loss_first"]
    (answer,) = json.loads(
        fresh.run("tunekit", "chat", "run", "--ask", "What is 3?", "--json", "--max-new-tokens", "5")
    )
    assert answer["question"] == "What is 3?"


@pytest.mark.parametrize("hook", HOOKS)
def test_what_is_written_is_complete(tmp_path, hook):
    made = write_plugin("word-play", Hook(hook), tmp_path)
    assert made == tmp_path / "tunekit-word-play"
    package = made / "src" / "tunekit_word_play"
    base = "Stage" if hook == "stage" else "Plugin"
    assert f"class WordPlay({base}[WordPlayConfig]):" in (package / "__init__.py").read_text()
    assert (package / "py.typed").is_file()
    assert (made / "tests" / "test_conformance.py").is_file()
    pyproject = (made / "pyproject.toml").read_text()
    assert 'word-play = "tunekit_word_play:WordPlay"' in pyproject
    assert '"tunekit-core"' in pyproject
    assert not any("${" in path.read_text() for path in made.rglob("*") if path.is_file())


def test_a_name_that_is_also_a_word_of_ours_gets_a_class_of_its_own(tmp_path):
    made = write_plugin("report", Hook.PATCH, tmp_path)
    assert "class ReportPlugin(Plugin[" in (made / "src" / "tunekit_report" / "__init__.py").read_text()


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [
        ("My Plugin", "my-plugin"),
        ("2fast", "my-2fast"),
        ("tunekit-neat", "neat"),
        ("über", "ber"),
        ("-", "my-plugin"),
        ("Upper", "upper"),
    ],
)
def test_what_is_no_name_is_refused_with_one_that_is(name, suggestion):
    with pytest.raises(NewPluginError, match=f"write it like '{suggestion}'"):
        check_name(name, Catalog([]))
    check_name(suggestion, Catalog([]))


def test_the_name_of_an_installed_plugin_is_refused_with_a_free_one(world):
    with pytest.raises(NewPluginError, match=r"'sizes' is taken by .*; choose another, such as 'my-sizes'"):
        check_name("sizes", Catalog.discover())


def test_the_name_of_an_installed_distribution_is_refused(tmp_path):
    with pytest.raises(NewPluginError, match="'core' is taken by tunekit-core"):
        write_plugin("core", Hook.PATCH, tmp_path)


def test_an_existing_folder_is_left_as_it_is(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    kept = tmp_path / "tunekit-neat" / "kept.txt"
    kept.parent.mkdir()
    kept.write_text("mine")
    assert run(["new", "plugin", "neat"]) == 2
    assert "tunekit-neat exists already; choose another name" in capsys.readouterr().err
    assert [path.name for path in kept.parent.iterdir()] == ["kept.txt"]


def test_the_program_says_what_it_wrote_and_what_to_do_next(tmp_path, capsys):
    assert run(["new", "plugin", "neat", "--hook", "format", "--folder", str(tmp_path)]) == 0
    said = capsys.readouterr().out.replace("\n", "")
    assert "src/tunekit_neat/__init__.py" in said
    assert "pip install --editable" in said
    assert run(["new", "plugin", "neater", "--folder", str(tmp_path), "--json"]) == 0
    assert "README.md" in json.loads(capsys.readouterr().out)["files"]
