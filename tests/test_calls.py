"""Hook calls: one plugin at a time, timed, type-checked, attributed."""

from __future__ import annotations

import gc
import weakref

import pytest

from tunekit import errors, hookimpl
from tunekit.calls import CallRecord, Calls
from tunekit.catalog import Catalog
from tunekit.values import Event, ModelBundle, PlannedPlugin, Precision

PRECISION = Precision("cpu", "float32", "float32", "float32", "test")


def planned(name: str, stage: int | None = None, why: str = "named") -> PlannedPlugin:
    import fake_opt

    plugin = getattr(fake_opt, name)()
    return PlannedPlugin(name.lower(), plugin, "fake-opt", "1.0", why, f"use.{name.lower()}", stage)


@pytest.fixture(autouse=True)
def plugins(world):
    from tests_helpers import HELPER

    world("fake-opt", {}, HELPER)


def bundle() -> ModelBundle:
    return ModelBundle([], None, "m", PRECISION)


def test_each_call_is_timed_and_recorded():
    seen: list[CallRecord] = []
    patch = planned("Patch")
    Calls([patch], seen.append).one(patch, "tunekit_patch", bundle=bundle())
    (record,) = seen
    assert (record.hook, record.plugin, record.distribution, record.version, record.error) == (
        "tunekit_patch",
        "patch",
        "fake-opt",
        "1.0",
        "",
    )
    assert record.seconds >= 0


def test_a_failure_names_plugin_distribution_version_and_hook_and_chains_its_cause():
    seen: list[CallRecord] = []
    raising = planned("Raises")
    with pytest.raises(
        errors.HookCallError, match=r"plugin raises \(fake-opt 1.0\) failed in tunekit_patch: ZeroDivisionError: oh"
    ) as caught:
        Calls([raising], seen.append).one(raising, "tunekit_patch", bundle=bundle())
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert seen[0].error == "ZeroDivisionError: oh"


def test_a_module_that_keeps_a_failed_import_keeps_nobody_who_was_computing(distribution):
    """As GPTQModel does, which PEFT imports while it wraps a model: the model would stay as long as the process."""
    failing = """
    try:
        try:
            import fake_that_is_nowhere
        except ImportError as error:
            raise ModuleNotFoundError("no kernels") from error
    except ImportError as error:
        WHY = error
    """
    distribution("fake-kernels", {}, failing)

    class Model(list[str]):
        """Can be referred to weakly."""

    def call() -> weakref.ref[Model]:
        model, importing = Model(), planned("Importing")
        try:
            raise KeyError("handled")
        except KeyError as handled:
            Calls([importing]).one(importing, "tunekit_patch", bundle=ModelBundle(model, None, "m", PRECISION))
            kept = handled.__traceback__
        assert kept is not None
        return weakref.ref(model)

    model = call()
    gc.collect()
    import fake_kernels

    assert str(fake_kernels.WHY) == "no kernels"
    assert model() is None


def test_a_result_of_the_wrong_type_is_the_plugins_failure():
    wrong = planned("BadType")
    with pytest.raises(errors.HookCallError, match="tunekit_patch of badtype returned str, not Report"):
        Calls([wrong]).one(wrong, "tunekit_patch", bundle=bundle())


def test_a_watcher_that_fails_does_not_keep_others_from_hearing():
    warnings: list[str] = []
    heard: list[Event] = []

    class Listening(type(planned("Patch").plugin)):  # type: ignore[misc]
        @hookimpl
        def tunekit_event(self, event: Event) -> None:
            heard.append(event)

    listening = PlannedPlugin("listening", Listening(), "x", "1", "named", "use.listening")
    Calls([planned("Deaf"), listening]).watch("tunekit_event", warnings.append, event=Event("step", "s"))
    assert warnings == ["plugin deaf (fake-opt 1.0) failed in tunekit_event: ValueError: not listening"]
    assert [event.stage for event in heard] == ["s"]


def test_two_runs_share_no_plugin_manager():
    one, two = Calls([planned("Other")]), Calls([planned("Third")])
    assert [p.name for p in one.answering("tunekit_optimizer")] == ["other"]
    assert [p.name for p in two.answering("tunekit_optimizer")] == ["third"]


def test_nobody_answering_an_own_hook_is_a_plan_error():
    with pytest.raises(errors.PlanError, match="no plugin answers tunekit_optimizer"):
        Calls([]).own("tunekit_optimizer", bundle=bundle())


def test_a_stage_sees_its_own_optimiser_and_the_run_does_not():
    calls = Calls([planned("Other"), planned("Third", stage=1)])
    assert [p.name for p in calls.for_stage(1).answering("tunekit_optimizer")] == ["third"]
    assert [p.name for p in calls.for_stage(0).answering("tunekit_optimizer")] == ["other"]
    assert [p.name for p in calls.for_run().answering("tunekit_optimizer")] == ["other"]


def test_arguments_of_another_name_are_refused_when_the_run_is_planned():
    import fake_opt

    class Strange(fake_opt.Plugin[fake_opt.Nothing]):
        @hookimpl
        def tunekit_patch(self, modell):
            return None

    strange = PlannedPlugin("strange", Strange(), "x", "1", "named", "use.strange")
    with pytest.raises(errors.PlanError, match="modell"):
        Calls([strange])


def test_chained_hooks_fold_in_plan_order():
    calls = Calls([planned("Publisher"), planned("Double"), planned("Add")])
    assert calls.chain("fake_number", "number", 5) == 11
    assert Calls([planned("Publisher"), planned("Add"), planned("Double")]).chain("fake_number", "number", 5) == 12


def test_the_catalog_of_the_tests_is_the_fake_one():
    assert "lora" not in Catalog.discover()
