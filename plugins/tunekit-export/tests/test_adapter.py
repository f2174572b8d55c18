"""The adapter alone: plain peft reads it, on the base as it was."""

from __future__ import annotations

import json

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

from tunekit.errors import PlanError
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
