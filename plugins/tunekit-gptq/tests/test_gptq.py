"""GPTQ: each option acts, checkpoints of older packages are read, a whole run goes through, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pydantic
import pytest
import torch

import tunekit
from tunekit.errors import HookCallError, PlanError, TunekitError
from tunekit.testing import conversations, fake_machine, plan_for, save_tiny_model
from tunekit.testing.observing import logits
from tunekit.values import Account, Item, TokenSequence
from tunekit_dora import Dora
from tunekit_gptq import Gptq, checks
from tunekit_gptq.calibrating import choose_rows, fingerprint
from tunekit_gptq.producing import Job, _carry_out
from tunekit_lora import Lora

pytest.importorskip("gptqmodel")
from tunekit_gptq.testing import Rows, loaded, rows


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model, quantised as the conformance suite quantises it."""
    tiny = save_tiny_model(tmp_path_factory.mktemp("models") / "tiny")
    return Path(loaded(Gptq(group_size=32), tiny).source)


def problems(plugin: Gptq, model: Path | str, *others: object) -> list[str]:
    plan = plan_for(plugin, Lora(rank=4), *others, model=str(model))  # type: ignore[arg-type]
    return [str(problem) for problem in plugin.tunekit_check(plan=plan, machine=fake_machine())]


def as_auto_gptq_wrote_it(checkpoint: Path, folder: Path, **changes: object) -> Path:
    """The same weights under auto-gptq's names: options in a file of their own, and nothing in config.json."""
    folder.mkdir()
    config = json.loads((checkpoint / "config.json").read_text())
    said = config.pop("quantization_config")
    (folder / "config.json").write_text(json.dumps(config))
    words = ("bits", "group_size", "desc_act", "sym")
    old = {name: said[name] for name in words} | {
        "damp_percent": 0.01, "static_groups": False, "true_sequential": True, "model_name_or_path": None,
        "model_file_base_name": "gptq_model-4bit-32g", "is_marlin_format": False, "quant_method": "gptq", **changes,
    }  # fmt: skip
    (folder / "quantize_config.json").write_text(json.dumps(old))
    shutil.copy(checkpoint / "model.safetensors", folder / "gptq_model-4bit-32g.safetensors")
    return folder


def test_a_checkpoint_of_auto_gptqs_own_shape_says_the_same(checkpoint, tmp_path):
    expected = logits(loaded(Gptq(), checkpoint, data=None).model)
    old = as_auto_gptq_wrote_it(checkpoint, tmp_path / "old")
    found = loaded(Gptq(cache=tmp_path / "kept"), old, data=None)
    assert torch.equal(logits(found.model), expected)
    assert Path(found.source).parent == tmp_path / "kept"
    assert problems(Gptq(), old) == []
    stage = {"sft": {"epochs": 1}}
    data = [{"text": "a row"}]
    tunekit.Pipeline(model=str(old), data=data, use={"gptq": {}, "lora": {"rank": 4}}, stages=[stage]).plan(False)
    assert problems(Gptq(bits=8), old)[0].startswith("use.gptq.bits: means nothing")


def test_a_checkpoint_with_auto_gptqs_words_in_its_config_says_the_same(checkpoint, tmp_path):
    """As hubs hold many: layout v1, named nowhere."""
    expected = logits(loaded(Gptq(), checkpoint, data=None).model)
    folder = Path(shutil.copytree(checkpoint, tmp_path / "hub"))
    config = json.loads((folder / "config.json").read_text())
    said = config["quantization_config"]
    config["quantization_config"] = {name: said[name] for name in ("bits", "group_size", "desc_act", "sym")} | {
        "damp_percent": 0.1, "true_sequential": True, "model_name_or_path": None, "model_file_base_name": "model",
        "quant_method": "gptq",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "quantize_config.json").unlink(missing_ok=True)
    assert torch.equal(logits(loaded(Gptq(), folder, data=None).model), expected)


def test_two_files_of_weights_without_the_usual_name_are_refused(checkpoint, tmp_path):
    old = as_auto_gptq_wrote_it(checkpoint, tmp_path / "old")
    shutil.copy(checkpoint / "model.safetensors", old / "gptq_model-8bit-32g.safetensors")
    with pytest.raises(TunekitError, match="holds 2 files of safetensors, and none is called"):
        loaded(Gptq(cache=tmp_path / "kept"), old, data=None)


@pytest.mark.parametrize(
    ("words", "reason"),
    [({"is_marlin_format": True}, "in the layout marlin"), ({"checkpoint_format": "bitblas"}, "in the layout bitblas")],
)
def test_a_layout_that_cannot_be_trained_on_is_refused(checkpoint, tmp_path, words, reason):
    (found,) = problems(Gptq(), as_auto_gptq_wrote_it(checkpoint, tmp_path / "old", **words))
    assert reason in found


def test_weights_saved_by_the_loaded_model_are_wrong_so_files_are_copied_instead(checkpoint, tmp_path):
    """The trap that the README names: in memory zeros are in layout v2, and transformers writes them under v1."""
    bundle = loaded(Gptq(), checkpoint, data=None)
    expected = logits(bundle.model)
    del bundle.model.hf_device_map
    bundle.model.save_pretrained(tmp_path)
    assert (logits(loaded(Gptq(), tmp_path, data=None).model) - expected).abs().max() > 0.1


def test_each_option_of_quantising_acts(tmp_path, monkeypatch):
    """Three bits in groups of 64 with zeros of their own, in an order of their own; the rest as gptqmodel notes it."""
    options = {"bits": 3, "group_size": 64, "symmetric": False, "act_order": True, "damping": 0.3}
    plugin = Gptq(**options, samples=6, sample_tokens=20, cache=tmp_path / "kept")
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    seen = []
    original = choose_rows
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tunekit_gptq.copies.choose_rows", lambda *given: seen.append(original(*given)) or seen[-1])
        bundle = loaded(plugin, save_tiny_model(tmp_path / "tiny"))
    assert [len(row) for row in seen[0].rows] == [20] * 6
    assert not list(here.iterdir()), "gptqmodel leaves logs where it is"
    folder = Path(bundle.source)
    assert folder.parent == tmp_path / "kept"
    said = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert (said["bits"], said["group_size"], said["sym"], said["desc_act"]) == (3, 64, False, True)
    assert said["meta"]["damp_percent"] == 0.3
    layer = bundle.model.get_submodule("model.layers.0.self_attn.q_proj")
    assert layer.qweight.shape == (128 * 3 // 32, 128)
    index = layer.g_idx.tolist()
    assert sorted(index) == [0] * 64 + [1] * 64
    assert index != sorted(index)
    assert len(layer.qzeros.unique()) > 1
    identity = torch.eye(128, dtype=torch.float16)
    assert torch.equal(type(layer).forward(layer, identity), plugin.kind().weight(layer))
    generation = json.loads((folder / "generation_config.json").read_text())
    assert not generation.get("do_sample"), "gptqmodel makes answers sampled"


def test_rows_are_spread_over_the_data_and_cut(tmp_path):
    data = Rows(Item((TokenSequence([n] * 30, [1.0] * 30, n, f"row {n}"),)) for n in range(1, 101))
    found = choose_rows(data, 5, 16, 512).rows
    assert [row[0] for row in found] == [1, 21, 41, 61, 81]
    assert {len(row) for row in found} == {16}
    short = Rows([Item((TokenSequence([1] * 9, [1.0] * 9, 1, "row 1"),))])
    with pytest.raises(TunekitError, match="has no row of 10 tokens or more to quantise by"):
        choose_rows(short, 5, 16, 512)


def test_tokens_that_the_model_has_no_row_for_are_left_out_of_the_rows_and_counted():
    """gptqmodel would read each as the unknown one, or as padding; a row of which too little is left is passed over."""
    ids = [[*range(1, 13), 512, 513, 20], [*range(1, 10), *[600] * 20], [*range(100, 120), 512]]
    data = Rows(Item((TokenSequence(row, [1.0] * len(row), n, f"row {n}"),)) for n, row in enumerate(ids, 1))
    found = choose_rows(data, 3, 16, 512)
    assert found.rows == [[*range(1, 13), 20], list(range(100, 116))]
    assert found.left_out == 2, "what lies beyond the cut is not counted"


def test_a_run_with_new_tokens_quantises_by_the_old_ones_and_says_so(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr("tunekit_gptq.producing.quantize", lambda dense, tokenizer, job: seen.append(job) or 1 / 0)
    data = [
        {"instruction": f"Say w{n + 190} w{n + 191}.", "output": "It is said well, and then it is said again."}
        for n in range(4)
    ]
    pipeline = tunekit.Pipeline(
        model=str(save_tiny_model(tmp_path / "tiny")),
        data=data,
        use={
            "precision": {"compute": "fp32"}, "lora": {"rank": 4}, "gptq": {"group_size": 32, "cache": str(tmp_path)},
            "vocabulary": {"tokens": [f"w{n}" for n in range(200)]},
        },
        stages=[{"sft": {"epochs": 1}}],
    )  # fmt: skip
    said = []
    with pytest.raises(HookCallError):
        pipeline.run(tmp_path / "run", watchers=[said.append])
    assert max(token for row in seen[0].rows for token in row) < 512
    (message,) = (event.message for event in said if event.message.startswith("quantising"))
    assert message.endswith("by gptq on 4 rows, once, without 8 tokens in them that it does not know yet")


def test_of_data_that_is_streamed_the_first_rows_are_taken():
    stream = type("Stream", (), {"size": None, "account": Account(), "__iter__": lambda self: iter(rows())})()
    assert choose_rows(stream, 3, 16, 512).rows == [list(item.sequences[0].ids[:16]) for item in rows()[:3]]


def test_a_fingerprint_sees_one_bit_of_one_weight():
    from tunekit.testing import tiny_model

    model = tiny_model()
    before = fingerprint(model)
    assert fingerprint(tiny_model()) == before
    model.model.layers[1].mlp.up_proj.weight.data[3, 7] *= 1 + 2**-22
    assert fingerprint(model) != before


def test_a_dense_model_without_a_stage_is_refused():
    """There is nothing to quantise it by."""
    (found,) = problems(Gptq(), "somebody/dense")
    assert found == (
        "use.gptq: quantises somebody/dense by data of the first stage, and there is no stage; add a stage, or name a "
        "model that is quantised already"
    )


def test_without_gptqmodel_the_plan_says_what_to_install(checkpoint, monkeypatch):
    monkeypatch.setattr(checks, "NEEDED", ("gptqmodel", "surely_not_installed"))
    (found,) = problems(Gptq(), checkpoint)
    assert found == (
        "use.gptq: needs surely_not_installed, which is not installed; `pip install 'tunekit-gptq[gptqmodel]'`"
    )


def test_dora_is_refused_since_peft_has_none_for_these_layers():
    with pytest.raises(PlanError, match="does not work with dora"):
        plan_for(Gptq(), Lora(rank=4), Dora())


@pytest.mark.parametrize("options", [{"bits": 5}, {"group_size": 48}, {"damping": 1.0}, {"samples": 0}, {"bit": 4}])
def test_options_outside_their_range_are_refused(options):
    with pytest.raises(pydantic.ValidationError, match=next(iter(options))):
        Gptq(**options)


def test_what_gptqmodel_says_last_is_in_the_error(tmp_path):
    source, target = str(tmp_path / "nowhere"), str(tmp_path / "out")
    job = Job(source, target, {"bits": 4}, "gptq_torch", rows=[[1] * 20], device="cpu", dtype="float32")
    with pytest.raises(TunekitError, match=r"(?s)gptqmodel could not quantise the model; it ended with:.*nowhere"):
        _carry_out(job, tmp_path)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")  # PEFT reads it
def test_a_run_quantises_trains_exports_and_is_opened_when_its_data_has_gone(tmp_path):
    """The whole way: dense model and data in, a merged dense model out; the loss falls."""
    data = [{"messages": [{"role": m.role, "content": m.content} for m in each.messages]} for each in conversations()]
    (tmp_path / "data.json").write_text(json.dumps(data))
    pipeline = tunekit.Pipeline(
        model=str(save_tiny_model(tmp_path / "tiny")),
        data=str(tmp_path / "data.json"),
        use={"precision": {"compute": "fp32"}, "gptq": {"group_size": 32}, "lora": {"rank": 4}},
        stages=[{"sft": {"epochs": 3, "learning_rate": 5e-3}}],
    )
    assert any("is quantised by gptq the first time" in note for note in pipeline.plan().estimate.notes)
    run = pipeline.run(tmp_path / "run")
    losses = [line["loss"] for line in run.metrics if line["kind"] == "step"]
    assert losses[-1] < losses[0]
    exported = run.export("merged")
    assert exported.verification.kl < 0.01 * exported.verification.base_kl
    alone = run.export("adapter")
    assert alone.verification.kl < 1e-6
    assert "on weights of the base that tunekit had rounded (gptq)" in (alone.folder / "README.md").read_text()
    answer = run.chat("What is two and three?", max_new_tokens=4)
    (tmp_path / "data.json").unlink()
    assert tunekit.open_run(tmp_path / "run").chat("What is two and three?", max_new_tokens=4) == answer
