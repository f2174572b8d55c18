"""Faults of plugins that train: optimisers and stages."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import count
from typing import Any

from faults.registry import fault, good, suite_of

from tunekit.cli.new import Hook
from tunekit.hooks import hookimpl
from tunekit.testing import OptimizerSuite, StageSuite, tiny_bundle
from tunekit.values import (
    Artefact,
    Event,
    Examples,
    ModelBundle,
    OptimizerSettings,
    Prepared,
    StageContext,
    StageResult,
)


def optimizing(
    change: Callable[[Any], Any] = lambda optimizer: None,
    settings_change: Callable[[OptimizerSettings], OptimizerSettings] = lambda settings: settings,
    skip: int = 0,
) -> Any:
    """The good optimiser, changed."""

    class Faulty(good(Hook.OPTIMIZER).GoodOptimizer):
        @hookimpl
        def tunekit_optimizer(
            self,
            bundle: ModelBundle,
            named_parameters: list[tuple[str, Any]],
            settings: OptimizerSettings,
            context: StageContext,
        ) -> Any:
            made = super().tunekit_optimizer(bundle, named_parameters[skip:], settings_change(settings), context)
            change(made)
            return made

    return suite_of(OptimizerSuite, Faulty(), learning_rate=1e-3)


def before_each_step(act: Callable[[Any], None]) -> Callable[[Any], None]:
    return lambda optimizer: optimizer.register_step_pre_hook(lambda it, *_: act(it))


@fault(OptimizerSuite, "test_it_is_an_optimiser_over_every_parameter_it_was_given", "not optimised: .*embed_tokens")
def an_optimiser_that_leaves_one_out():
    return optimizing(skip=1)


@fault(OptimizerSuite, "test_it_lowers_the_loss", "the loss does not fall")
def an_optimiser_that_stands_still():
    return optimizing(settings_change=lambda settings: replace(settings, learning_rate=0.0))


@fault(OptimizerSuite, "test_the_same_seed_gives_the_same_numbers", "assert")
def an_optimiser_with_a_memory_of_other_runs():
    calls = count(1)

    def drift(optimizer):
        optimizer.param_groups[0]["lr"] = 1e-3 / next(calls)

    return optimizing(before_each_step(drift))


@fault(OptimizerSuite, "test_the_schedule_reaches_it", "moves parameters at a learning rate of 0")
def an_optimiser_that_ignores_the_schedule():
    def insist(optimizer):
        optimizer.param_groups[0]["lr"] = 1e-3

    return optimizing(before_each_step(insist))


@fault(OptimizerSuite, "test_the_weight_decay_of_the_stage_acts", "weight_decay changes nothing")
def an_optimiser_without_weight_decay():
    return optimizing(settings_change=lambda settings: replace(settings, weight_decay=0.0))


@fault(OptimizerSuite, "test_saved_in_the_middle_it_continues_to_the_same_numbers", "assert")
def an_optimiser_whose_state_is_not_saved():
    def forget(optimizer):
        save = optimizer.state_dict
        optimizer.state_dict = lambda: {**save(), "state": {}}

    return optimizing(forget)


def staging(
    context_change: Callable[[StageContext], StageContext] = lambda context: context,
    result_change: Callable[[StageResult], StageResult] = lambda result: result,
    prepared_change: Callable[[Any], Any] = lambda prepared: prepared,
    **attributes: Any,
) -> Any:
    """The good stage, with what it is given or what it gives back changed."""

    class Faulty(good(Hook.STAGE).GoodStage):
        @hookimpl
        def tunekit_prepare_data(self, data: Examples, tokenizer: Any, context: StageContext) -> Prepared:
            return prepared_change(super().tunekit_prepare_data(data, tokenizer, context))

        @hookimpl
        def tunekit_train_stage(self, bundle: ModelBundle, data: Prepared, context: StageContext) -> StageResult:
            return result_change(super().tunekit_train_stage(bundle, data, context_change(context)))

    plugin = Faulty(epochs=4, learning_rate=5e-3, checkpoint={"every": 2})
    return suite_of(StageSuite, plugin, **attributes)


def telling(change: Callable[[Event], Event | None]) -> Callable[[StageContext], StageContext]:
    """Change events, or swallow them, before they are told."""

    def around(context: StageContext) -> StageContext:
        def emit(event: Event) -> None:
            changed = change(event)
            if changed is not None:
                context.emit(changed)

        return replace(context, emit=emit)

    return around


@fault(StageSuite, "test_each_row_is_prepared_or_accounted_for", "has nothing to learn")
def a_stage_that_masks_everything():
    from tunekit_train import Items

    def mask(prepared):
        masked = (
            replace(item, sequences=tuple(replace(each, weights=[0.0] * len(each)) for each in item.sequences))
            for item in prepared
        )
        return Items(masked, prepared.account)

    return staging(prepared_change=mask)


@fault(StageSuite, "test_each_row_is_prepared_or_accounted_for", "assert")
def a_stage_that_counts_rows_it_never_read():
    def count_more(prepared):
        next(iter(prepared.account.sources.values())).rows += 1
        return prepared

    return staging(prepared_change=count_more)


@fault(StageSuite, "test_preparing_twice_gives_the_same", "assert")
def a_stage_that_prepares_in_another_order_each_time():
    from tunekit_train import Items

    turns = count()
    return staging(prepared_change=lambda it: Items(list(it)[:: (-1) ** next(turns)], it.account))


@fault(StageSuite, "test_it_makes_progress", "loss does not fall")
def a_stage_whose_loss_rises():
    def upside_down(event):
        return replace(event, metrics={name: -value for name, value in event.metrics.items()})

    return staging(telling(upside_down))


@fault(StageSuite, "test_only_what_trains_changes", "lm_head")
def a_stage_that_moves_what_is_frozen():
    def bundle(self):
        made = tiny_bundle()
        made.model.lm_head.requires_grad_(False)
        return made

    def move(result):
        result.bundle.model.lm_head.weight.data += 1e-3
        return result

    return staging(result_change=move, bundle=bundle)


@fault(StageSuite, "test_the_same_seed_gives_the_same_numbers", "assert")
def a_stage_with_a_seed_of_its_own():
    seeds = count(1)
    return staging(lambda context: replace(context, seed=next(seeds)))


@fault(StageSuite, "test_another_seed_gives_other_numbers", "the seed changes nothing")
def a_stage_that_ignores_the_seed():
    return staging(lambda context: replace(context, seed=0))


INTERRUPTED = "test_interrupted_it_continues_to_the_same_numbers"


@fault(StageSuite, INTERRUPTED, "it started again from the beginning", kind="step", step=3)
def a_stage_that_does_not_resume():
    return staging(lambda context: replace(context, resume=False))


@fault(StageSuite, INTERRUPTED, "assert", kind="saved", step=4)
def a_stage_that_resumes_with_another_order():
    return staging(lambda context: replace(context, seed=int(context.resume)))


@fault(StageSuite, "test_asked_to_resume_where_nothing_was_saved_it_starts", "assert 2 == 1")
def a_stage_that_skips_a_step_it_never_took():
    return staging(telling(lambda event: replace(event, step=event.step + 1)))


@fault(StageSuite, "test_it_tells_what_happens_in_order", "no checkpoint was told")
def a_stage_that_does_not_tell_what_it_saves():
    return staging(telling(lambda event: None if event.kind == "saved" else event))


@fault(StageSuite, "test_it_tells_what_happens_in_order", "total_steps is known from the start")
def a_stage_that_does_not_know_how_long_it_takes():
    return staging(telling(lambda event: replace(event, total_steps=event.step)))


@fault(StageSuite, "test_the_result_leaves_what_it_names", "missing does not exist")
def a_stage_that_names_what_it_did_not_leave():
    def more(result):
        gone = result.artefacts[0].path / "missing"
        return replace(result, artefacts=(*result.artefacts, Artefact("report", gone)))

    return staging(result_change=more)


@fault(StageSuite, "test_the_result_leaves_what_it_names", "no trained weights are left")
def a_stage_that_leaves_no_weights():
    return staging(result_change=lambda result: replace(result, artefacts=result.artefacts[1:]))
