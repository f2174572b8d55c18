"""Every installed target that writes merged weights refuses the same before a run begins, by the recipe's own key."""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec

import pytest

import tunekit as tk
from tunekit.catalog import EXPORTS, Catalog
from tunekit.errors import PlanError
from tunekit.options import DenseExportConfig
from tunekit.testing import save_tiny_model

NEEDS = {"gptq": "gptqmodel", "awq": "gptqmodel"}
"""Targets that are refused, for another reason, where a library is missing."""
INSTALLED = Catalog.discover(group=EXPORTS)
TARGETS = [
    name
    for name in INSTALLED.names
    if issubclass(INSTALLED.load(name).config_type(), DenseExportConfig) and find_spec(NEEDS.get(name, "tunekit"))
]
TEXTS = [{"text": "one two three"}]
PAIRS = [{"prompt": "one", "chosen": "two", "rejected": "three"}]
SFT = {"sft": {"epochs": 1}}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


LORA = {"lora": {"rank": 4}}


def refused(model, data=TEXTS, stages=(SFT,), export=None, options=None, adapter=LORA, **use):
    """What the plan says, by places of the recipe; of all targets where no `export` is given."""
    export = export or [{name: dict(options or {})} for name in TARGETS]
    use = {"precision": {"compute": "fp32"}, **adapter, **use}
    pipeline = tk.Pipeline(model=str(model), data=data, use=use, stages=list(stages), export=export)
    with pytest.raises(PlanError) as raised:
        pipeline.plan()
    found = {}
    for problem in raised.value.problems:
        found[problem.where] = f"{found.get(problem.where, '')}{problem}"
    return found


def test_there_are_such_targets():
    assert {"merged", "gguf", "ollama"} <= set(TARGETS)


def test_the_head_of_a_reward_model_is_held_by_none(tiny):
    found = refused(tiny, data=PAIRS, stages=[{"reward": {"epochs": 1}}])
    for number, name in enumerate(TARGETS):
        message = found[f"export.{number}.{name}"]
        assert "reward trains a reward model, whose head these files cannot hold; export the adapter" in message


def test_a_reward_model_that_was_trained_whole_is_where_the_run_has_left_it(tiny, tmp_path):
    """Neither an adapter nor merged weights hold it, and each says so rather than name the other."""
    stage = {"reward": {"epochs": 1, "batch": {"rows": 1}}}
    use = {"precision": {"compute": "fp32"}, "full": {}}
    export = [{"merged": {}}, {"adapter": {}}]
    pipeline = tk.Pipeline(model=str(tiny), data=PAIRS, use=use, stages=[stage], export=export)
    with pytest.raises(PlanError) as raised:
        pipeline.plan(False)
    for problem in raised.value.problems:
        assert "take the folder `model` of the run, which has the head beside it" in str(problem)
    assert len(raised.value.problems) == 2
    pipeline = tk.Pipeline(model=str(tiny), data=PAIRS, use=use, stages=[stage])
    assert (pipeline.run(tmp_path / "run").record.artefact("model") / "value_head.safetensors").is_file()


APART = "what peft trains stands beside the weights, and cannot be added into them; export the adapter alone"
NO_WAY = "peft knows no way to add what it trains into the weights; export the adapter alone"


@pytest.mark.parametrize(("method", "reason"), [("prompt_tuning", APART), ("beft", APART), ("ln_tuning", NO_WAY)])
def test_what_is_added_into_no_weights_is_exported_as_the_adapter_it_is(tiny, method, reason):
    found = refused(tiny, adapter={"peft": {"method": method}})
    for number, name in enumerate(TARGETS):
        assert reason in found[f"export.{number}.{name}"]
    recipe = {"model": str(tiny), "data": TEXTS, "stages": [SFT]}
    tk.Pipeline(**recipe, use={"peft": {"method": method}}, export=[{"adapter": {}}]).plan()
    tk.Pipeline(**recipe, use={"peft": {"method": "ia3"}}, export=[{"merged": {}}]).plan()


def test_of_several_adapters_the_one_that_is_exported_decides(tiny):
    """Its first stage says how it is made; later ones train it further."""
    beft, merged = {"peft": {"method": "beft"}}, [{"merged": {}}]

    def stage(adapter, **use):
        return {"sft": {"epochs": 1, "adapter": adapter, **({"use": use} if use else {})}}

    for stages in (
        [stage("one", **LORA), stage("two", **beft)],
        [stage("one", **beft), stage("one")],
    ):
        assert APART in refused(tiny, stages=stages, adapter={}, export=merged)["export.0.merged"]
    for stages in (
        [stage("one", **beft), stage("two", **LORA)],
        [stage("one", **LORA), stage("one")],
    ):
        recipe = {"model": str(tiny), "data": TEXTS, "stages": stages, "export": merged}
        tk.Pipeline(**recipe).plan()
    shared = {"model": str(tiny), "data": TEXTS, "use": beft, "export": merged}
    tk.Pipeline(**shared, stages=[stage("one", **LORA), stage("one")]).plan()


def test_there_is_an_original_of_weights_only_that_the_run_has_quantised(tiny, tmp_path):
    original = {"base": "original"}
    stored = shutil.copytree(tiny, tmp_path / "stored")
    config = json.loads((stored / "config.json").read_text())
    said = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    (stored / "config.json").write_text(json.dumps({**config, "quantization_config": said}))
    dense = refused(tiny, options=original)
    quantised = refused(stored, options=original, bnb={})
    for number, name in enumerate(TARGETS):
        key = f"export.{number}.{name}.base"
        assert "is original, and the base is not quantised" in dense[key]
        assert "itself is stored quantised, so there is no other; leave it out" in quantised[key]


def test_a_model_that_reads_images_goes_into_none_but_merged_weights(tmp_path):
    from tunekit_vision.testing import rows, save_llava, save_pictures

    model = save_llava(tmp_path / "llava")
    found = refused(model, data=rows(save_pictures(tmp_path), 2), vision={})
    for number, name in enumerate(TARGETS):
        message = found.pop(f"export.{number}.{name}", "")
        assert ("reads images, and these files hold text models alone" in message) is (name != "merged")
    assert not found


def test_groups_that_do_not_divide_the_inputs_are_refused_with_one_that_does(tmp_path):
    """Of 96 and 256 inputs; by the shapes of the model, and for all targets at once."""
    model = save_tiny_model(tmp_path / "odd", hidden_size=96)
    options = {"compressed-tensors": {"group": 64}, "torchao": {"kind": "int4", "group": 64}, "gptq": {}, "awq": {}}
    targets = [name for name in options if name in TARGETS]
    found = refused(model, export=[{name: options[name]} for name in targets])
    for number, name in enumerate(targets):
        key = f"export.{number}.{name}.{'group_size' if name in NEEDS else 'group'}"
        assert "which does not divide the 96 inputs of model.layers.0" in found[key]
        assert "; choose 32" in found[key]
        assert ("or take -1 for one group a column" in found[key]) is (name in NEEDS)
