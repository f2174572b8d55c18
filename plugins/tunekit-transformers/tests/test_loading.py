"""Models are loaded as asked, and what would silently be wrong is refused."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from tunekit.errors import ModelNotFoundError, PlanError, TunekitError
from tunekit.testing.options import shows
from tunekit.testing.runs import plan_for, run_context
from tunekit.testing.tiny import FP32, MIXED, save_tiny_model, tiny_model, tiny_tokenizer
from tunekit.values import Event, LoadRequest, ModelBundle, Quantization
from tunekit_transformers import Transformers
from tunekit_transformers.loading import place_of
from tunekit_transformers.options import LoadOptions
from tunekit_transformers.sources import find_source, whole_in_hub_cache

Loaded = Callable[..., ModelBundle]


def edit(file: Path, **changes: Any) -> None:
    """Change keys of a JSON file; None takes one out."""
    content = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def test_a_folder_is_loaded_with_its_weights_and_tokenizer(folder: Path, loaded: Loaded) -> None:
    bundle = loaded(folder)
    assert torch.equal(bundle.model.lm_head.weight, tiny_model().lm_head.weight)
    assert bundle.tokenizer("river")["input_ids"] == tiny_tokenizer()("river")["input_ids"]
    assert bundle.tokenizer.chat_template == tiny_tokenizer().chat_template
    assert (bundle.source, bundle.precision, bundle.quantization) == (str(folder), FP32, None)
    assert not bundle.model.training


@pytest.mark.parametrize(("precision", "dtype"), [(FP32, torch.float32), (MIXED, torch.bfloat16)])
def test_weights_come_in_the_dtype_of_the_policy(folder: Path, loaded: Loaded, precision: Any, dtype: Any) -> None:
    model = loaded(folder, {"precision": precision}).model
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}


def test_nothing_is_drawn_or_logged_and_the_settings_come_back(
    folder: Path, loaded: Loaded, capfd: pytest.CaptureFixture[str]
) -> None:
    bars = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.enable_progress_bar()
    loaded(folder)
    assert capfd.readouterr() == ("", "")
    assert transformers.utils.logging.is_progress_bar_enabled()
    if not bars:
        transformers.utils.logging.disable_progress_bar()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_attention_option_reaches_the_model(folder: Path, loaded: Loaded, attention: str) -> None:
    assert loaded(folder, attention=attention).model.config._attn_implementation == attention


def test_left_alone_attention_is_what_transformers_chooses(folder: Path, loaded: Loaded) -> None:
    assert loaded(folder).model.config._attn_implementation == "sdpa"
    asked = loaded(folder, {"arguments": {"attn_implementation": "eager"}})
    assert asked.model.config._attn_implementation == "eager"


def test_two_different_attentions_are_refused(folder: Path, loaded: Loaded) -> None:
    with pytest.raises(TunekitError, match=r"use\.transformers\.attention is sdpa, but another plugin asks for eager"):
        loaded(folder, {"arguments": {"attn_implementation": "eager"}}, attention="sdpa")


def test_arguments_of_before_load_reach_the_model(folder: Path, loaded: Loaded) -> None:
    scaling = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}
    model = loaded(folder, {"arguments": {"rope_parameters": scaling}}).model
    assert model.config.rope_parameters["factor"] == 2.0


def test_changes_of_the_config_go_with_what_other_plugins_ask_for(folder: Path, loaded: Loaded) -> None:
    def widen(config: Any) -> None:
        config.max_position_embeddings *= 2

    asked = {
        "attn_implementation": "eager",
        "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4},
    }
    config = loaded(folder, {"arguments": asked, "configure": (widen, widen)}).model.config
    assert (config._attn_implementation, config.rope_parameters["factor"]) == ("eager", 2.0)
    assert config.max_position_embeddings == 4 * 2048


def test_a_quantisation_passes_its_arguments_on_and_swaps_modules_afterwards(folder: Path, loaded: Loaded) -> None:
    def zero_head_(model: Any) -> Any:
        with torch.no_grad():
            model.lm_head.weight.zero_()
        return model

    quantisation = Quantization("a test", 16, {"dtype": torch.float16}, zero_head_)
    bundle = loaded(folder, {"quantization": quantisation})
    assert bundle.model.model.norm.weight.dtype is torch.float16
    assert not bundle.model.lm_head.weight.any()
    assert bundle.quantization is quantisation


def test_pickled_weights_load_where_they_are_asked_for(folder: Path, loaded: Loaded) -> None:
    weights = folder / "model.safetensors"
    torch.save(load_file(weights), folder / "pytorch_model.bin")
    weights.unlink()
    with pytest.raises(ModelNotFoundError, match="only pickled weights"):
        loaded(folder)
    assert torch.equal(loaded(folder, allow_pickle=True).model.lm_head.weight, tiny_model().lm_head.weight)


def test_a_checkpoint_that_lacks_weights_is_refused(folder: Path, loaded: Loaded) -> None:
    weights = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if "layers.1.mlp" not in name and "lm_head" not in name}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(TunekitError, match=r"lack lm_head\.weight, .* and 1 more, which would be random"):
        loaded(folder)


@shows("leave_out")
def test_weights_that_the_model_has_no_place_for_are_refused_unless_they_are_named(
    folder: Path, loaded: Loaded
) -> None:
    """A bias that the config denies, and a part that other code uses; old buffers of positions do no harm."""
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.self_attn.q_proj.bias"] = torch.ones(128)
    tensors["mtp.layers.0.weight"] = torch.ones(4)
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(16)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(TunekitError, match=r"holds .*\.q_proj\.bias, mtp\.layers\.0\.weight, which the model"):
        loaded(folder)
    with pytest.raises(TunekitError, match=r"holds model\S*\.q_proj\.bias, which the model has no place for"):
        loaded(folder, leave_out=["mtp.*"])
    model = loaded(folder, leave_out=["mtp.*", "*.q_proj.bias"]).model
    assert torch.equal(model.lm_head.weight, tiny_model().lm_head.weight)


def test_a_checkpoint_that_values_texts_is_refused_in_the_plan(folder: Path) -> None:
    edit(folder / "config.json", architectures=["LlamaForSequenceClassification"])
    plugin = Transformers()
    plan = plan_for(plugin, model=str(folder))
    found = [str(problem) for problem in plugin.tunekit_check(plan=plan, machine=plan.machine)]
    assert found == [
        f"model: {folder} is a LlamaForSequenceClassification, whose head values texts and would be left out; name the "
        "model that it was made of; `ppo` takes one that rewards as its `reward.model`"
    ]


def test_tied_weights_are_not_missing(tmp_path: Path, loaded: Loaded) -> None:
    model = loaded(save_tiny_model(tmp_path / "tied", tie_word_embeddings=True)).model
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_a_model_that_does_not_continue_text_is_refused(folder: Path, loaded: Loaded) -> None:
    config = transformers.T5Config(vocab_size=512, d_model=32, d_ff=64, num_layers=1, num_heads=2)
    transformers.T5ForConditionalGeneration(config).save_pretrained(folder)
    with pytest.raises(TunekitError, match="is not a causal language model"):
        loaded(folder)


def test_a_tokenizer_without_padding_pads_with_its_end_and_says_so(folder: Path) -> None:
    edit(folder / "tokenizer_config.json", pad_token=None)
    told: list[Event] = []
    plugin = Transformers()
    context = run_context(plugin, watch=told.append)
    tokenizer = plugin.tunekit_load_tokenizer(LoadRequest(str(folder), FP32), context)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == 2
    assert [event.message for event in told] == ["the tokenizer has no padding token; its end token <|im_end|> pads"]


def test_a_tokenizer_with_neither_padding_nor_end_is_refused(folder: Path, loaded: Loaded) -> None:
    edit(folder / "tokenizer_config.json", pad_token=None, eos_token=None)
    with pytest.raises(TunekitError, match="neither a padding nor an end token; set pad_token or eos_token"):
        loaded(folder)


def test_a_model_without_a_tokenizer_is_said(folder: Path, loaded: Loaded) -> None:
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (folder / file).unlink()
    with pytest.raises(TunekitError, match=r"the tokenizer of .* cannot be loaded"):
        loaded(folder)


def test_code_of_a_repository_runs_only_when_asked(
    folder: Path, loaded: Loaded, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    (folder / "own.py").write_text(
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class OwnConfig(LlamaConfig):\n    model_type = 'own_llama'\n"
        "class OwnModel(LlamaForCausalLM):\n    config_class = OwnConfig\n    mark = 'own code'\n"
    )
    edit(
        folder / "config.json",
        model_type="own_llama",
        auto_map={"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"},
    )
    with pytest.raises(TunekitError, match=r"own Python code, .*set use\.transformers\.trust_remote_code to true"):
        loaded(folder)
    assert loaded(folder, trust_remote_code=True).model.mark == "own code"


def test_a_missing_model_is_said(tmp_path: Path, loaded: Loaded) -> None:
    with pytest.raises(ModelNotFoundError, match="there is no such folder"):
        loaded(tmp_path / "nowhere")


def test_a_revision_of_a_local_model_is_refused_in_the_plan(folder: Path) -> None:
    plugin = Transformers(revision="v1")
    plan = plan_for(plugin, model=str(folder))
    found = [str(problem) for problem in plugin.tunekit_check(plan=plan, machine=plan.machine)]
    assert found == [f"use.transformers.revision: is v1, but {folder} is not on the hub; leave it out"]


@pytest.fixture
def hub(hub_cache: Callable[[str, str], Path]) -> SimpleNamespace:
    """A hub cache with two revisions of one model in it, and no network."""
    snapshots = [save_tiny_model(hub_cache("someone/tiny", name), seed) for seed, name in enumerate(("main", "v1"))]
    return SimpleNamespace(cache=snapshots[0].parents[2], main=snapshots[0], v1=snapshots[1])


@pytest.mark.parametrize(("revision", "seed"), [(None, 0), ("main", 0), ("v1", 1)])
def test_a_hub_model_is_loaded_in_the_revision_asked_for(
    hub: SimpleNamespace, loaded: Loaded, revision: str | None, seed: int
) -> None:
    model = loaded("someone/tiny", revision=revision).model
    assert torch.equal(model.lm_head.weight, tiny_model(seed).lm_head.weight)


def test_a_hub_model_that_cannot_be_had_is_said(hub: SimpleNamespace, loaded: Loaded) -> None:
    with pytest.raises(ModelNotFoundError, match=r"someone/other is not in the hub's local cache and HF_HUB_OFFLINE"):
        loaded("someone/other")


def test_a_hub_name_that_does_not_exist_is_said(
    hub: SimpleNamespace, loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    with pytest.raises(ModelNotFoundError, match="neither a local folder nor to be had from the hub"):
        loaded("someone/other")


@pytest.fixture
def attempts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The hosts that somebody looked up meanwhile; none is found."""
    asked: list[str] = []

    def look_up(host: Any, *others: Any, **options: Any) -> Any:
        asked.append(str(host))
        raise socket.gaierror(f"no network in a test: {host}")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    return asked


def test_a_hub_model_that_is_here_whole_is_loaded_without_asking_the_network(
    hub: SimpleNamespace, loaded: Loaded, attempts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    bundle = loaded("someone/tiny")
    assert torch.equal(bundle.model.lm_head.weight, tiny_model().lm_head.weight)
    assert attempts == []
    assert bundle.model.name_or_path == bundle.tokenizer.name_or_path == "someone/tiny"


def test_asked_for_updates_it_goes_by_the_hub(hub: SimpleNamespace) -> None:
    source = find_source("someone/tiny")
    assert place_of(source, LoadOptions(update=True)) == "someone/tiny"
    assert place_of(source, LoadOptions()) == str(hub.main)


def test_a_model_that_is_here_in_part_is_not_taken_for_whole(hub: SimpleNamespace) -> None:
    assert whole_in_hub_cache("someone/tiny", "v1") is not None
    (hub.v1 / "model.safetensors").unlink()
    assert whole_in_hub_cache("someone/tiny", "v1") is None
    assert whole_in_hub_cache("someone/other", None) is None


def test_a_model_may_be_spread_over_devices_within_bounds(
    folder: Path, loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[dict[str, Any]] = []
    load = transformers.AutoModelForCausalLM.from_pretrained

    def spread(place: str, **arguments: Any) -> Any:
        given.append({name: arguments.pop(name, None) for name in ("device_map", "max_memory")})
        return load(place, **arguments)

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", spread)
    loaded(folder, device_map="balanced", max_memory={0: "20GiB", "cpu": "60GiB"})
    loaded(folder)
    assert given == [
        {"device_map": "balanced", "max_memory": {0: "20GiB", "cpu": "60GiB"}},
        {"device_map": None, "max_memory": None},
    ]


def test_an_attention_that_would_not_be_computed_with_is_refused(folder: Path) -> None:
    from tunekit import Pipeline

    def planned(padding: str) -> None:
        stage = {"sft": {"batch": {"padding": padding}}}
        use = {"transformers": {"attention": "eager"}, "lora": {}}
        Pipeline(str(folder), [{"text": "words"}] * 4, use=use, stages=[stage]).plan(estimate=False)

    with pytest.raises(PlanError, match=r"use\.transformers\.attention: is eager, and sft lays sequences end to end"):
        planned("auto")
    planned("always")


def test_what_is_spread_is_not_trained_and_a_cpu_is_one_device(folder: Path) -> None:
    from tunekit import Pipeline

    use = {"transformers": {"device_map": "auto"}, "lora": {}}
    with pytest.raises(PlanError, match="training computes on one device") as refused:
        Pipeline(str(folder), [{"text": "hi"}] * 2, use=use, stages=[{"sft": {}}]).plan(estimate=False)
    assert "which is one device" in str(refused.value)
    with pytest.raises(ValueError, match="max_memory acts only where device_map spreads"):
        Transformers(max_memory={"cpu": "1GiB"})
