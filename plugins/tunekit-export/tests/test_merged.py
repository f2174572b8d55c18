"""Merged weights: what transformers reads says what was trained, of dense and of quantised bases; else no export."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import tunekit as tk
from tunekit.errors import ExportError, PlanError, RunFolderError
from tunekit.testing.observing import logits
from tunekit.testing.options import shows
from tunekit_export import Merged


@pytest.fixture(scope="module")
def merged(run):
    return run.export("merged")


def test_transformers_reads_a_dense_model_that_says_what_the_run_says(run, merged):
    again = AutoModelForCausalLM.from_pretrained(merged.folder)
    assert type(again).__name__ == "LlamaForCausalLM"
    assert torch.allclose(logits(again), logits(run.bundle.model), atol=2e-5)  # products in another order
    assert not torch.allclose(logits(again), logits(AutoModelForCausalLM.from_pretrained(run.plan.recipe.model)))


def test_tokenizer_and_template_come_with_it(run, merged):
    tokenizer = AutoTokenizer.from_pretrained(merged.folder)
    assert tokenizer.chat_template == run.bundle.tokenizer.chat_template
    assert (merged.folder / "generation_config.json").is_file()


def test_it_is_compared_on_the_rows_that_the_run_held_out(run, merged):
    assert (merged.verification.held_out, merged.verification.rows) == (True, 3)
    noted = run.record.finished_stages()[0]
    assert len(noted["held_out"]) == noted["facts"]["items_held_out"] == 3
    assert merged.verification.kl < 1e-6 < 0.01 < merged.verification.base_kl
    assert merged.verification.top1 == 1.0
    assert merged.verification.perplexity == pytest.approx(merged.verification.trained_perplexity, rel=1e-4)
    # what the stage's own evaluation of the same rows came to
    assert merged.verification.trained_perplexity == pytest.approx(run.results["sft"]["perplexity"], rel=1e-5)
    assert merged.verification.trained_perplexity < merged.verification.base_perplexity


def test_numbers_and_card_lie_beside_the_files_and_name_no_place_of_this_machine(run, merged, base):
    told = json.loads((merged.folder / "export.json").read_text())
    assert told["verification"]["kl"] == merged.verification.kl
    card = (merged.folder / "README.md").read_text()
    assert f"{merged.verification.base_kl:.3g} nats" in card
    assert "rank: 4" in card
    assert "train loss last" in card
    written = card + (merged.folder / "config.json").read_text() + json.dumps(told)
    for place in (run.folder.parent, base.parent):
        assert str(place) not in written
    assert run.exports[merged.name] == merged.folder


@shows("dtype", "shard")
def test_dtype_and_shard_size_are_those_asked_for(run, tmp_path):
    made = run.export(Merged(dtype="bfloat16", shard="300KB", folder=tmp_path / "half"))
    files = list(made.folder.glob("*.safetensors"))
    assert len(files) > 1
    assert max(path.stat().st_size for path in files) < 330_000
    assert AutoModelForCausalLM.from_pretrained(made.folder).dtype == torch.bfloat16
    assert 0 < made.verification.kl < 0.1 * made.verification.base_kl


def test_an_export_that_is_not_what_was_trained_leaves_nothing(run, merged, monkeypatch):
    before = sorted((run.folder / "exports").iterdir())

    def forget(adapters, name):  # what merging into quantised weights comes to
        bundle = adapters.use(name)
        return bundle.with_model(bundle.model.unload())

    monkeypatch.setattr("tunekit.adapters.NamedAdapters.merge", forget)
    with pytest.raises(ExportError, match=r"as far from the trained model as the base is: KL .* what was trained is"):
        run.export("merged")
    assert sorted((run.folder / "exports").iterdir()) == before


@shows("tolerance")
def test_how_much_is_lost_by_rounding_is_judged(run, tmp_path):
    with pytest.raises(ExportError, match=r"1e-07 times are accepted.*accept more with `tolerance`"):
        run.export("merged", dtype="bfloat16", tolerance=1e-7, folder=str(tmp_path / "strict"))
    assert list(tmp_path.iterdir()) == []


@shows("rows", "row_tokens")
def test_as_many_rows_and_tokens_are_compared_as_asked(run, tmp_path):
    made = run.export("merged", rows=2, row_tokens=20, folder=str(tmp_path / "two"))
    assert made.verification.rows == 2
    assert made.verification.tokens <= 38


@shows("folder")
def test_a_folder_that_is_there_is_left_alone(run, merged):
    with pytest.raises(RunFolderError, match="is there already"):
        run.export("merged", folder=str(merged.folder))


def test_a_second_export_of_a_target_gets_a_number(run, merged):
    another = run.export("merged", rows=1)
    assert another.folder.name.startswith("merged-")
    assert another.folder != merged.folder


def test_a_recipe_exports_at_its_end_and_is_refused_with_everything_else(train, tmp_path):
    with pytest.raises(PlanError) as refused:
        train(tmp_path / "run", export=[{"merged": {"base": "original"}}, "gguff"], lora={"rang": 4})
    assert {problem.where for problem in refused.value.problems} >= {"use.lora.rang", "export.1.gguff"}
    run = train(tmp_path / "run", export=["merged", {"merged": {"dtype": "float16"}}])
    assert list(run.exports) == ["merged", "merged-2"]
    assert AutoModelForCausalLM.from_pretrained(run.exports["merged-2"]).dtype == torch.float16
    assert ("export", "tunekit_export", "merged") in {(s.phase, s.hook, s.plugin) for s in run.plan.steps}
    assert tk.open_run(tmp_path / "run").exports == run.exports


def test_rows_trained_on_are_taken_where_none_was_held_out_and_that_is_said(train, tmp_path):
    run = train(tmp_path / "run", stages=[{"sft": {"epochs": 2, "learning_rate": 1e-2, "batch": {"rows": 4}}}])
    made = run.export("merged")
    assert (made.verification.held_out, made.verification.rows) == (False, 12)
    assert "that were trained on, since none was held out" in (made.folder / "README.md").read_text()


@pytest.mark.parametrize("use", [{"freeze": {"layers": 1}}, {"freeze": {"expand": 1}}, {"full": {}}], ids=str)
def test_trained_weights_of_the_base_are_exported_whole(use, train, tmp_path):
    run = train(tmp_path / "run", **use)
    again = AutoModelForCausalLM.from_pretrained(run.export("merged").folder)
    assert torch.allclose(logits(again), logits(run.bundle.model), atol=2e-5)


def test_an_untrained_model_is_no_export(train, tmp_path):
    run = train(tmp_path / "run", stages=[{"sft": {"steps": 1, "learning_rate": 1e-12, "batch": {"rows": 4}}}])
    with pytest.raises(ExportError, match="the trained model says what the base says"):
        run.export("merged")


def test_a_model_that_reads_images_is_exported_with_its_processor_and_compared_on_images(tmp_path):
    from PIL import Image
    from transformers import AutoModelForImageTextToText, AutoProcessor

    from tunekit_vision.testing import rows, save_llava, save_pictures

    data = rows(save_pictures(tmp_path), 2)
    use = {"precision": {"compute": "fp32"}, "vision": {}, "lora": {"rank": 4}}
    stage = {"sft": {"epochs": 2, "learning_rate": 1e-2, "batch": {"rows": 4}, "evaluate": {"share": 0.25}}}
    model = str(save_llava(tmp_path / "llava"))
    run = tk.Pipeline(model=model, data=data, use=use, stages=[stage]).run(tmp_path / "run")
    made = run.export("merged", row_tokens=4)
    assert made.verification.trained_perplexity == pytest.approx(run.results["sft"]["perplexity"], rel=1e-4)
    processor = AutoProcessor.from_pretrained(made.folder)
    question = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What colour?"}]}
    text = processor.apply_chat_template([question], tokenize=False, add_generation_prompt=True)
    given = processor(text=text, images=[Image.open(tmp_path / "red.png")], return_tensors="pt")
    with torch.no_grad():
        again = AutoModelForImageTextToText.from_pretrained(made.folder).eval()(**given).logits
        assert torch.allclose(again, run.bundle.model.eval()(**given).logits, atol=1e-4)
    with pytest.raises(PlanError, match="its architecture is llava"):
        run.export("gguf")
