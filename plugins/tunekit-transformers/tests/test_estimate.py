"""What a model needs is counted before a weight is read."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest
import torch

from tunekit.errors import ModelNotFoundError, TunekitError
from tunekit.hooks import hookimpl
from tunekit.plugin import Plugin, PluginConfig
from tunekit.testing.runs import plan_for
from tunekit.testing.tiny import FP32, MIXED, save_tiny_model, tiny_model
from tunekit.values import Context, Estimate, EstimateRequest, LoadRequest, ModelBundle, Precision
from tunekit_transformers import Transformers

PURE = Precision("cpu", "bfloat16", "bfloat16", "bfloat16", "a test")


class AdapterConfig(PluginConfig):
    """No options."""


class SomeAdapter(Plugin[AdapterConfig]):
    """Whatever trains a part."""

    @hookimpl
    def tunekit_attach_adapter(self, bundle: ModelBundle, context: Context) -> ModelBundle:
        return bundle


def estimate(model: str | Path, precision: Precision = FP32, adapter: bool = False, **options: object) -> Estimate:
    plugin = Transformers(**options)
    plan = plan_for(plugin, precision=precision, model=str(model))
    if adapter:
        from dataclasses import replace

        plan = replace(plan, plugins=(*plan.plugins, replace(plan.plugins[0], plugin=SomeAdapter())))
    return plugin.tunekit_estimate(EstimateRequest(plan, LoadRequest(str(model), precision)), Estimate(notes=("one",)))


COUNT = sum(parameter.numel() for parameter in tiny_model().parameters())


def test_parameters_are_counted_without_a_weight(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"no weights here")
    found = estimate(folder)
    assert (found.parameters, found.trainable) == (COUNT, COUNT)
    assert {parameter.device.type for parameter in found.skeleton.parameters()} == {"meta"}
    assert found.notes == ("one",)


def test_tied_weights_count_once(tmp_path: Path) -> None:
    tied = save_tiny_model(tmp_path / "tied", tie_word_embeddings=True)
    assert estimate(tied).parameters == COUNT - 512 * 128


@pytest.mark.parametrize(
    ("precision", "adapter", "size"), [(FP32, True, 4), (MIXED, True, 2), (MIXED, False, 4), (PURE, False, 2)]
)
def test_weights_are_counted_in_the_dtype_they_will_have(
    folder: Path, precision: Precision, adapter: bool, size: int
) -> None:
    """Frozen ones in `weights`; without an adapter all train, and are in `trainable`."""
    assert estimate(folder, precision, adapter).memory["weights"] == COUNT * size


def test_the_skeleton_has_the_dtype_of_the_weights(folder: Path) -> None:
    assert estimate(folder, MIXED).skeleton.lm_head.weight.dtype is torch.bfloat16


def test_the_process_is_measured(folder: Path) -> None:
    found = estimate(folder).memory["process"]
    now = psutil.Process().memory_info().rss
    assert found == pytest.approx(now, rel=0.1)
    assert found > 100 << 20


def test_a_gguf_file_not_converted_is_estimated_all_the_same_and_that_is_noted(
    quantised_file: Path, tmp_path: Path
) -> None:
    found = estimate(quantised_file, cache=tmp_path / "cache")
    assert found.parameters == COUNT
    assert found.notes[1:] == (f"{quantised_file} is not converted yet: the first run takes about 5 s for it, once",)
    assert not (tmp_path / "cache").exists()


def test_a_converted_file_has_no_note(gguf_file: Path, tmp_path: Path) -> None:
    from tunekit_transformers.conversion import convert

    convert(gguf_file, tmp_path / "cache", lambda message: None)
    found = estimate(gguf_file, cache=tmp_path / "cache")
    assert (found.parameters, found.notes) == (COUNT, ("one",))


def test_a_missing_model_is_said(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="there is no such folder"):
        estimate(tmp_path / "nowhere")


def test_a_model_that_does_not_continue_text_is_said(folder: Path) -> None:
    import transformers

    transformers.T5Config(vocab_size=512, d_model=32, d_ff=64, num_layers=1, num_heads=2).save_pretrained(folder)
    with pytest.raises(TunekitError, match="is not a causal language model"):
        estimate(folder)
