"""The adapter alone: plain peft reads it, on the base as it was."""

from __future__ import annotations

import json
import re

import pytest
import torch
from transformers import AutoModelForCausalLM

import tunekit as tk
from tunekit import Plugin, PluginConfig, hookimpl
from tunekit.errors import ExportError, PlanError
from tunekit.testing import default_plugin, tiny_model, tiny_tokenizer
from tunekit.testing.observing import logits
from tunekit.values import ModelBundle, Report
from tunekit_export.gguf_file import write_gguf
from tunekit_export.vocabulary import vocabulary_of
from tunekit_lora import Lora
from tunekit_peft import Peft

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")  # PEFT reads it


SFT = {"epochs": 1, "learning_rate": 1e-3, "batch": {"rows": 4}, "evaluate": {"share": 0.25}}
LORA = {"lora": {"rank": 4}}
USES = {
    "lora": LORA,
    "dora": {**LORA, "dora": {}},
    "pissa": {**LORA, "pissa": {}},
    "rope": {**LORA, "rope": {"scaling": "yarn", "length": 8192}},
    "vocabulary": {**LORA, "vocabulary": {"tokens": ["everybody"], "special_tokens": ["<|shop|>"]}},
    "bnb": {**LORA, "bnb": {"bits": 4}},
    "torchao": {**LORA, "torchao": {"kind": "int8"}},
}


def write_tiny_gguf(path):
    tokenizer = tiny_tokenizer()
    write_gguf(tiny_model(), vocabulary_of(tokenizer, len(tokenizer)), path, "q8_0", "small")
    return path


def run_card(folder):
    """Do what the model card says, all of it and nothing else; what its code leaves."""
    found = {"FOLDER": str(folder)}
    for code in re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.S):
        exec(code, found)
    return found


def places_in(folder, *places):
    """Files of an export that name a place of this machine."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return [path.name for path in files if any(str(place).encode() in path.read_bytes() for place in places)]


@pytest.mark.filterwarnings("ignore")  # those of the libraries are theirs
@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_the_code_of_the_card_gives_the_model_that_was_trained(use, train, base, tmp_path, monkeypatch):
    run = train(tmp_path / "run", **use)
    made = run.export("adapter")
    monkeypatch.chdir(base.parent)  # the card calls the base by the last part of its path
    found = run_card(made.folder)["model"]
    expected = logits(run.bundle.model)
    close = 5e-3 if "bnb" in use else 1e-4  # once evaluated, bitsandbytes multiplies in another layout on some CPUs
    assert (logits(found) - expected).abs().max() < close * expected.abs().max()
    assert made.verification.kl < 1e-3 * made.verification.base_kl
    assert json.loads((made.folder / "adapter_config.json").read_text())["base_model_name_or_path"] == "tiny"
    assert places_in(made.folder, run.folder.parent, base.parent) == []


class NoOptions(PluginConfig):
    """None."""


class Louder(Plugin[NoOptions]):
    """Changes the base in a way that no card can say."""

    @hookimpl
    def tunekit_patch(self, bundle: ModelBundle) -> Report:
        bundle.model.lm_head.weight.data *= 3
        return Report("three times as loud")


def test_a_base_that_is_changed_as_no_card_can_say_is_no_export_of_the_adapter(base, tmp_path):
    use = [default_plugin("tunekit_precision", compute="fp32"), Louder(), Lora(rank=4)]
    data = [{"instruction": f"What is {n} and one?", "output": f"It is {n + 1}."} for n in range(8)]
    run = tk.Pipeline(model=str(base), data=data, use=use, stages=[{"sft": SFT}]).run(tmp_path / "run")
    with pytest.raises(ExportError, match="times as far from the trained model as the base is"):
        run.export("adapter")


@pytest.mark.filterwarnings("ignore")
def test_a_base_that_comes_as_gguf_is_made_by_the_card_as_well(train, tmp_path, monkeypatch):
    path = write_tiny_gguf(tmp_path / "small.gguf")
    run = train(tmp_path / "run", model=path, transformers={"cache": str(tmp_path / "cache")}, **LORA)
    made = run.export("adapter")
    monkeypatch.chdir(tmp_path)
    found = run_card(made.folder)["model"]
    assert torch.allclose(logits(found), logits(run.bundle.model), atol=1e-4)
    assert made.verification.kl < 1e-6 < made.verification.base_kl


@pytest.mark.filterwarnings("ignore")
def test_the_head_of_a_reward_model_goes_with_it_and_the_card_says_how_it_values(base, tmp_path, monkeypatch):
    pairs = [
        {"prompt": f"What is {n} and one?", "chosen": f"It is {n + 1}.", "rejected": "Who knows?"} for n in range(8)
    ]
    stage = {"reward": {"epochs": 3, "learning_rate": 1e-2, "batch": {"rows": 4}}}
    use = {"precision": {"compute": "fp32"}, **LORA}
    run = tk.Pipeline(model=str(base), data=pairs, use=use, stages=[stage]).run(tmp_path / "run")
    made = run.export("adapter")
    monkeypatch.chdir(base.parent)
    reward = run_card(made.folder)["reward"]
    texts = ["It is 3.", "Who knows?"]
    assert [reward(text) for text in texts] == pytest.approx(run.score(texts), abs=1e-4)
    assert abs(reward(texts[0]) - reward(texts[1])) > 0.1


def test_a_run_without_an_adapter_is_refused_at_plan_time(train, tmp_path):
    with pytest.raises(PlanError, match=r"export\.0\.adapter: the run trains no adapter; export the model"):
        train(tmp_path / "run", export=["adapter"], full={})


def test_an_adapter_on_top_of_another_goes_with_it_and_a_merged_one_holds_both(train, run, base, tmp_path, monkeypatch):
    run_on_top = train(tmp_path / "top", lora={"rank": 2}, stack={"adapter": str(run.adapter)})
    made = run_on_top.export("adapter")
    monkeypatch.chdir(base.parent)
    assert places_in(made.folder, run_on_top.folder.parent, run.folder.parent, base.parent) == []
    plain = run_card(made.folder)["model"]
    assert torch.allclose(logits(plain), logits(run_on_top.bundle.model), atol=1e-4)
    merged = AutoModelForCausalLM.from_pretrained(run_on_top.export("merged").folder)
    assert torch.allclose(logits(merged), logits(plain), atol=1e-4)


def test_what_is_no_part_of_the_weights_is_exported_alone(train, tmp_path):
    run = train(tmp_path / "run", peft={"method": "prompt_tuning", "options": {"num_virtual_tokens": 4}})
    made = run.export("adapter")
    assert made.verification.kl < 1e-6 < made.verification.base_kl
    with pytest.raises(PlanError, match=r"export.0.merged: what peft trains stands beside the weights, and cannot"):
        run.export("merged")


def test_an_adapter_that_does_not_say_that_it_stands_apart_is_refused_once_it_shows(train, tmp_path, monkeypatch):
    said = frozenset({"adapter", "adapter.saved", "adapter.named"})
    monkeypatch.setattr(Peft, "provides", property(lambda self: said))
    run = train(tmp_path / "run", peft={"method": "beft"})
    with pytest.raises(ExportError, match=r"peft has trained cannot be added into the weights: .*export the adapter"):
        run.export("merged")


def test_another_method_of_peft_is_exported_alone_and_merged(train, tmp_path):
    run = train(tmp_path / "run", peft={"method": "ia3"})
    for made in (run.export("adapter"), run.export("merged")):
        assert made.verification.kl < 1e-6 < made.verification.base_kl
