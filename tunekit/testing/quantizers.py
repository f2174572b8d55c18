"""What a quantiser has to satisfy: smaller weights, outputs near the dense ones, and adapters that train on it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from ..plugin import Plugin
from ..recipe import Recipe
from ..values import LoadRequest, ModelBundle, Plan, Quantization
from .observing import changed, gradients, logits, snapshot, train_, trainable, training_logits
from .plugins import PluginSuite
from .runs import calls_of, default_plugin, fake_machine, installed, planned, run_context
from .tiny import FP32, save_tiny_model


class QuantizerSuite(PluginSuite):
    """`error_bound` is the largest mean absolute error of logits, relative to the mean size of the dense ones.

    The model is loaded by the default loader, and `lora` is put on it; both have to be installed for this suite.
    """

    error_bound: ClassVar[float]
    gradient_cosine: ClassVar[float] = 0.9

    def adapter(self) -> Plugin[Any]:
        """The adapter that trains on the quantised weights."""
        return installed().load("lora")(rank=4)

    def dense(self, folder: Path) -> ModelBundle:
        """The tiny model as it is."""
        return self._loaded(folder, *self.companions)

    def quantized(self, folder: Path) -> ModelBundle:
        """The tiny model as the quantiser has it loaded and patched."""
        return self._loaded(folder, self.make(), *self.companions)

    def request(self, folder: Path) -> LoadRequest:
        """What is to be loaded: the tiny model, saved into `folder` when first asked for."""
        if not (folder / "config.json").is_file():
            save_tiny_model(folder)
        return LoadRequest(str(folder), FP32)

    def adapted(self, bundle: ModelBundle) -> Any:
        """The model of the bundle with the adapter on it."""
        return self._attached(bundle).model

    def _attached(self, bundle: ModelBundle) -> ModelBundle:
        """The bundle with the adapter on it, fresh or the saved one that it names."""
        context = run_context(self.adapter())
        attached: ModelBundle = context.calls.own("tunekit_attach_adapter", bundle=bundle, context=context)
        return attached

    def _trained(self, model: Path, adapter: Path) -> tuple[Any, Any]:
        """Train an adapter and save it: what the model says without it, and with it."""
        bundle = self._attached(self.quantized(model))
        start = training_logits(bundle.model)
        train_(bundle.model, steps=8)
        assert bundle.save is not None, "the adapter of this suite can be saved"
        bundle.save(bundle.model, adapter)
        return start, training_logits(bundle.model)

    def _loaded(self, folder: Path, *plugins: Plugin[Any]) -> ModelBundle:
        plugins = (*plugins, default_plugin("tunekit_load_model"))
        calls, context, request = calls_of(*plugins), run_context(*plugins), self.request(folder)
        if calls.owner("tunekit_quantize") is not None:
            request = replace(request, quantization=calls.own("tunekit_quantize", request=request))
        plan = Plan(Recipe(request.model), fake_machine(), FP32, planned(*plugins), (), ())
        request = calls.chain("tunekit_before_load", "request", request, plan=plan, context=context)
        bundle: ModelBundle = calls.own("tunekit_load_model", request=request, context=context)
        for _ in calls.each("tunekit_patch", bundle=bundle):
            pass  # a patch changes the model in place
        return bundle

    def test_it_says_how_many_bits_a_weight_takes(self, tmp_path: Path) -> None:
        """Fewer than the 16 of bf16, scales included, and under a name."""
        quantization: Quantization = self.calls().own("tunekit_quantize", request=self.request(tmp_path))
        assert 0 < quantization.bits < 16
        assert quantization.method

    def test_the_stored_weights_are_smaller(self, tmp_path: Path) -> None:
        """Than those of the dense model, and the bundle says that they are quantised."""
        quantized = self.quantized(tmp_path)
        assert quantized.quantization is not None
        assert _stored(quantized.model) < _stored(self.dense(tmp_path).model)

    def test_the_outputs_stay_near_the_dense_ones(self, tmp_path: Path) -> None:
        """Within `error_bound`, and not equal, which would mean that nothing was quantised."""
        dense = logits(self.dense(tmp_path).model)
        error = float((logits(self.quantized(tmp_path).model) - dense).abs().mean() / dense.abs().mean())
        assert 0 < error <= self.error_bound, f"relative error {error:.4f}, bound {self.error_bound}"

    def test_an_adapter_trains_on_it_and_the_base_stays(self, tmp_path: Path) -> None:
        """The loss falls, every adapter parameter moves, and nothing else does."""
        model = self.adapted(self.quantized(tmp_path))
        named, before = set(trainable(model)), snapshot(model)
        losses = train_(model)
        assert losses[-1] < losses[0], f"the loss does not fall: {losses}"
        assert changed(before, snapshot(model)) == named

    def test_gradients_are_those_of_the_dense_model_even_after_an_evaluation(self, tmp_path: Path) -> None:
        """Some kernels switch to one without gradients after the first evaluation: silently wrong training."""
        import torch

        found = []
        for bundle in (self.dense(tmp_path), self.quantized(tmp_path)):
            model = self.adapted(bundle)
            _fill_(model)
            logits(model)
            found.append(gradients(model))
        dense, quantized = found
        assert quantized.keys() == dense.keys(), f"no gradient for {sorted(dense.keys() - quantized.keys())}"
        for name, gradient in dense.items():
            cosine = float(torch.cosine_similarity(gradient.flatten(), quantized[name].flatten().float(), dim=0))
            assert cosine >= self.gradient_cosine, f"{name}: cosine {cosine:.3f} with the dense model's gradient"

    def test_a_fresh_adapter_says_in_training_what_the_base_says_in_evaluation(self, tmp_path: Path) -> None:
        """Bit for bit: what a policy has learnt is what it says in training less what its reference says in evaluation.

        Some kernels round what goes into a layer in one of the two modes alone.
        """
        model = self.adapted(self.quantized(tmp_path))
        before = training_logits(model)
        with model.disable_adapter():
            said = logits(model)
        assert bool((before == said).all()), f"apart by {float((before - said).abs().max()):.2g}"
        assert bool((training_logits(model) == before).all()), "an evaluation has changed what it says in training"

    def test_loading_twice_gives_the_same_outputs(self, tmp_path: Path) -> None:
        """Quantising is deterministic, so a run can be opened again."""
        first, second = (logits(self.quantized(tmp_path).model) for _ in range(2))
        assert bool((first == second).all())

    def test_a_saved_adapter_says_the_same_on_a_base_that_is_quantised_anew(self, tmp_path: Path) -> None:
        """Bit for bit: a finished run can be opened again."""
        _, trained = self._trained(tmp_path / "model", tmp_path / "adapter")
        again = replace(self.quantized(tmp_path / "model"), saved_adapter=tmp_path / "adapter")
        assert bool((training_logits(self._attached(again).model) == trained).all())

    def test_dense_weights_say_what_the_quantised_ones_say(self, tmp_path: Path) -> None:
        """`dequantize` gives ordinary layers of the same weights, which are saved and loaded as a model of its own."""
        import torch
        from transformers import AutoModelForCausalLM

        bundle = self.quantized(tmp_path / "model")
        quantization = bundle.quantization
        assert quantization is not None
        if quantization.merge == "refuse":
            assert quantization.dequantize is None, "dense weights would let an adapter be merged, which is refused"
            return
        said = training_logits(bundle.model)
        assert quantization.dequantize is not None, "an adapter can only be merged into dense weights"
        dense = quantization.dequantize(bundle.model)
        assert float((training_logits(dense) - said).abs().max()) <= DENSE_ERROR * float(said.abs().max())
        dense.save_pretrained(str(tmp_path / "dense"))
        loaded: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "dense", dtype=torch.float32)
        assert getattr(loaded.config, "quantization_config", None) is None
        assert bool((training_logits(loaded) == training_logits(dense)).all())

    def test_a_merged_adapter_says_what_it_has_learnt(self, tmp_path: Path) -> None:
        """Merged into the dense weights; into the rounded ones it would be rounded away."""
        start, trained = self._trained(tmp_path / "model", tmp_path / "adapter")
        bundle = self.quantized(tmp_path / "model")
        assert bundle.quantization is not None
        if bundle.quantization.dequantize is None:
            return
        dense = bundle.with_model(bundle.quantization.dequantize(bundle.model), saved_adapter=tmp_path / "adapter")
        attached = self._attached(dense)
        assert attached.adapters is not None
        merged = training_logits(attached.adapters.merge(attached.model, attached.adapter_name))
        learnt = float((trained - start).norm())
        assert float((merged - trained).norm()) <= DENSE_ERROR * learnt, "what was learnt is lost in merging"


DENSE_ERROR = 1e-3
"""Between the products of a quantised layer and of its dense weights, both in fp32: another order of additions."""


def _stored(model: Any) -> int:
    """Bytes of all parameters and buffers."""
    return sum(value.numel() * value.element_size() for value in snapshot(model).values())


def _fill_(model: Any) -> None:
    """Give what trains seeded values, in place: at an adapter's start half of its gradients are zero by design."""
    import torch

    generator = torch.Generator().manual_seed(0)
    for _, parameter in sorted(trainable(model).items()):  # a quantiser may keep layers in another order
        parameter.data = (torch.randn(parameter.shape, generator=generator) * 0.02).to(parameter)
