"""What every method of gptqmodel's has to satisfy here: a suite, data to quantise by, and models loaded as in a run."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal
from unittest.mock import Mock

import pytest
import torch

from tunekit.errors import HookCallError, PlanError
from tunekit.testing import (
    FP32,
    MIXED,
    ExportSuite,
    QuantizerSuite,
    calls_of,
    default_plugin,
    estimate_for,
    plan_for,
    run_context,
    save_tiny_model,
    tiny_tokenizer,
)
from tunekit.testing.observing import gradients, logits, trainable
from tunekit.testing.runs import installed
from tunekit.values import Account, ExportRequest, Item, LoadRequest, ModelBundle, Precision, TokenSequence

from .copies import REMEMBERED, RUN
from .packed import Packed


@pytest.fixture(scope="session")
def kept_copies(shared: Path) -> Path:
    """A folder in which quantised copies are kept for all tests."""
    return shared / "quantised-copies"


@pytest.fixture(scope="module", autouse=True)
def cache(kept_copies: Path) -> Iterator[Path]:
    """Where copies are kept, as long as tests of the folder that asks for this run, and no others of the process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNEKIT_CACHE", str(kept_copies))
        yield kept_copies


class Rows(list[Item]):
    """Prepared data in memory."""

    account = Account()

    @property
    def size(self) -> int:
        """How many there are."""
        return len(self)


def rows(count: int = 24, length: int = 48) -> Rows:
    """Random tokens, the same every time."""
    drawn = torch.randint(3, 300, (count, length), generator=torch.Generator().manual_seed(5)).tolist()
    return Rows(Item((TokenSequence(ids, [1.0] * length, n + 1, f"row {n + 1}"),)) for n, ids in enumerate(drawn))


def loaded(
    plugin: Packed[Any], model: Path | str, precision: Precision = FP32, folder: Path | None = None, **changes: Any
) -> ModelBundle:
    """The model as a run in `folder` has this plugin load and patch it; `changes` set other fields of the request."""
    plugins = (plugin, default_plugin("tunekit_load_model"))
    calls, context = calls_of(*plugins), run_context(*plugins, folder=folder or Path(), precision=precision)
    request = LoadRequest(str(model), precision, **{"tokenizer": tiny_tokenizer(), "data": rows, **changes})
    request = replace(request, quantization=calls.own("tunekit_quantize", request=request))
    plan = plan_for(plugin, installed().load("lora")(rank=4), model=str(model), precision=precision)
    request = calls.chain("tunekit_before_load", "request", request, plan=plan, context=context)
    bundle: ModelBundle = calls.own("tunekit_load_model", request=request, context=context)
    for _ in calls.each("tunekit_patch", bundle=bundle):
        pass  # a patch changes the model in place
    return bundle


def fill_(model: Any) -> None:
    """Give what trains seeded values, in place."""
    generator = torch.Generator().manual_seed(0)
    for _, parameter in sorted(trainable(model).items()):
        parameter.data = (torch.randn(parameter.shape, generator=generator) * 0.05).to(parameter)


class PackedSuite(QuantizerSuite):
    """A model that is quantised by random data, for groups of 32."""

    @pytest.fixture
    def tiny(self, tmp_path: Path) -> Path:
        """The tiny model on disk."""
        return save_tiny_model(tmp_path / "tiny")

    def request(self, folder: Path) -> LoadRequest:
        """The tiny model with data."""
        return replace(super().request(folder), tokenizer=tiny_tokenizer(), data=rows)

    def load(self, model: Path, **changes: Any) -> ModelBundle:
        """The model as a run loads it."""
        plugin = self.make()
        assert isinstance(plugin, Packed)
        return loaded(plugin, model, **changes)

    def layers(self, bundle: ModelBundle) -> Iterator[tuple[Any, torch.Tensor]]:
        """Each quantised layer with its weight as this package unpacks it, [in out]."""
        plugin = self.make()
        assert isinstance(plugin, Packed)
        for layer in plugin.kind().layers(bundle.model).values():
            yield layer, plugin.kind().weight(layer)

    def test_weights_are_unpacked_as_gptqmodels_own_kernel_does(self, tiny: Path) -> None:
        """Its product with the identity is the weight, in fp16 to the last bit."""
        found = list(self.layers(self.load(tiny)))
        assert len(found) == 14
        for layer, weight in found:
            identity = torch.eye(layer.in_features, dtype=torch.float16)
            assert torch.equal(type(layer).forward(layer, identity), weight.half())

    @pytest.mark.parametrize("precision", [FP32, MIXED], ids=["fp32", "bf16"])
    def test_gradients_are_those_of_the_model_made_dense(self, tiny: Path, precision: Precision) -> None:
        """After an evaluation as well, and no gradient is missing."""
        found = []
        for is_dense in (True, False):
            bundle = loaded(self.kind(), self.load(tiny).source, precision, data=None)  # type: ignore[arg-type]
            if is_dense:
                assert bundle.quantization is not None
                assert bundle.quantization.dequantize is not None
                bundle = bundle.with_model(bundle.quantization.dequantize(bundle.model))
            model = self.adapted(bundle)
            fill_(model)
            with torch.autocast("cpu", torch.bfloat16, enabled=precision.autocast):
                logits(model)
                found.append(gradients(model))
        dense, quantized = found
        assert quantized.keys() == dense.keys()
        assert len(dense) == 28
        for name, gradient in dense.items():
            cosine = torch.cosine_similarity(gradient.flatten(), quantized[name].flatten(), dim=0)
            assert cosine > (0.999 if precision.autocast else 0.999999), name

    def test_it_is_quantised_once_and_a_run_knows_its_copy_when_the_data_has_gone(
        self, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A copy is found again by model, data and options; a run finds it by what it has noted."""
        first = self.load(tiny)
        monkeypatch.setattr("tunekit_gptq.producing.quantize", _must_not)
        (tmp_path / RUN).write_text("{}")
        again = self.load(tiny, folder=tmp_path)
        assert again.source == first.source
        assert (tmp_path / REMEMBERED).is_file()
        assert self.load(tiny, folder=tmp_path, data=None).source == first.source
        with pytest.raises(HookCallError, match="quantised again"):
            self.load(tiny, data=lambda: rows(count=25))

    def test_a_copy_that_was_made_can_be_named_as_the_model(self, tiny: Path) -> None:
        """And options that it has decided are refused then."""
        first = self.load(tiny)
        named = loaded(self.kind(), first.source, data=None)  # type: ignore[arg-type]
        assert torch.equal(logits(named.model), logits(first.model))
        plan = plan_for(self.kind(), self.adapter(), default_plugin("tunekit_load_model"), model=first.source)
        assert not list(calls_of(self.kind()).each("tunekit_check", plan=plan, machine=plan.machine).__next__()[1])
        given = self.make()
        plan = replace(plan, plugins=plan_for(given, self.adapter(), model=first.source).plugins)
        problems = [str(problem) for problem in given.tunekit_check(plan=plan, machine=plan.machine)]  # type: ignore[attr-defined]
        assert len(problems) == len(given.config.model_fields_set)
        assert all("means nothing: the model is quantised already" in problem for problem in problems)

    def test_the_estimate_counts_the_bytes_that_loading_takes(self, tiny: Path) -> None:
        """Integers, scales, zeros and groups of the quantised layers, whatever the dtype of the rest."""
        for precision, size in ((FP32, 4), (MIXED, 2)):
            model = loaded(self.kind(), self.load(tiny).source, precision, data=None)  # type: ignore[arg-type]
            layers = [layer for layer, _ in self.layers(model)]
            stored = sum(part.numel() * part.element_size() for layer in layers for part in layer.state_dict().values())
            dense = sum(layer.in_features * layer.out_features * size for layer in layers)
            estimate = estimate_for(self.make(), self.adapter(), precision=precision)
            bare = estimate_for(self.adapter(), precision=precision)
            assert estimate.trainable == bare.trainable
            assert estimate.memory["weights"] == bare.memory["weights"] - dense + stored

    def test_groups_that_do_not_divide_the_inputs_are_refused_with_what_fits(self) -> None:
        """The tiny model has 128 and 256 inputs."""
        message = r"group_size: is 128, which does not divide the 96 inputs of .*; choose 32, or take -1"
        with pytest.raises(PlanError, match=message):
            estimate_for(self.kind(), self.adapter(), hidden_size=96)


class PackedExportSuite(ExportSuite):
    """What is exported is quantised once for all tests that export the same."""

    def made_of(
        self, folder: Path, content: Literal["trained", "base"] = "trained"
    ) -> tuple[ModelBundle, ExportRequest]:
        """With data."""
        bundle, request = super().made_of(folder, content)
        return bundle, replace(request, data=rows)

    def test_it_is_made_of_the_base_that_is_asked_for(self, tmp_path: Path) -> None:
        """The one the adapter was trained on, else the one before it was quantised."""
        for base in ("stored", "original"):
            place = tmp_path / base
            place.mkdir()
            bundle, request = self.made_of(place)
            dense = Mock(side_effect=request.dense)
            plugin: Any = type(self.plugin)(**{**self.plugin.config.model_dump(exclude_unset=True), "base": base})
            request = replace(request, dense=dense)
            plugin.tunekit_export(bundle=bundle, request=request, context=run_context(folder=place))
            dense.assert_called_once_with(base == "original")

    @pytest.fixture(autouse=True)
    def made_once(self, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
        """Copy what was made of the same weights by the same job before."""
        from . import producing

        really = producing._carry_out

        def carry_out(job: producing.Job, folder: Path) -> None:
            weights = (Path(job.source) / "model.safetensors").read_bytes()
            key = hashlib.sha256(weights + repr((job.settings, job.rows, job.dtype)).encode()).hexdigest()[:16]
            kept = tmp_path_factory.getbasetemp() / f"made-{key}"
            if not kept.exists():
                really(replace(job, target=str(kept)), folder)
            shutil.copytree(kept, job.target, dirs_exist_ok=True)

        monkeypatch.setattr(producing, "_carry_out", carry_out)


def _must_not(*arguments: Any) -> None:
    raise AssertionError("quantised again")
