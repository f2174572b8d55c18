"""Faults of plugins that change the model: patches, adapters, quantisers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from faults.registry import fault, good, suite_of

from tunekit.catalog import Catalog
from tunekit.cli.new import Hook
from tunekit.hooks import hookimpl
from tunekit.testing import (
    FP32,
    MIXED,
    AdapterSuite,
    LoaderSuite,
    PatchSuite,
    QuantizerSuite,
    tiny_bundle,
    tiny_model,
    tiny_tokenizer,
)
from tunekit.values import Context, Estimate, EstimateRequest, LoadRequest, ModelBundle, Quantization, Report
from tunekit_lora import Lora

TRAINING = frozenset({"training", "gradients"})


def patched(change: Callable[[Any, Report], Report]) -> Any:
    """The good patch with its report, or its model, changed afterwards."""

    class Faulty(good(Hook.PATCH).GoodPatch):
        @hookimpl
        def tunekit_patch(self, bundle: ModelBundle) -> Report:
            return change(bundle.model, super().tunekit_patch(bundle))

    return suite_of(PatchSuite, Faulty(probability=0.5), changes=TRAINING)


@fault(PatchSuite, "test_it_changes_what_it_says_and_nothing_else", r"assert set\(\) ==")
def a_patch_that_does_nothing():
    def change(model, report):
        report.undo()
        return report

    return patched(change)


@fault(PatchSuite, "test_it_changes_what_it_says_and_nothing_else", "evaluation")
def a_patch_that_changes_more_than_it_says():
    def change(model, report):
        model.lm_head.weight.data *= 2
        return report

    return patched(change)


@fault(PatchSuite, "test_undoing_restores_every_output_and_parameter", "undo left changed .*training")
def an_undo_that_undoes_nothing():
    return patched(lambda model, report: replace(report, undo=lambda: None))


@fault(PatchSuite, "test_undoing_restores_every_output_and_parameter", "undo left hooks behind")
def an_undo_that_leaves_a_hook():
    def change(model, report):
        model.register_forward_hook(lambda *_: None)
        return report

    return patched(change)


@fault(PatchSuite, "test_undoing_restores_every_output_and_parameter", "the report has no undo")
def a_report_without_undo():
    return patched(lambda model, report: replace(report, undo=None))


@fault(PatchSuite, "test_another_model_of_the_same_class_is_not_touched", "changed .*evaluation.* of another")
def a_patch_of_the_class(monkeypatch):
    forward = torch.nn.Embedding.forward

    def change(model, report):
        monkeypatch.setattr(torch.nn.Embedding, "forward", lambda self, ids: forward(self, ids) * 2)
        return report

    return patched(change)


@fault(PatchSuite, "test_the_report_says_in_one_line_what_was_done", "assert")
def a_report_that_says_nothing():
    return patched(lambda model, report: replace(report, summary=" "))


def adapted(change: Callable[[Any], Any], reopens: bool = True) -> Any:
    """The good adapter with its model changed afterwards."""

    class Faulty(good(Hook.ADAPTER).GoodAdapter):
        @hookimpl
        def tunekit_attach_adapter(self, bundle: ModelBundle, context: Context) -> ModelBundle:
            bundle = bundle if reopens else replace(bundle, saved_adapter=None)
            attached = super().tunekit_attach_adapter(bundle, context)
            change(attached.model)
            return attached

    return suite_of(AdapterSuite, Faulty())


def trainable(model: Any) -> list[Any]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


@fault(AdapterSuite, "test_a_fresh_adapter_leaves_the_outputs_as_they_were", "logits differ by")
def an_adapter_that_starts_elsewhere():
    return adapted(lambda model: [p.data.mul_(1.5) for p in trainable(model)])


@fault(AdapterSuite, "test_only_its_own_parameters_train", "trainable, but never moved: .*idle")
def an_adapter_with_an_idle_parameter():
    return adapted(lambda model: model.register_parameter("idle", torch.nn.Parameter(torch.zeros(1))))


@fault(AdapterSuite, "test_only_its_own_parameters_train", "frozen, but moved: .*lm_head.weight")
def an_adapter_that_moves_the_base():
    def move(module, inputs):
        module.weight.data += 1e-6 * module.training

    return adapted(lambda model: model.get_output_embeddings().register_forward_pre_hook(move))


@fault(AdapterSuite, "test_it_trains_fewer_parameters_than_the_model_has", "assert")
def an_adapter_that_trains_everything():
    return adapted(lambda model: model.requires_grad_(True))


@fault(AdapterSuite, "test_what_trains_is_stored_in_the_dtype_of_the_policy", "torch.bfloat16")
def an_adapter_in_the_dtype_of_the_base():
    return adapted(lambda model: model.to(torch.bfloat16))


@fault(AdapterSuite, "test_a_saved_adapter_reopens_with_the_same_outputs", "logits differ by")
def an_adapter_that_forgets_what_was_saved():
    return adapted(lambda model: None, reopens=False)


@fault(AdapterSuite, "test_a_second_adapter_stands_beside_it_where_the_plugin_carries_several", "logits differ by")
def an_adapter_that_changes_the_one_beside_it():
    class Faulty(Lora):
        @hookimpl
        def tunekit_attach_adapter(self, bundle: ModelBundle, context: Context) -> ModelBundle:
            attached = super().tunekit_attach_adapter(bundle, context)
            if bundle.adapter_name == "second":
                others = (
                    p for name, p in attached.model.named_parameters() if "lora_B" in name and not p.requires_grad
                )
                for parameter in others:
                    parameter.data.mul_(1.5)
            return attached

    return suite_of(AdapterSuite, Faulty(rank=4))


@fault(AdapterSuite, "test_the_merged_model_answers_as_the_adapted_one", "logits differ by")
def an_adapter_that_is_lost_in_merging():
    return adapted(lambda model: setattr(model, "merge_and_unload", model.unload))


@fault(AdapterSuite, "test_the_same_seed_gives_the_same_adapter_whatever_came_before", "two fresh adapters differ")
def an_adapter_that_draws_where_it_likes():
    return adapted(lambda model: [p.data.add_(torch.randn_like(p) * 1e-3) for p in trainable(model)])


@fault(AdapterSuite, "test_the_plan_counts_the_parameters_that_the_run_will_train", "assert")
def an_estimate_that_counts_one_too_many():
    class Faulty(good(Hook.ADAPTER).GoodAdapter):
        @hookimpl
        def tunekit_estimate(self, request: EstimateRequest, estimate: Estimate) -> Estimate:
            estimate = super().tunekit_estimate(request, estimate)
            return replace(estimate, trainable=estimate.trainable + 1)

    return suite_of(AdapterSuite, Faulty())


def quantized(
    quantize: Callable[[Any], Any] = lambda it: it,
    patch: Callable[[Any], Any] = lambda model: None,
    error_bound: float = 1.0,
    steady: bool = True,
) -> Any:
    """A good quantiser with its answer or the loaded model changed; not `steady`: without its own patch."""

    class Faulty(Catalog.discover().load("bnb")):  # type: ignore[misc]
        @hookimpl
        def tunekit_quantize(self, request: LoadRequest) -> Quantization:
            return quantize(super().tunekit_quantize(request))

        @hookimpl
        def tunekit_patch(self, bundle: ModelBundle) -> Report:
            report = super().tunekit_patch(bundle) if steady else Report("nothing")
            patch(bundle.model)
            return report

    return suite_of(QuantizerSuite, Faulty(bits=8), error_bound=error_bound)


@fault(QuantizerSuite, "test_it_says_how_many_bits_a_weight_takes", "assert")
def more_bits_than_before():
    return quantized(lambda it: replace(it, bits=32))


@fault(QuantizerSuite, "test_the_stored_weights_are_smaller", "assert")
def weights_that_stay_as_large():
    return quantized(lambda it: replace(it, arguments={}), steady=False)


@fault(QuantizerSuite, "test_the_outputs_stay_near_the_dense_ones", "relative error 0.0.*, bound 1e-06")
def outputs_that_are_far_away():
    return quantized(error_bound=1e-6)


@fault(QuantizerSuite, "test_the_outputs_stay_near_the_dense_ones", "relative error 0.0000")
def outputs_that_are_those_of_the_dense_model():
    return quantized(lambda it: replace(it, arguments={}), steady=False)


@fault(QuantizerSuite, "test_an_adapter_trains_on_it_and_the_base_stays", "assert")
def a_base_that_moves():
    def move(module, inputs):
        module.weight.data += 1e-6 * module.training

    return quantized(patch=lambda model: model.lm_head.register_forward_pre_hook(move))


@fault(
    QuantizerSuite, "test_gradients_are_those_of_the_dense_model_even_after_an_evaluation", "no gradient for .*layers.0"
)
def layers_that_lose_the_gradient_after_an_evaluation():
    def patch(model):
        seen = []

        def detach(module, inputs, output):
            seen.append(module.training)
            return output if all(seen) else output.detach()

        model.model.layers[0].register_forward_hook(detach)

    return quantized(patch=patch)


@fault(QuantizerSuite, "test_a_fresh_adapter_says_in_training_what_the_base_says_in_evaluation", "apart by")
def layers_that_round_their_inputs_in_evaluation() -> Any:
    def coarser(module, inputs):
        return inputs if module.training else tuple((each * 64).round() / 64 for each in inputs)

    return quantized(patch=lambda model: model.lm_head.register_forward_pre_hook(coarser))


@fault(QuantizerSuite, "test_loading_twice_gives_the_same_outputs", "assert")
def weights_that_differ_each_time():
    return quantized(patch=lambda model: model.lm_head.weight.data.add_(torch.randn(1) * 0.1))


@fault(QuantizerSuite, "test_a_saved_adapter_says_the_same_on_a_base_that_is_quantised_anew", "assert")
def quantises_its_adapter_away() -> Any:
    return quantized(patch=lambda model: model.lm_head.weight.data.add_(torch.randn(1) * 0.1))


@fault(QuantizerSuite, "test_dense_weights_say_what_the_quantised_ones_say", "only be merged into dense weights")
def has_no_dense_weights() -> Any:
    return quantized(lambda it: replace(it, dequantize=None))


@fault(QuantizerSuite, "test_dense_weights_say_what_the_quantised_ones_say", "which is refused")
def refuses_to_merge_and_helps_it() -> Any:
    return quantized(lambda it: replace(it, merge="refuse"))


def other_dense_weights(it: Quantization) -> Quantization:
    def dequantize(model: Any) -> Any:
        assert it.dequantize is not None
        dense = it.dequantize(model)
        dense.model.layers[0].mlp.up_proj.weight.data.mul_(1.1)
        return dense

    return replace(it, dequantize=dequantize)


@fault(QuantizerSuite, "test_dense_weights_say_what_the_quantised_ones_say", "assert")
def has_other_dense_weights() -> Any:
    return quantized(other_dense_weights)


@fault(QuantizerSuite, "test_a_merged_adapter_says_what_it_has_learnt", "what was learnt is lost in merging")
def merges_into_other_weights() -> Any:
    return quantized(other_dense_weights)


def loading(
    request_change: Callable[[LoadRequest], LoadRequest] = lambda request: request,
    change: Callable[[ModelBundle], ModelBundle] = lambda bundle: bundle,
) -> Any:
    """A good loader, with what it is given or what it gives back changed."""

    class Faulty(Catalog.discover().load("transformers")):  # type: ignore[misc]
        @hookimpl
        def tunekit_load_model(self, request: LoadRequest, context: Context) -> ModelBundle:
            return change(super().tunekit_load_model(request_change(request), context))

    return suite_of(LoaderSuite, Faulty())


@fault(LoaderSuite, "test_it_loads_the_weights_that_were_saved", "logits differ by")
def a_loader_that_loads_something_else():
    return loading(change=lambda bundle: replace(bundle, model=tiny_model(seed=1)))


@fault(LoaderSuite, "test_it_loads_the_tokenizer_with_its_chat_template", "assert")
def a_loader_that_loses_the_template():
    def lose(bundle):
        bundle.tokenizer.chat_template = None
        return bundle

    return loading(change=lose)


@fault(LoaderSuite, "test_weights_are_stored_in_the_dtype_of_the_policy", "float32")
def a_loader_with_a_dtype_of_its_own():
    return loading(lambda request: replace(request, precision=FP32))


@fault(LoaderSuite, "test_the_purpose_changes_no_weight", "assert")
def a_loader_that_rounds_for_answering():
    def around(request):
        return request if request.purpose == "train" else replace(request, precision=MIXED)

    return loading(around)


@fault(LoaderSuite, "test_a_quantiser_may_swap_modules_once_the_model_is_loaded", "assert")
def a_loader_that_leaves_the_swap_out():
    return loading(lambda request: replace(request, quantization=None))


@fault(LoaderSuite, "test_a_change_of_the_config_is_made_or_refused", "4321")
def a_loader_that_leaves_changes_of_the_config_out():
    return loading(lambda request: replace(request, configure=()))


@fault(LoaderSuite, "test_a_model_that_is_not_there_is_named", "DID NOT RAISE")
def a_loader_that_finds_everything():
    class Faulty(Catalog.discover().load("transformers")):  # type: ignore[misc]
        @hookimpl
        def tunekit_load_tokenizer(self, request: LoadRequest, context: Context) -> Any:
            return tiny_tokenizer()

        @hookimpl
        def tunekit_load_model(self, request: LoadRequest, context: Context) -> ModelBundle:
            return tiny_bundle()

    return suite_of(LoaderSuite, Faulty())
