"""A quantiser rounds the language model alone; an adapter learns on it, is merged, and is read elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

import tunekit as tk
from tunekit.values import Image, Message
from tunekit_transformers.quantizing import linear_layers
from tunekit_vision.parts import part_of
from tunekit_vision.testing import COLOURS, rows, still_processor

Models = Callable[[str], str]
CASES: list[tuple[str, dict[str, Any]]] = [
    ("llava", {"bnb": {}}),
    ("idefics3", {"bnb": {"bits": 8}}),
    ("llava", {"hqq": {"group": 32}}),
    ("idefics3", {"torchao": {}}),
]


def pipeline(model: str, pictures: Path, export: Any = (), steps: int = 40, **use: Any) -> tk.Pipeline:
    batch = {"rows": 4}
    stage = {
        "steps": steps,
        "learning_rate": 1e-2,
        "batch": batch,
        "checkpoint": {"every": 0},
        "evaluate": {"share": 0},
    }
    plugins = {"precision": {"compute": "fp32"}, "vision": {}, "lora": {"rank": 8}, **use}
    return tk.Pipeline(model, rows(pictures, 1), use=plugins, stages=[{"sft": stage}], export=export)


def answers(talk: Any, pictures: Path) -> dict[str, str]:
    found = {}
    for name in COLOURS:
        question = Message("user", "What colour?", images=(Image(str(pictures / f"{name}.png")),))
        found[name] = talk.chat([question], max_new_tokens=4)
    return found


def rounded(layer: Any) -> bool:
    """Whether a layer, or the one below its adapter, holds anything but ordinary weights."""
    base = getattr(layer, "base_layer", layer)
    return type(base) is not torch.nn.Linear or type(base.weight) is not torch.nn.Parameter


def weights(plan: tk.Plan) -> int:
    assert plan.estimate is not None
    return plan.estimate.memory["weights"]


@pytest.mark.parametrize(("family", "quantizer"), CASES, ids=str)
def test_an_adapter_learns_to_tell_images_apart_and_what_sees_is_not_rounded(
    models: Models, pictures: Path, tmp_path: Path, family: str, quantizer: dict[str, Any]
) -> None:
    """Both exports are compared with the trained model as they are made, and fail where they are another."""
    use = {"vision": {"freeze": ["tower", "projector"]}, **quantizer}
    run = pipeline(models(family), pictures, [{"merged": {}}, {"adapter": {}}], **use).run(tmp_path / "run")
    told = {name: name for name in COLOURS}
    assert answers(run, pictures) == answers(tk.open_run(tmp_path / "run"), pictures) == told
    plain = tk.open_model(models(family), use={"precision": {"compute": "fp32"}, "vision": {}}).bundle.model
    trained = run.bundle.model.get_base_model()
    linear = {name for name in linear_layers(plain) if name != "lm_head"}
    language = {name for name in linear if part_of(name) == "language"}
    assert {name for name in linear if rounded(trained.get_submodule(name))} == language
    seeing = {name: value for name, value in plain.state_dict().items() if part_of(name) != "language"}
    kept = trained.state_dict()
    assert len(seeing) > len(linear - language) > 0
    assert all(torch.equal(kept[name], value) for name, value in seeing.items())
    merged = run.exports["merged"]
    assert getattr(AutoConfig.from_pretrained(merged), "quantization_config", None) is None
    assert answers(tk.open_model(str(merged), use=["vision"]), pictures) == told
    assert "AutoModelForImageTextToText" in (run.exports["adapter"] / "README.md").read_text()


def test_pixels_of_many_images_in_a_row_are_seen_over_a_rounded_model(
    models: Models, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = models("qwen2_vl")
    monkeypatch.setattr("transformers.AutoProcessor.from_pretrained", lambda *_, **__: still_processor(folder))
    run = pipeline(folder, pictures, bnb={}).run(tmp_path / "run")
    assert answers(run, pictures) == {name: name for name in COLOURS}


def test_the_plan_counts_only_what_is_rounded(models: Models, pictures: Path) -> None:
    model = tk.open_model(models("llava"), use=["vision"]).bundle.model
    shapes = [
        layer.weight.shape
        for name, layer in linear_layers(model).items()
        if part_of(name) == "language" and name != "lm_head"
    ]
    saved = sum(rows * columns * 4 - (rows * columns + 4 * rows) for rows, columns in shapes)  # a scale for each row
    dense, eight = (weights(pipeline(models("llava"), pictures, **more).plan()) for more in ({}, {"bnb": {"bits": 8}}))
    assert dense - eight == saved


def test_a_layer_of_the_language_model_may_be_skipped_as_well(models: Models, pictures: Path, tmp_path: Path) -> None:
    run = pipeline(models("llava"), pictures, steps=1, bnb={"skip": ["down_proj"]}).run(tmp_path / "run")
    trained = run.bundle.model.get_base_model()
    language = [name for name in linear_layers(trained) if part_of(name) == "language" and "lora" not in name]
    kept = {
        name.removesuffix(".base_layer").rpartition(".")[2]
        for name in language
        if not rounded(trained.get_submodule(name))
    }
    assert kept == {"down_proj", "lm_head"}
