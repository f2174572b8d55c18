"""Bad input through the front door, on a tiny model: each message says what, why and what to do."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

import tunekit as tk
from tunekit import errors
from tunekit.testing import save_tiny_model
from tunekit.values import MEASURED

CHAT = [
    {"messages": [{"role": "user", "content": f"What is {n}?"}, {"role": "assistant", "content": f"It is {n}."}]}
    for n in range(12)
]
STAGE = {"sft": {"learning_rate": 1e-3, "checkpoint": {"every": 2}, "batch": {"rows": 2}}}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny_model(tmp_path_factory.mktemp("bad_input") / "model"))


def pipeline(model: str, data: Any = CHAT, use: Any = None, **options: Any) -> tk.Pipeline:
    stage = {"sft": {**STAGE["sft"], **options}}
    return tk.Pipeline(model, data, {"lora": {"rank": 2}} if use is None else use, [stage])


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("no/such/folder", r"no/such/folder"),
        ("pkg:no_such_package", r"no_such_package"),
        ("./missing.gguf", r"missing\.gguf"),
    ],
)
def test_a_model_that_is_not_there_is_named_with_what_to_do(name, said, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(errors.TunekitError, match=said) as caught:
        pipeline(name).plan()
    assert ";" in str(caught.value)


def test_a_tokenizer_without_a_chat_template_cannot_take_chat_data(tmp_path, model):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path / "bare")
    (tmp_path / "bare" / "chat_template.jinja").unlink(missing_ok=True)
    AutoModelForCausalLM.from_pretrained(model).save_pretrained(tmp_path / "bare")
    with pytest.raises(errors.DataError, match="chat template"):
        pipeline(str(tmp_path / "bare")).plan()


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"messages": None}, r"row 2"),
        ({"messages": 7}, r"row 2.*is a number, expected a list"),
        ({"messages": [{"role": "user", "content": "alone"}]}, r"row 2.*assistant"),
        ({"messages": [{"role": "user"}, {"role": "assistant", "content": "x"}]}, r"row 2.*content"),
        ({"messages": [{"role": "asistant", "content": "x"}]}, r"row 2.*asistant.*assistant"),
    ],
)
def test_a_row_that_cannot_be_used_is_named_by_number_with_what_to_do(model, row, said):
    with pytest.raises(errors.DataError, match=said) as caught:
        pipeline(model, [CHAT[0], row, CHAT[1]]).plan()
    assert caught.value.problems[0].remedy


def test_a_missing_column_is_named_with_those_that_are_there(model):
    with pytest.raises(errors.DataError, match=r"question, reply"):
        pipeline(model, [{"question": "a", "reply": "b"}]).plan()


def test_an_empty_file_is_named(model, tmp_path):
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(errors.DataError, match=r"empty\.jsonl"):
        pipeline(model, str(tmp_path / "empty.jsonl")).plan()


def test_rows_whose_every_label_is_masked_stop_the_plan(model):
    with pytest.raises(errors.DataError, match="row 1"):
        pipeline(model, batch={"max_length": 4, "rows": 2}).plan()


def test_rows_that_cannot_be_trained_on_are_left_out_and_told_where_the_source_says_so(model, tmp_path):
    masked = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "x", "weight": 0}]}
    data = {"rows": [CHAT[0], masked, CHAT[1], {"messages": 7}], "bad_rows": "drop"}
    pipeline(model, data, batch={"max_length": 64, "rows": 2}).run(tmp_path / "run")
    account = account_of(tmp_path / "run")
    assert (account["rows"], account["kept"], account["sequences"]) == (4, 2, 2)
    places = [place for told in account["left_out"].values() for place in told["where"]]
    assert sorted(place.rpartition(", ")[2] for place in places) == ["row 2", "row 4"]


def test_sequences_over_the_limit_are_counted_in_plan_and_record(model, tmp_path):
    long = [
        {"messages": [{"role": "user", "content": "Go"}, {"role": "assistant", "content": "five and six " * n}]}
        for n in (1, 1, 40, 50)
    ]
    made = pipeline(model, long, batch={"max_length": 64, "rows": 2})
    assert made.plan().estimate.data[0].too_long == 2
    made.run(tmp_path / "run")
    account = account_of(tmp_path / "run")
    assert account["cut"]["count"] == 2
    assert account["cut"]["where"][0].endswith("row 3")
    assert account["tokens_cut"] > 0


def account_of(folder: Path) -> dict[str, Any]:
    """The account of the only source of the only stage."""
    (stage,) = json.loads((folder / "data.json").read_text()).values()
    (account,) = stage.values()
    return account


def test_a_loss_that_is_no_number_stops_and_keeps_the_last_good_checkpoint(model, tmp_path):
    made = pipeline(
        model, use={"precision": {"compute": "fp32"}}, learning_rate=1e30, epochs=4, max_grad_norm=0,
        checkpoint={"every": 1}, schedule={"shape": "constant"},
    )  # fmt: skip
    with pytest.raises(errors.DivergedError, match=r"no.* finite number .*lower stages\.0\.sft\.learning_rate"):
        made.run(tmp_path / "run")
    state = json.loads((tmp_path / "run" / "run.json").read_text())
    assert state["status"] == "failed"
    assert list((tmp_path / "run").glob("stage-1-sft/checkpoints/step-*/complete.json"))


def interrupting(step: int) -> Any:
    def watch(event: tk.Event) -> None:
        if event.kind == "step" and event.step == step:
            os.kill(os.getpid(), signal.SIGINT)

    return watch


def test_ctrl_c_saves_says_how_to_go_on_and_reaches_the_same_numbers(model, tmp_path):
    whole = pipeline(model).run(tmp_path / "whole")
    folder = tmp_path / "run"
    with pytest.raises(errors.InterruptedRunError, match=f"tunekit resume {folder}"):
        pipeline(model).run(folder, watchers=[interrupting(3)])
    assert json.loads((folder / "run.json").read_text())["status"] == "interrupted"
    resumed = tk.resume_run(folder)
    assert steps(resumed) == steps(whole)
    assert weights(resumed) == weights(whole)


def test_a_chain_of_stages_stopped_in_its_second_reaches_the_same_numbers(model, tmp_path):
    def chain() -> tk.Pipeline:
        return tk.Pipeline(model, CHAT, {"lora": {"rank": 2}}, [STAGE, {"sft": {**STAGE["sft"], "supervise": "all"}}])

    whole = chain().run(tmp_path / "whole")
    seen: list[tk.Event] = []

    def second_stage(event: tk.Event) -> None:
        seen.append(event)
        if event.kind == "step" and event.step == 3 and sum(each.kind == "finished" for each in seen) == 1:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(errors.InterruptedRunError):
        chain().run(tmp_path / "run", watchers=[second_stage])
    resumed = tk.resume_run(tmp_path / "run")
    assert [stage["index"] for stage in resumed.record.finished_stages()] == [0, 1]
    assert steps(resumed) == steps(whole)
    assert weights(resumed) == weights(whole)


def steps(run: tk.Run) -> list[dict[str, Any]]:
    """What must be equal: all numbers but those that measure time and memory."""
    return [{name: value for name, value in line.items() if name not in MEASURED} for line in run.metrics]


def weights(run: tk.Run) -> bytes:
    assert run.adapter is not None
    return Path(run.adapter, "adapter_model.safetensors").read_bytes()
