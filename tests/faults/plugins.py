"""Faults that any plugin can have."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from faults.registry import fault, suite_of
from pydantic import BaseModel, Field, field_serializer

from tunekit.hooks import hookimpl
from tunekit.plugin import Plugin, PluginConfig
from tunekit.testing import PluginSuite
from tunekit.values import Event, ModelBundle, Report

CODE = '''
from pydantic import Field
from tunekit.hooks import hookimpl
from tunekit.plugin import Plugin, PluginConfig
from tunekit.values import Event

class Options(PluginConfig):
    loud: bool = Field(False, description="how loud")

class Hears(Plugin[Options]):
    """Hears."""
    @hookimpl
    def tunekit_event(self, event: Event) -> None: ...
'''


def install(site: Path, code: str = CODE, needs: str = "tunekit-core", readme: str = "`loud`") -> Any:
    """Install a distribution with the plugin `Hears` and return its module."""
    (site / "fake_hears.py").write_text(code)
    info = site / "fake_hears-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: fake-hears\nVersion: 1\nRequires-Dist: {needs}\n\n{readme}\n"
    )
    (info / "entry_points.txt").write_text("[tunekit]\nhears = fake_hears:Hears\n")
    importlib.invalidate_caches()
    return importlib.import_module("fake_hears")


class Nothing(PluginConfig):
    """No options."""


class Hears(Plugin[Nothing]):
    """Hears."""

    @hookimpl
    def tunekit_event(self, event: Event) -> None:
        """Hear."""


@fault(PluginSuite, "test_its_entry_point_resolves_to_the_class", "no installed distribution has Hears")
def a_class_that_no_distribution_offers():
    return suite_of(PluginSuite, Hears())


@fault(PluginSuite, "test_importing_its_module_imports_nothing_heavy", r"importing fake_hears imports \['jax'\]")
def a_module_that_imports_something_heavy(site, monkeypatch):
    (site / "jax.py").write_text("")
    monkeypatch.setenv("PYTHONPATH", str(site))
    return suite_of(PluginSuite, install(site, CODE + "import jax\n").Hears())


@fault(PluginSuite, "test_it_says_in_one_line_what_it_is", "Silent has no docstring")
def a_class_without_a_docstring():
    class Silent(Hears):
        __doc__ = None

    return suite_of(PluginSuite, Silent())


def suite_with_config(config: type[PluginConfig]) -> Any:
    made: Any = type("Configured", (Plugin,), {"config_type": classmethod(lambda cls: config)})
    return suite_of(PluginSuite, made())


@fault(PluginSuite, "test_its_options_are_frozen_and_no_unknown_one_is_accepted", "Loose accepts unknown options")
def options_that_accept_anything():
    class Loose(PluginConfig, extra="ignore"):
        pass

    return suite_with_config(Loose)


@fault(PluginSuite, "test_its_options_are_frozen_and_no_unknown_one_is_accepted", "Group is not frozen")
def a_group_of_options_that_can_be_changed():
    class Group(BaseModel, extra="forbid"):
        pass

    class Outer(PluginConfig):
        group: Group = Field(Group(), description="a group")

    return suite_with_config(Outer)


@fault(PluginSuite, "test_every_option_is_described", r"without description: \['Inner.size'\]")
def an_option_inside_a_group_without_a_description():
    class Inner(PluginConfig):
        size: int = 1

    class Outer(PluginConfig):
        group: Inner | None = Field(None, description="a group")

    return suite_with_config(Outer)


@fault(PluginSuite, "test_the_same_options_make_equal_configs", "assert")
def an_option_that_is_written_otherwise_than_it_was_read():
    class Growing(PluginConfig):
        word: str = Field("", description="a word")

        @field_serializer("word")
        def longer(self, word: str) -> str:
            return word + "!"

    plugin: Any = type("Configured", (Plugin,), {"config_type": classmethod(lambda cls: Growing)})
    return suite_of(PluginSuite, plugin(word="a"))


SIGNATURES = "test_its_hooks_take_and_return_what_their_specs_say"


@fault(PluginSuite, SIGNATURES, "tunekit_event takes 'happening', but the spec gives event")
def a_hook_with_an_argument_of_its_own():
    class Wrong(Plugin[Nothing]):
        @hookimpl
        def tunekit_event(self, happening: Event) -> None: ...

    return suite_of(PluginSuite, Wrong())


@fault(PluginSuite, SIGNATURES, "tunekit_event: event is <class 'str'>, but the spec says .*Event")
def a_hook_with_an_argument_of_another_type():
    class Wrong(Plugin[Nothing]):
        @hookimpl
        def tunekit_event(self, event: str) -> None: ...

    return suite_of(PluginSuite, Wrong())


@fault(PluginSuite, SIGNATURES, "tunekit_patch: return is .*str.*, but the spec says .*Report")
def a_hook_that_returns_something_else():
    class Wrong(Plugin[Nothing]):
        @hookimpl
        def tunekit_patch(self, bundle: ModelBundle) -> Report | str:
            return ""

    return suite_of(PluginSuite, Wrong())


@fault(PluginSuite, SIGNATURES, "tunekit_event does not say the type of event")
def a_hook_without_types():
    class Wrong(Plugin[Nothing]):
        @hookimpl
        def tunekit_event(self, event): ...

    return suite_of(PluginSuite, Wrong())


@fault(PluginSuite, SIGNATURES, "tunekit_event is a wrapper")
def a_hook_that_wraps_others():
    class Wrong(Plugin[Nothing]):
        @hookimpl(wrapper=True)
        def tunekit_event(self, event: Event) -> Iterable[None]:
            yield

    return suite_of(PluginSuite, Wrong())


@fault(PluginSuite, SIGNATURES, "tunekit_evnt is no hook")
def a_hook_that_does_not_exist():
    class Wrong(Plugin[Nothing]):
        @hookimpl
        def tunekit_evnt(self, event: Event) -> None: ...

    return suite_of(PluginSuite, Wrong())


@fault(PluginSuite, SIGNATURES, "Idle implements no hook")
def a_plugin_without_a_hook():
    class Idle(Plugin[Nothing]):
        pass

    return suite_of(PluginSuite, Idle())


@fault(PluginSuite, "test_no_hook_was_left_unmarked", r"without @hookimpl: \['tunekit_patch'\]")
def a_hook_that_nobody_will_call():
    class Forgetful(Hears):
        def tunekit_patch(self, bundle: ModelBundle) -> Report:
            return Report("never")

    return suite_of(PluginSuite, Forgetful())


@fault(PluginSuite, "test_its_capabilities_are_frozen_sets_of_dotted_names", "provides is a tuple")
def capabilities_in_a_tuple():
    class Tuple(Hears):
        provides = ("hearing",)  # type: ignore[assignment]

    return suite_of(PluginSuite, Tuple())


@fault(PluginSuite, "test_its_capabilities_are_frozen_sets_of_dotted_names", "conflicts is frozenset")
def a_capability_that_is_no_dotted_name():
    class Spaced(Hears):
        conflicts = frozenset({"Hearing aid"})

    return suite_of(PluginSuite, Spaced())


@fault(PluginSuite, "test_its_readme_mentions_every_option", r"does not mention \['loud'\]")
def a_readme_without_the_option(site):
    return suite_of(PluginSuite, install(site, readme="loud, but not as code").Hears())


@fault(PluginSuite, "test_its_distribution_needs_the_core_and_not_a_stranger", "a stranger's code")
def a_distribution_that_needs_a_stranger(site):
    return suite_of(PluginSuite, install(site, needs="tunekit (>=0.1)").Hears())


@fault(PluginSuite, "test_its_distribution_needs_the_core_and_not_a_stranger", "assert")
def a_distribution_that_forgets_the_core(site):
    return suite_of(PluginSuite, install(site, needs="pydantic").Hears())
