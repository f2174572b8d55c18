"""The options of any method: which are PEFT's own, what is refused, and whole runs with what learns a prompt."""

from __future__ import annotations

import peft
import pydantic
import pytest
import torch

import tunekit as tk
from tunekit.errors import InterruptedRunError, PlanError, TunekitError
from tunekit.testing import AdapterSuite, conversations, plan_for, run_context, save_tiny_model, tiny_bundle, tiny_model
from tunekit.testing.observing import logits, train_, trainable
from tunekit_peft import Peft

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")  # PEFT reads it


class TestVera(AdapterSuite):
    plugin = Peft(method="vera", options={"r": 16})


class TestIa3(AdapterSuite):
    plugin = Peft(method="ia3", targets=["k_proj", "v_proj"])


def attached(bundle=None, **options):
    plugin = Peft(**options)
    context = run_context(plugin)
    return context.calls.own("tunekit_attach_adapter", bundle=bundle or tiny_bundle(), context=context)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "verra"}, "PEFT has no method 'verra'; did you mean 'vera'?"),
        ({"method": "lora"}, "lora cannot be used: the plugin `lora` does it"),
        ({"method": "vera", "targets": "(("}, "is no regular expression"),
    ],
)
def test_a_method_that_is_not_there_is_refused(options, message):
    with pytest.raises(pydantic.ValidationError) as error:
        Peft(**options)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"method": "vera", "options": {"d_inital": 0.1}},
            "use.peft.options.d_inital: vera has no option 'd_inital';",
        ),
        ({"method": "vera", "options": {"d_inital": 0.1}}, "did you mean 'd_initial'?"),
        (
            {"method": "vera", "options": {"r": "many"}},
            "use.peft.options.r: r is 'many': Input should be a valid",
        ),
        (
            {"method": "vera", "options": {"target_modules": ["q_proj"]}},
            "target_modules follows from the recipe;",
        ),
        (
            {"method": "vera", "targets": ["q_prj"]},
            "use.peft.targets: the model has no layer named 'q_prj'; did",
        ),
        ({"method": "prompt_tuning", "targets": ["q_proj"]}, "prompt_tuning learns a prompt, and has no target layers"),
        ({"method": "ln_tuning", "targets": ["nrom"]}, "the model has no norm named 'nrom'; did you mean 'norm'?"),
        ({"method": "gralora", "options": {"r": 7, "gralora_k": 2}}, "gralora refuses them: r should be divisible by"),
        ({"method": "boft", "options": {"boft_block_size": 3}}, "use.peft: boft does not fit the model"),
        ({"method": "vera", "modules_to_save": ["lm_haed"]}, "no module named 'lm_haed'; did you mean 'lm_head'?"),
        ({"method": "prompt_tuning", "modules_to_save": ["lm_head"]}, "prompt_tuning trains nothing besides itself"),
        ({"method": "oft", "options": {"module_dropout": 0.1}}, "PEFT takes module_dropout and does nothing with it"),
    ],
)
def test_what_the_method_does_not_know_is_refused_at_plan_time_and_when_attaching(options, message, estimate_with):
    for start in (lambda: attached(**options), lambda: estimate_with(Peft(**options))):
        with pytest.raises(PlanError) as error:
            start()
        assert message in str(error.value)


def test_an_option_reaches_peft_s_own_configuration():
    model = attached(method="vera", options={"r": 16, "d_initial": 0.5}).model
    config = model.peft_config["default"]
    assert (type(config), config.r, config.d_initial) == (peft.VeraConfig, 16, 0.5)
    layer = model.get_submodule("base_model.model.model.layers.0.self_attn.q_proj")
    assert torch.equal(layer.vera_lambda_d["default"], torch.full((16,), 0.5))


def test_targets_choose_what_is_changed():
    model = attached(method="hra", targets=["q_proj"], options={"r": 4}).model
    assert {name.rpartition(".hra_")[0].rpartition(".")[2] for name in trainable(model)} == {"q_proj"}
    norms = trainable(attached(method="ln_tuning").model)
    assert len(norms) == 5
    assert len(trainable(attached(method="ln_tuning", targets=["input_layernorm"]).model)) == 2


def test_modules_to_save_train_whole_and_come_back(tmp_path):
    bundle = attached(method="vera", options={"r": 16}, modules_to_save=["lm_head"])
    train_(bundle.model)
    assert any("lm_head" in name for name in trainable(bundle.model))
    bundle.save(bundle.model, tmp_path / "adapter")
    again = attached(
        tiny_bundle(saved_adapter=tmp_path / "adapter"), method="vera", options={"r": 16}, modules_to_save=["lm_head"]
    ).model
    assert torch.equal(logits(again), logits(bundle.model))
    assert not torch.equal(logits(again), logits(tiny_model()))


def test_a_method_that_cannot_stand_on_quantised_weights_is_refused_there():
    bnb = pytest.importorskip("tunekit_bnb").Bnb
    with pytest.raises(PlanError, match=r"peft .* does not work with bnb .*, which provides 'quantization'"):
        plan_for(bnb(), Peft(method="loha"))
    plan_for(bnb(), Peft(method="vera"))
    for bits, refused in ((4, False), (8, True)):
        told = [str(each) for each in checked(bnb(bits=bits), Peft(method="c3a"))]
        assert bool(told) == refused
    assert told == ["use.peft: c3a does not train on 8-bit weights of bnb; set use.bnb.bits: 4, or use lora there"]
    assert not checked(bnb(bits=8), Peft(method="vera"))


def checked(quantizer, adapter):
    plan = plan_for(quantizer, adapter)
    return list(adapter.tunekit_check(plan=plan, machine=plan.machine))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(save_tiny_model(tmp_path_factory.mktemp("model") / "tiny"))


def pipeline(model, use, stages=1, **sft):
    rows = [
        {"messages": [{"role": turn.role, "content": turn.content} for turn in example.messages]}
        for example in conversations()
    ]
    stage = {"sft": {"epochs": 6, "learning_rate": 3e-2, "batch": {"rows": 2}, **sft}}
    return tk.Pipeline(
        model=model, data=rows, use={"precision": {"compute": "fp32"}, "peft": use}, stages=[stage] * stages
    )


@pytest.mark.parametrize("method", ["prompt_tuning", "prefix_tuning", "p_tuning"])
def test_a_run_learns_a_prompt_answers_with_it_and_opens_it_again(method, model, tmp_path):
    options = {"num_virtual_tokens": 4, **({"encoder_hidden_size": 32} if method == "p_tuning" else {})}
    run = pipeline(model, {"method": method, "options": options}).run(tmp_path / "run")
    losses = [line["loss"] for line in run.metrics if line["kind"] == "step"]
    assert losses[-1] < losses[0]
    assert run.record.finished_stages()[0]["facts"]["strategy"] == "padded"
    texts = ["Which river flows through the town?", "It flows."]
    opened = tk.open_run(tmp_path / "run")
    assert opened.chat("What is two and three?", max_new_tokens=4) == run.chat(
        "What is two and three?", max_new_tokens=4
    )
    assert opened.perplexity(texts) == pytest.approx(run.perplexity(texts), rel=1e-6)
    each = [run.perplexity([text]) for text in texts]
    assert min(each) < run.perplexity(texts) < max(each)


def test_a_prompt_that_a_network_makes_goes_on_to_the_same_bits_after_ctrl_c(model, tmp_path):
    """PEFT's own format of a checkpoint keeps the prompt and not the network."""
    use = {"method": "p_tuning", "options": {"num_virtual_tokens": 4, "encoder_hidden_size": 32}}
    whole = pipeline(model, use, epochs=1, checkpoint={"every": 2})

    def stop(event):
        if event.kind == "step" and event.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(InterruptedRunError):
        whole.run(tmp_path / "run", watchers=[stop])
    torch.randn(5)
    runs = whole.run(tmp_path / "whole"), whole.resume(tmp_path / "run")
    one, other = (dict(run.bundle.model.named_parameters()) for run in runs)
    assert one.keys() == other.keys()
    assert all(torch.equal(each, other[name]) for name, each in one.items())


def test_packing_is_refused_where_a_prompt_is_learnt(model):
    use = {"method": "prompt_tuning", "options": {"num_virtual_tokens": 4}}
    with pytest.raises(PlanError, match="a prompt-learning adapter puts its own tokens in front of each row"):
        pipeline(model, use, batch={"rows": 2, "packing": "greedy", "max_length": 64}).plan()


def test_a_saved_adapter_of_another_method_is_no_start(model, tmp_path):
    bundle = attached(method="ia3")
    bundle.save(bundle.model, tmp_path / "adapter")
    rows = [{"instruction": "a", "output": "b"}]
    stage = {"sft": {"adapter": {"start": str(tmp_path / "adapter")}}}
    with pytest.raises(PlanError, match="holds ia3, and not vera; name an adapter of this method"):
        tk.Pipeline(model=model, data=rows, use={"peft": {"method": "vera"}}, stages=[stage]).plan(estimate=False)


def test_a_folder_without_what_the_prompt_was_made_of_is_refused(tmp_path):
    bundle = attached(method="prompt_tuning", options={"num_virtual_tokens": 4})
    bundle.model.save_pretrained(str(tmp_path))
    with pytest.raises(TunekitError, match=r"holds no prompt_encoder\.safetensors"):
        attached(tiny_bundle(saved_adapter=tmp_path), method="prompt_tuning", options={"num_virtual_tokens": 4})
