"""Vision-language models train on images, with the loss of a plain computation, in the parts that were chosen."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image as Pillow
from transformers import AutoModelForImageTextToText, Blip2Config, DeepseekVLHybridConfig, FuyuConfig, InternVLConfig

import tunekit as tk
from tunekit.errors import DataError, InterruptedRunError, PlanError, TunekitError
from tunekit.testing import save_tiny_model
from tunekit.testing.options import shows
from tunekit.values import Image, Message
from tunekit_vision import Vision
from tunekit_vision.parts import FROZEN, freeze_, part_of, parts_of, refuse_rounding
from tunekit_vision.testing import COLOURS, rows, still_processor

Models = Callable[[str], str]
LORA = {"lora": {"rank": 4}}


def pipeline(model: str, data: Any, stage: dict[str, Any] | None = None, **use: Any) -> tk.Pipeline:
    options = {"epochs": 1, "learning_rate": 1e-2, "batch": {"rows": 4}, "checkpoint": {"every": 0}, **(stage or {})}
    plugins = {"precision": {"compute": "fp32"}, "vision": {}, **use}
    return tk.Pipeline(model, data, use=plugins, stages=[{"sft": options}])


def losses(run: tk.Run) -> list[float]:
    return [line["loss"] for line in run.metrics if line["kind"] == "step"]


def ask(run: Any, pictures: Path, colour: str) -> str:
    picture = Image(str(pictures / f"{colour}.png"))
    return str(run.chat([Message("user", "What colour?", images=(picture,))], max_new_tokens=4))


def plain_loss(model: str, pictures: Path, names: list[str]) -> float:
    """The loss of transformers alone: its processor on the template's text, its model on what comes of it."""
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(model)
    question = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What colour?"}]}
    texts, prompts = [], []
    for name in names:
        answer = {"role": "assistant", "content": [{"type": "text", "text": name}]}
        texts.append(processor.apply_chat_template([question, answer], tokenize=False))
        prompts.append(processor.apply_chat_template([question], tokenize=False, add_generation_prompt=True))
    images = [[Pillow.open(pictures / f"{name}.png").convert("RGB")] for name in names]
    given = processor(text=texts, images=images, return_tensors="pt", padding=True, padding_side="right")
    starts = processor(text=prompts, images=images, padding=True, padding_side="right", return_tensors="pt")
    labels = given["input_ids"].clone()
    end = processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
    for row, start in enumerate(starts["attention_mask"].sum(dim=1).tolist()):
        labels[row, :start] = -100
        ends = (given["input_ids"][row, start:] == end).nonzero()[0].item()
        labels[row, start + ends + 1 :] = -100
    with torch.no_grad():
        loaded = AutoModelForImageTextToText.from_pretrained(model).eval()
        return float(loaded(**given, labels=labels).loss)


@pytest.mark.parametrize("family", ["llava", "idefics3", "qwen2_vl"])
def test_it_learns_from_images_with_the_loss_of_a_plain_computation(
    models: Models, pictures: Path, tmp_path: Path, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if family == "qwen2_vl":
        monkeypatch.setattr(
            "transformers.AutoProcessor.from_pretrained", lambda *_, **__: still_processor(models(family))
        )
    stage = {"steps": 40, "learning_rate": 3e-3, "evaluate": {"share": 0}}
    run = pipeline(models(family), rows(pictures, 1), stage).run(tmp_path / "run")
    found = losses(run)
    assert found[0] == pytest.approx(plain_loss(models(family), pictures, list(COLOURS)), rel=1e-5)
    assert found[-1] < 0.2 * found[0], "it does not tell the images apart"
    assert {name: ask(run, pictures, name) for name in COLOURS} == {name: name for name in COLOURS}
    again = tk.open_run(tmp_path / "run")
    assert {name: ask(again, pictures, name) for name in COLOURS} == {name: name for name in COLOURS}
    facts = run.record.finished_stages()[0]["facts"]
    assert facts["strategy"] == "padded"
    assert "not among the models verified" in facts["strategy_reason"]
    assert facts["share_prompts"] is False
    assert facts["frozen_layers"] == 0


@shows("freeze")
@pytest.mark.parametrize("adapter", [{}, LORA], ids=["weights", "lora"])
@pytest.mark.parametrize("freeze", [(), ("tower",), ("tower", "projector"), ("tower", "language")])
def test_frozen_parts_stay_as_they_are_and_the_others_train(
    models: Models, pictures: Path, tmp_path: Path, adapter: Any, freeze: tuple[str, ...]
) -> None:
    made = pipeline(models("llava"), rows(pictures, 1), vision={"freeze": freeze}, **adapter)
    plan = made.plan()
    run = made.run(tmp_path / "run")
    trained = {name: each for name, each in run.bundle.model.named_parameters() if each.requires_grad}
    moved = {part_of(name) for name, each in trained.items() if "lora_B" in name and each.any()}
    if not adapter:
        plain = {"precision": {"compute": "fp32"}, "vision": {}}
        base = tk.open_model(models("llava"), use=plain).bundle.model.state_dict()
        after = run.bundle.model.state_dict()
        moved = {part_of(name) for name, value in after.items() if not torch.equal(value, base[name])}
    assert moved == {"tower", "projector", "language"} - set(freeze)
    assert {part_of(name) for name in trained} == moved
    assert plan.estimate is not None
    assert plan.estimate.trainable == sum(each.numel() for each in trained.values())


@pytest.mark.parametrize("family", ["llava", "idefics3"])
def test_scores_written_out_leave_the_tower_seeing_all_of_an_image(
    models: Models, pictures: Path, tmp_path: Path, family: str
) -> None:
    stage = {"steps": 2, "evaluate": {"share": 0}}
    found = {
        kind: losses(pipeline(models(family), rows(pictures, 1), stage, attention={"kind": kind}).run(tmp_path / kind))
        for kind in ("sdpa", "eager")
    }
    assert found["eager"] == pytest.approx(found["sdpa"], rel=1e-5)
    assert found["eager"][0] == pytest.approx(plain_loss(models(family), pictures, list(COLOURS)), rel=1e-5)


def test_groups_of_tokens_are_refused_for_a_model_that_sees(models: Models, pictures: Path) -> None:
    made = pipeline(models("llava"), rows(pictures, 1), s2attn={"group": 64}, **LORA)
    with pytest.raises(PlanError, match=r"s2attn: the attention of LlavaForConditionalGeneration cannot be replaced"):
        made.plan()


@pytest.mark.parametrize(
    ("config", "unknown"),
    [
        (Blip2Config(), {"query_tokens"}),
        (InternVLConfig(), set()),
        (DeepseekVLHybridConfig(), {"high_res_vision_neck", "high_res_vision_proj", "high_res_vision_alpha"}),
    ],
    ids=["blip-2", "internvl", "deepseek_vl_hybrid"],
)
def test_what_is_neither_the_decoder_nor_a_tower_is_a_projector(config: Any, unknown: set[str]) -> None:
    config.get_text_config().num_hidden_layers = config.vision_config.num_hidden_layers = 1
    with torch.device("meta"):
        model: Any = AutoModelForImageTextToText.from_config(config)
    parts = parts_of(model)
    by_name = {name for name in parts if part_of(name) == "language"}
    between = {name for name in by_name if parts[name] == "projector"}
    assert {next(step for step in name.split(".") if step != "model") for name in between} == unknown
    decoder = {id(each) for each in model.get_decoder().parameters()}
    inside = {name for name, each in model.named_parameters() if id(each) in decoder}
    assert {parts[name] for name in inside} == {"language"}
    refuse_rounding(model, "bnb", ())
    freeze_(model, ["language"])
    assert {parts[name] for name, each in model.named_parameters() if each.requires_grad} == {"tower", "projector"}
    assert not any(getattr(module, FROZEN, False) for name, module in model.named_modules() if "qformer" in name)


def test_a_projector_of_an_unknown_name_is_not_rounded_with_the_language_model() -> None:
    config = FuyuConfig(num_hidden_layers=1)
    with torch.device("meta"):
        model: Any = AutoModelForImageTextToText.from_config(config)
    with pytest.raises(PlanError, match=r"vision_embed_tokens of FuyuForCausalLM is not of .* name it in use.bnb.skip"):
        refuse_rounding(model, "bnb", ())
    refuse_rounding(model, "bnb", ["vision_embed_tokens"])


def test_a_whole_model_is_saved_with_what_reads_its_images(models: Models, pictures: Path, tmp_path: Path) -> None:
    run = pipeline(models("llava"), rows(pictures, 1)).run(tmp_path / "run")
    folder = run.record.artefact("model")
    assert folder is not None
    talk = tk.open_model(str(folder), use=[Vision()])
    assert (
        ask(talk, pictures, "red") == ask(run, pictures, "red") == ask(tk.open_run(tmp_path / "run"), pictures, "red")
    )


def mixed(pictures: Path) -> list[dict[str, Any]]:
    """No image, one, and three: a path, the bytes of a file, and one that is open."""
    three = [str(pictures / "red.png"), (pictures / "blue.png").read_bytes(), Pillow.open(pictures / "green.png")]
    asked = [
        ("hi", "hello", []),
        ("<image>What colour?", "red", three[:1]),
        ("Is <image> like <image> or <image>?", "no", three),
    ]
    return [
        {"messages": [{"role": "user", "content": said}, {"role": "assistant", "content": answer}], "images": images}
        for said, answer, images in asked
    ]


def test_images_stand_where_the_text_says_and_have_no_loss(models: Models, pictures: Path) -> None:
    stage = pipeline(models("llava"), mixed(pictures), **LORA).data().stages[0]
    image = stage.tokenizer.convert_tokens_to_ids("<image>")
    sequence = list(stage.items)[2].sequences[0]
    ids = list(sequence.ids)
    assert ids.count(image) == 12, "four tokens for each image of 28 x 28 in patches of 14"
    assert "Is  like  or ?" in stage.tokenizer.decode([at for at in ids if at != image])
    assert all(weight == 0 for at, weight in zip(ids, sequence.weights, strict=True) if at == image)


@pytest.mark.parametrize("family", ["llava", "idefics3"])
def test_rows_with_and_without_images_lose_alone_what_they_lose_together(
    models: Models, pictures: Path, tmp_path: Path, family: str
) -> None:
    found = []
    for name, batch in (("together", {"rows": 3}), ("alone", {"rows": 1, "accumulation": 3})):
        stage = {"batch": batch, "evaluate": {"share": 0}, "steps": 2, "learning_rate": 1e-3}
        found.append(losses(pipeline(models(family), mixed(pictures), stage, **LORA).run(tmp_path / name)))
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def test_a_model_that_sees_may_get_new_tokens(models: Models, pictures: Path, tmp_path: Path) -> None:
    words = {"tokens": ["What colour", *(f"w{at}" for at in range(120))]}
    made = pipeline(models("llava"), rows(pictures, 1), vocabulary=words, **LORA)
    run = made.run(tmp_path / "run")
    again = tk.open_run(tmp_path / "run")
    assert again.bundle.model.get_input_embeddings().weight.shape[0] == 576
    assert ask(again, pictures, "red") == ask(run, pictures, "red")


def test_what_a_user_writes_never_stands_for_an_image(models: Models, pictures: Path) -> None:
    data = [{"messages": [{"role": "user", "content": "<image>"}, {"role": "assistant", "content": "text"}]}] * 2
    stage = pipeline(models("llava"), data, **LORA).data().stages[0]
    image = stage.tokenizer.convert_tokens_to_ids("<image>")
    assert image not in list(next(iter(stage.items)).sequences[0].ids)


def test_an_image_that_cannot_be_read_is_told_with_its_row(models: Models, pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no image")
    for path, reason in ((tmp_path / "missing.png", "No such file"), (tmp_path / "text.png", "is no image")):
        bad = [{**rows(pictures, 1)[0], "images": [str(path)]}, *rows(pictures, 1)]
        with pytest.raises(DataError, match=f"row 1.*an image cannot be read.*{reason}"):
            pipeline(models("llava"), bad, **LORA).plan()


def test_a_row_with_images_is_never_cut(models: Models, pictures: Path) -> None:
    long = pipeline(models("llava"), rows(pictures, 1), {"batch": {"max_length": 12}}, **LORA)
    with pytest.raises(DataError, match=r"the row has images and is longer than the length limit.*max_length is 12"):
        long.plan()
    batch = {"max_length": 12, "too_long": "drop"}
    assert not list(pipeline(models("llava"), rows(pictures, 1), {"batch": batch}, **LORA).data().stages[0].items)


def test_a_resumed_stage_reaches_the_weights_of_a_whole_one(models: Models, pictures: Path, tmp_path: Path) -> None:
    stage = {"epochs": 2, "checkpoint": {"every": 1}, "evaluate": {"share": 0}}
    made = pipeline(models("llava"), rows(pictures, 2), stage, **LORA)
    whole = made.run(tmp_path / "whole")

    def stop(event: Any) -> None:
        if event.kind == "saved" and event.step == 2:
            raise KeyboardInterrupt

    with pytest.raises((KeyboardInterrupt, InterruptedRunError)):
        made.run(tmp_path / "parts", watchers=[stop])
    resumed = made.resume(tmp_path / "parts")
    assert losses(resumed) == losses(whole)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"stage": {"batch": {"packing": "best_fit"}}}, "a text with images lies in a row of its own"),
        ({"stage": {"batch": {"padding": "never"}}}, "a text with images lies in a row of its own"),
        ({"stage": {"data": {"sources": "rows.json", "streaming": True}}}, "the images of a row are read again"),
        ({"full": {}}, "vision .* does not work with full"),
        ({"freeze": {"layers": 1}}, "vision .* does not work with freeze"),
        ({"vision": {"freeze": ["tower", "projector", "language"]}}, "freezes all parts"),
        ({"ddp": {"processes": 2}}, "images are read by one process"),
        ({"fp8": {"emulate": True}}, "use.fp8: fp8 cannot leave what sees"),
        ({"qat": {}}, "use.qat: qat cannot leave what sees"),
        ({"gptq": {}, "lora": {}}, "use.gptq: gptq cannot leave what sees .* take bnb, hqq or torchao"),
    ],
)
def test_what_does_not_hold_with_images_is_refused_before_anything_is_loaded(
    models: Models, pictures: Path, changes: Any, reason: str
) -> None:
    with pytest.raises(PlanError, match=reason):
        pipeline(models("llava"), rows(pictures, 1), **changes).plan(estimate=False)


def test_stages_for_text_alone_are_refused(models: Models) -> None:
    data = [{"prompt": "a", "chosen": "b", "rejected": "c"}] * 4
    made = tk.Pipeline(models("llava"), data, use={"vision": {}, "lora": {}}, stages=[{"dpo": {}}])
    with pytest.raises(PlanError, match="dpo trains on text alone, and vision loads a model for images"):
        made.plan(estimate=False)


def test_a_model_that_reads_images_is_named_to_vision_and_another_is_not(
    models: Models, pictures: Path, tmp_path: Path
) -> None:
    with pytest.raises(TunekitError, match=r"reads images besides text; add `vision: {}` to use"):
        tk.Pipeline(models("llava"), [{"text": "hi there"}] * 4, use=["lora"], stages=[{"sft": {}}]).plan()
    with pytest.raises(TunekitError, match="reads no images; take `vision` out of use"):
        pipeline(str(save_tiny_model(tmp_path / "text")), rows(pictures, 1), **LORA).plan()


def test_conversations_with_images_are_refused_by_a_model_for_text(pictures: Path, tmp_path: Path) -> None:
    talk = tk.open_model(str(save_tiny_model(tmp_path / "text")))
    with pytest.raises(TunekitError, match=r"has images, and .* reads text alone"):
        ask(talk, pictures, "red")
