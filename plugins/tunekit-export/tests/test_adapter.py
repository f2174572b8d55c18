"""The adapter alone: plain peft reads it, on the base as it was."""

from __future__ import annotations

import json

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

from tunekit.errors import ExportError, PlanError
from tunekit.testing.observing import logits

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")  # PEFT reads it


@pytest.mark.parametrize("use", [{"lora": {"rank": 4}}, {"lora": {"rank": 4}, "pissa": {}}], ids=lambda use: [*use][-1])
def test_plain_peft_reads_it_on_the_base_as_it_was(use, train, base, tmp_path):
    run = train(tmp_path / "run", **use)
    made = run.export("adapter")
    plain = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), made.folder)
    assert torch.allclose(logits(plain), logits(run.bundle.model), atol=1e-4)
    assert made.verification.kl < 1e-6 < made.verification.base_kl
    assert json.loads((made.folder / "adapter_config.json").read_text())["base_model_name_or_path"] == "tiny"
    merged = run.export("merged")
    assert torch.allclose(logits(AutoModelForCausalLM.from_pretrained(merged.folder)), logits(plain), atol=1e-4)


def test_a_run_without_an_adapter_is_refused_at_plan_time(train, tmp_path):
    with pytest.raises(PlanError, match=r"export\.0\.adapter: the run trains no adapter; export the model"):
        train(tmp_path / "run", export=["adapter"], full={})


def test_an_adapter_on_top_of_another_goes_with_it_and_a_merged_one_holds_both(train, run, base, tmp_path):
    run_on_top = train(tmp_path / "top", lora={"rank": 2}, stack={"adapter": str(run.adapter)})
    made = run_on_top.export("adapter")
    assert "merge that one into the base first" in (made.folder / "README.md").read_text()
    below = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), made.folder / "below")
    plain = peft.PeftModel.from_pretrained(below.merge_and_unload(), made.folder)
    assert torch.allclose(logits(plain), logits(run_on_top.bundle.model), atol=1e-4)
    merged = AutoModelForCausalLM.from_pretrained(run_on_top.export("merged").folder)
    assert torch.allclose(logits(merged), logits(plain), atol=1e-4)


def test_what_is_no_part_of_the_weights_is_exported_alone(train, tmp_path):
    run = train(tmp_path / "run", peft={"method": "prompt_tuning", "options": {"num_virtual_tokens": 4}})
    made = run.export("adapter")
    assert made.verification.kl < 1e-6 < made.verification.base_kl
    with pytest.raises(ExportError, match=r"peft has trained cannot be added into the weights: .*export the adapter"):
        run.export("merged")


def test_another_method_of_peft_is_exported_alone_and_merged(train, tmp_path):
    run = train(tmp_path / "run", peft={"method": "ia3"})
    for made in (run.export("adapter"), run.export("merged")):
        assert made.verification.kl < 1e-6 < made.verification.base_kl
