"""`tunekit data`: what it writes for people and for scripts, and how it ends."""

from __future__ import annotations

import json

import pytest
from looking_helpers import LOOKING, LOOKING_PLUGINS

from tunekit.cli.app import run


@pytest.fixture
def recipe(world, tmp_path, monkeypatch):
    world("fake-looking", LOOKING_PLUGINS, LOOKING)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text('{"text": "a>b"}\n{"text": "[red]>d"}\n')
    (tmp_path / "bad.jsonl").write_text('{"text": "a>b"}\n{"text": "one"}\n')
    path = tmp_path / "recipe.yaml"
    path.write_text("model: m\ndata: rows.jsonl\nuse: {letters: {}}\nstages: [teach, steps]\n")
    return str(path)


def test_good_data_ends_with_0(recipe, capsys):
    assert run(["data", recipe]) == 0
    text = capsys.readouterr().out
    assert "teach: every row" in text
    assert "steps: every row" in text
    assert "a run would start, on 2 of 2 rows" in text


def test_rows_that_stop_a_run_end_with_the_code_of_bad_data_after_all_is_shown(recipe, capsys):
    assert run(["data", recipe, "data=bad.jsonl", "--show", "1"]) == 2
    captured = capsys.readouterr()
    assert "a run would stop: 1 of 2 rows" in captured.out
    assert "a│>⟦b⟧" in captured.out
    assert captured.err == ""


def test_one_stage_and_the_first_rows_alone(recipe, capsys):
    assert run(["data", recipe, "data=bad.jsonl", "--stage", "teach", "--limit", "1"]) == 0
    text = capsys.readouterr().out
    assert "teach: the first row of each source" in text
    assert "steps" not in text


def test_a_stage_that_is_none_is_a_users_mistake(recipe, capsys):
    assert run(["data", recipe, "--stage", "sft"]) == 2
    assert "its stages are teach (0), steps (1)" in capsys.readouterr().err


def test_examples_and_rows_are_shown_token_by_token(recipe, capsys):
    assert run(["data", recipe, "--show", "1", "--stage", "teach"]) == 0
    assert capsys.readouterr().out.count("teach: rows.jsonl, row") == 1
    assert run(["data", recipe, "--row", "2", "--stage", "teach"]) == 0
    text = capsys.readouterr().out
    assert "teach: rows.jsonl, row 2" in text
    assert "[│r│e│d│]│>⟦d⟧" in text


def test_json_is_for_scripts(recipe, capsys):
    assert run(["data", recipe, "--json", "--show", "1", "data=bad.jsonl"]) == 2
    written = json.loads(capsys.readouterr().out)
    assert written["ok"] is False
    assert [(stage["stage"], stage["kept"]) for stage in written["stages"]] == [("teach", 1), ("steps", 2)]
    parts = written["shown"][0]["sequences"][0]["parts"]
    assert parts[2] == {"text": "b", "ids": [98], "weights": [1.0], "special": False}


def test_a_picture_is_drawn_where_asked(recipe, capsys, tmp_path):
    assert run(["data", recipe, "--picture", "lengths.png"]) == 0
    assert "picture: lengths.png" in capsys.readouterr().out
    assert (tmp_path / "lengths.png").read_bytes().startswith(b"\x89PNG")
