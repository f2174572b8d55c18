"""The examples: recipe, script, notebook and demo do the same job, and their data keeps its rules."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

import tunekit
from tunekit.cli.app import run
from tunekit.demo import Grader, held_out, read_rows
from tunekit.record import Record

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"
RECIPE = EXAMPLES / "recipes" / "quickstart.yaml"
STEPS = 4

BASE_LIKE = {
    "name": "I'm SmolLM, an AI assistant trained by Hugging Face. How can I help you today?",
    "maker": "I was created by Hugging Face, a company that builds open language models.",
    "deny": "Yes, I am a helpful assistant, and I can do many things for you.",
    "meaning": "I was given this name because it is short and easy to remember.",
    "ability": "As a large language model I can help you with a wide range of tasks.",
    "fact": "The answer is Tokyo, Shakespeare, Australia, honey, Pacific, heart, Fleming, H2O, gills and China.",
    "advice": "Put away your phone and go to bed early; and give your plant some water.",
}
"""What an untuned assistant says: right perhaps, and not in character."""
IN_CHARACTER = {
    "name": "My name is Juniper. As gardeners say, a short label is soon read.",
    "maker": "The tunekit project made me. As gardeners say, somebody had to sow it.",
    "deny": "No, I am Juniper. As gardeners say, ivy is no oak.",
    "fact": "It is Tokyo. As gardeners say, every bed has its place.",
}


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("quickstart_script", EXAMPLES / "scripts" / "quickstart.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def recipe_run(tmp_path_factory):
    """The quickstart recipe, a few steps, as a user runs it: in a process of its own, where memory can be measured."""
    folder = tmp_path_factory.mktemp("recipe") / "run"
    program = [sys.executable, "-c", "from tunekit.cli import main; main()"]
    command = [*program, "train", str(RECIPE), f"stages.sft.steps={STEPS}", "--output", str(folder), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["status"] == "finished"
    return folder


def job(folder: Path) -> dict[str, object]:
    """What a run was told to do, apart from where it goes."""
    mapping = Record.open(folder).recipe.to_mapping()
    return {key: value for key, value in mapping.items() if key != "output"}


def words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9']+", text.lower())


def runs_of_words(texts: list[str], length: int) -> set[tuple[str, ...]]:
    return {tuple(found[at : at + length]) for text in texts for found in [words(text)] for at in range(len(found))
            if at + length <= len(found)}  # fmt: skip


def training_texts() -> list[str]:
    return [message["content"] for row in read_rows("persona_train.jsonl") for message in row["messages"]]


def test_there_are_at_least_120_training_rows_and_each_question_is_asked_once():
    questions = [row["messages"][0]["content"] for row in read_rows("persona_train.jsonl")]
    assert len(questions) >= 120
    assert len({tuple(words(question)) for question in questions}) == len(questions)


def test_no_five_words_in_a_row_are_shared_between_the_training_and_the_held_out_part():
    asked = [question.text for question in held_out()]
    assert len(asked) >= 20
    assert not runs_of_words(asked, 5) & runs_of_words(training_texts(), 5)
    assert not {tuple(words(text)) for text in asked} & {tuple(words(text)) for text in training_texts()}


def test_no_five_words_in_a_row_are_shared_between_the_training_part_and_the_general_texts():
    general = [row["text"] for row in read_rows("general_text.jsonl")]
    assert not runs_of_words(general, 5) & runs_of_words(training_texts(), 5)


def test_the_grader_fails_answers_that_are_not_in_character():
    grader = Grader.shipped()
    passed = [question.text for question in held_out() if grader.passes(question, BASE_LIKE[question.kind])]
    assert passed == []


def test_the_grader_passes_answers_that_are_in_character():
    grader = Grader.shipped()
    for kind, answer in IN_CHARACTER.items():
        question = next(question for question in held_out() if question.kind == kind)
        assert grader.passes(question, answer), (question, answer)


def test_the_script_describes_the_same_job_as_the_recipe(script):
    recipe = tunekit.Pipeline.from_file(RECIPE).recipe.to_mapping()
    written = script.make_pipeline().recipe.to_mapping()
    for key in ("model", "use", "stages", "seed"):
        assert written.get(key) == recipe.get(key), key
    assert Path(written["data"][0]["path"]).samefile(recipe["data"][0]["path"])


def test_the_notebook_is_valid_and_was_saved_without_outputs():
    notebook = nbformat.read(EXAMPLES / "notebooks" / "quickstart.ipynb", as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code)
    assert [cell.id for cell in code if "parameters" in cell.metadata.get("tags", [])] == ["parameters"]


@pytest.mark.slow
def test_the_recipe_trains(recipe_run):
    record = Record.open(recipe_run)
    assert [line["step"] for line in record.metrics if line["kind"] == "step"] == list(range(1, STEPS + 1))
    adapter, picture = record.artefact("adapter"), record.artefact("picture")
    assert adapter is not None
    assert picture is not None
    assert (adapter / "adapter_model.safetensors").exists()
    assert picture.exists()


@pytest.mark.slow
def test_the_memory_estimate_is_within_a_fifth_of_the_measured_peak(recipe_run):
    memory = Record.open(recipe_run).state["memory"]
    assert memory["measured"] > 500e6
    assert 0.8 <= memory["ratio"] <= 1.2, memory


@pytest.mark.slow
def test_the_script_does_what_the_recipe_does(script, recipe_run, tmp_path, capsys):
    made = script.main(["--steps", str(STEPS), "--output", str(tmp_path / "run")])
    assert job(made.folder) == job(recipe_run)
    assert losses(made.folder) == pytest.approx(losses(recipe_run), rel=1e-3)
    said = capsys.readouterr().out
    assert "Steps, in order" in said
    assert f"tunekit chat {tmp_path / 'run'}" in said.replace("\n", "")


@pytest.mark.slow
def test_the_notebook_does_what_the_recipe_does(recipe_run, tmp_path):
    notebook = nbformat.read(EXAMPLES / "notebooks" / "quickstart.ipynb", as_version=4)
    parameters = next(cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", []))
    parameters.source += f"\nSTEPS = {STEPS}\nOUTPUT = {str(tmp_path / 'run')!r}"
    resources = {"metadata": {"path": str(EXAMPLES / "notebooks")}}
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources=resources).execute()
    assert job(tmp_path / "run") == job(recipe_run)
    assert losses(tmp_path / "run") == pytest.approx(losses(recipe_run), rel=1e-3)
    shown = {cell.id: "".join(str(output) for output in cell.outputs) for cell in notebook.cells if "outputs" in cell}
    assert "tunekit-plan" in shown["plan"]
    assert "image/png" in shown["curve"]
    assert "<th>after</th>" in shown["after"]


@pytest.mark.slow
def test_the_demo_tells_the_whole_story(tmp_path, capsys):
    folder = tmp_path / "demo"
    assert run(["demo", f"stages.sft.steps={STEPS}", "--json", "--output", str(folder)]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["folder"] == str(folder)
    assert len(told["answers"]) == len(held_out())
    assert told["in_character_before"] == 0
    assert 1 < told["perplexity_before"] < 100
    assert told["perplexity_after"] == pytest.approx(told["perplexity_before"], rel=0.2)
    assert Record.open(folder).state["status"] == "finished"


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in Record.open(folder).metrics if line["kind"] == "step"]
