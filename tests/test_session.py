"""Adapter sessions: one loaded base, adapters by name, each exactly what it would be by itself."""

from __future__ import annotations

import gc
import json
import weakref
from pathlib import Path
from typing import Any

import pytest

import tunekit as tk
from tunekit.certify.comparing import TIMED
from tunekit.errors import PlanError, RecipeError, RunFolderError, TunekitError
from tunekit.testing import save_tiny_model

FIRST = [{"instruction": f"What is {number} and one?", "output": f"It is {number + 1}."} for number in range(6)]
SECOND = [{"instruction": f"Name number {number}.", "output": "The quick brown fox."} for number in range(6)]
STAGES = [{"sft": {"steps": 2, "learning_rate": 2e-2, "batch": {"rows": 3}}}]
QUESTIONS = ["What is two?", "Name number one."]
USE = {"lora": {"rank": 4}}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny_model(tmp_path_factory.mktemp("session") / "model"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def session(model: str, folder: Path) -> tk.Session:
    """With `first` and `second` trained, in this order; what `first` and the base said before is kept."""
    made = tk.Session(model, USE)
    made.said = {None: said(made, None)}  # type: ignore[attr-defined]
    made.run = made.train("first", FIRST, STAGES, folder / "first")  # type: ignore[attr-defined]
    made.said["first"] = said(made, "first")  # type: ignore[attr-defined]
    made.weights = weights(made, "first")  # type: ignore[attr-defined]
    made.train("second", SECOND, STAGES, folder / "second")
    return made


def said(session: tk.Session, name: str | None) -> tuple[Any, ...]:
    """A sampled answer, and the exact perplexity of texts."""
    sampled = session.chat(QUESTIONS[0], name, max_new_tokens=8, temperature=1.0, seed=1)
    return sampled, session.perplexity(QUESTIONS, name)


def weights(session: tk.Session, name: str) -> dict[str, list[float]]:
    named = session._carried.bundle.model.named_parameters()
    return {key: each.detach().flatten().tolist() for key, each in named if f".adapter_{name}." in key}


def numbers(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if not TIMED.search(name)} for line in lines]


def test_training_another_adapter_changes_neither_the_first_nor_the_base(session: Any) -> None:
    assert session.active == "second"
    assert weights(session, "first") == session.weights
    assert said(session, "first") == session.said["first"]
    assert said(session, None) == session.said[None]
    assert session.active == "second", "asking another is not switching"
    assert len({said(session, name)[1] for name in (None, "first", "second")}) == 3


def test_the_base_is_the_model_that_nobody_trained(session: Any, model: str) -> None:
    untrained = tk.open_model(model)
    assert untrained.perplexity(QUESTIONS) == session.perplexity(QUESTIONS, None)
    assert untrained.ask(QUESTIONS, max_new_tokens=6) == session.ask(QUESTIONS, None, max_new_tokens=6)


def test_a_run_of_a_session_is_the_run_of_a_pipeline(session: Any, model: str, folder: Path, tmp_path: Path) -> None:
    """The second of two in one session: its files, its numbers and its weights."""
    stages = [{"sft": {**STAGES[0]["sft"], "adapter": "second"}}]
    alone = tk.Pipeline(model, SECOND, USE, stages).run(tmp_path / "alone")
    mine, other = folder / "second", alone.folder
    files = [{str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()} for run in (mine, other)]
    assert files[0] == files[1]
    assert numbers(mine) == numbers(other)
    saved = [run / "stage-1-sft/adapter/adapter_model.safetensors" for run in (mine, other)]
    assert saved[0].read_bytes() == saved[1].read_bytes()
    assert tk.open_run(mine).perplexity(QUESTIONS) == session.perplexity(QUESTIONS, "second")


def test_a_run_answers_with_its_own_adapter_whichever_is_active(session: Any) -> None:
    assert session.run.perplexity(QUESTIONS) == session.said["first"][1]
    assert list(session.run.adapters) == ["first"]
    pieces = session.run.stream(QUESTIONS[0], max_new_tokens=6)
    assert "".join(pieces) == session.chat(QUESTIONS[0], "first", max_new_tokens=6)


def test_adapters_and_base_are_compared_side_by_side(session: Any) -> None:
    found = session.compare(QUESTIONS, ["first", None], max_new_tokens=5)
    assert found.answers["first"] == [session.chat(each, "first", max_new_tokens=5) for each in QUESTIONS]
    assert found.answers[None] == [session.chat(each, None, max_new_tokens=5) for each in QUESTIONS]
    assert list(session.compare(QUESTIONS[:1], max_new_tokens=1).answers) == [None, "first", "second"]
    assert "the base" in found._repr_html_()
    assert repr(session) == f"Session({session.model!r}: first, second (active))"
    assert "<table>" in session._repr_html_()


def test_switching_is_for_all_that_is_asked_afterwards(session: Any) -> None:
    session.switch("first")
    assert session.perplexity(QUESTIONS) == session.said["first"][1]
    session.switch(None)
    assert session.perplexity(QUESTIONS) == session.said[None][1]
    session.switch("second")
    with pytest.raises(TunekitError, match="there is no adapter named 'third'; the model carries first, second"):
        session.switch("third")


def test_an_adapter_is_trained_on_from_what_it_is(session: Any, model: str, tmp_path: Path) -> None:
    """And the record says from where, so that a pipeline of the same recipe reaches the same weights."""
    other = tk.Session(model, USE)
    other.add("again", session.adapters["first"])
    assert other.perplexity(QUESTIONS) == session.said["first"][1]
    run = other.train("again", SECOND, STAGES, tmp_path / "again")
    stages = [{"sft": {**STAGES[0]["sft"], "adapter": {"start": str(session.adapters["first"])}}}]
    alone = tk.Pipeline(model, SECOND, USE, stages).run(tmp_path / "alone")
    saved = [each / "stage-1-sft/adapter/adapter_model.safetensors" for each in (run.folder, alone.folder)]
    assert saved[0].read_bytes() == saved[1].read_bytes()
    with pytest.raises(TunekitError, match="there is an adapter named 'again' already"):
        other.add("again", session.adapters["first"])


def test_training_that_fails_leaves_the_adapter_as_it_was(session: Any, tmp_path: Path) -> None:
    def fail(event: tk.Event) -> None:
        if event.kind == "step":
            raise KeyboardInterrupt

    for name in ("first", "third"):
        with pytest.raises(tk.InterruptedRunError):
            session.train(name, SECOND, STAGES, tmp_path / name, [fail])
    assert list(session.adapters) == ["second", "first"]
    assert said(session, "first") == session.said["first"]
    session.switch("second")


def test_a_dropped_adapter_gives_its_memory_back(model: str, folder: Path, session: Any) -> None:
    """Nobody holds its weights any more, and the base holds as many bytes as before it came."""
    other = tk.Session(model, USE)
    other.add("first", folder / "first")
    before = stored(other)
    other.train("big", SECOND, [{"sft": {**STAGES[0]["sft"], "use": {"lora": {"rank": 64}}}}], folder / "big")
    held = [weakref.ref(each) for name, each in other._carried.bundle.model.named_parameters() if "adapter_big" in name]
    size = sum(each().nbytes for each in held)  # type: ignore[union-attr]
    assert stored(other) - before == size > 400_000
    other.drop("big")
    gc.collect()
    assert not [each for each in held if each() is not None]
    assert stored(other) == before
    assert list(other.adapters) == ["first"]


def stored(session: tk.Session) -> int:
    return sum(each.nbytes for each in session._carried.bundle.model.parameters())


def test_a_new_adapter_goes_on_top_of_one_that_was_merged(model: str, folder: Path, session: Any) -> None:
    exact = {"precision": {"compute": "fp32"}}
    other = tk.Session(model, {**USE, **exact})
    other.add("first", folder / "first")
    run_before = other._talk("first")
    expected = other.perplexity(QUESTIONS)
    other.merge("first", folder / "merged")
    assert (other.model, other.adapters) == (str(folder / "merged"), {})
    assert other.perplexity(QUESTIONS) == pytest.approx(expected, rel=1e-5)
    assert tk.open_model(other.model, exact).perplexity(QUESTIONS) == other.perplexity(QUESTIONS)
    run = other.train("top", SECOND, STAGES, folder / "top")
    assert run.record.recipe.model == other.model
    assert tk.open_run(folder / "top").perplexity(QUESTIONS) == other.perplexity(QUESTIONS)
    with pytest.raises(TunekitError, match=r"first stands on .*, and the base is .*merged now"):
        run_before.chat("What is two?")
    with pytest.raises(RunFolderError, match="is there already"):
        other.merge("top", folder / "merged")


def test_what_cannot_be_a_session_is_refused(model: str, session: Any, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="pissa changes the base, on which every adapter of a session stands"):
        tk.Session(model, {"lora": {}, "pissa": {}, "precision": {"compute": "fp32"}})
    with pytest.raises(PlanError, match="names no plugin that carries several adapters"):
        tk.Session(model, {"freeze": {}})
    with pytest.raises(RecipeError, match=r"adapter\.name: is 'a b'"):
        session.add("a b", tmp_path)
    with pytest.raises(RunFolderError, match="there is no folder"):
        session.add("new", tmp_path / "nothing")
