"""What every plugin has to satisfy, whatever it does; the other suites build on this one."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from typing import Any, ClassVar

import pydantic
import pytest

from ..calls import Calls
from ..catalog import PLUGINS, Entry, hooks_of
from ..hooks import HookSpecs
from ..plugin import Plugin
from .distributions import readme_of, requirements_of
from .options import configs_of, own_options
from .overriding import refuse_silent_overrides
from .runs import calls_of, installed
from .signatures import differences

HEAVY = ("torch", "transformers", "peft", "datasets", "accelerate", "trl", "bitsandbytes", "tensorflow", "jax")
"""Packages that importing a plugin's module may not import: `tunekit plugins` imports every plugin."""

_DOTTED = re.compile(r"[a-z0-9_]+(\.[a-z0-9_-]+)*")


class PluginSuite:
    """Subclass it, or the suite of a hook, and give the plugin with the options to test it with.

    `companions` are other plugins that have to be in the run with it, as DoRA needs LoRA. Where several sets of options
    matter, write a class for each.
    """

    plugin: ClassVar[Plugin[Any]]
    companions: ClassVar[Sequence[Plugin[Any]]] = ()
    group: ClassVar[str] = PLUGINS

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        refuse_silent_overrides(cls)

    @property
    def kind(self) -> type[Plugin[Any]]:
        """The plugin's class."""
        return type(self.plugin)

    def make(self) -> Plugin[Any]:
        """Make the plugin anew, with the same options."""
        return self.kind(self.plugin.config)

    def calls(self) -> Calls:
        """Hook calls over the plugin and its companions."""
        return calls_of(self.make(), *self.companions)

    def entry(self) -> Entry:
        """The entry point that the plugin is installed under."""
        entry = installed(self.group).entry_of(self.kind)
        assert entry is not None, (
            f"no installed distribution has {self.kind.__name__} as an entry point of `{self.group}`"
        )
        return entry

    def test_its_entry_point_resolves_to_the_class(self) -> None:
        """A recipe that names the plugin gets this class."""
        assert installed(self.group).load(self.entry().name) is self.kind

    def test_importing_its_module_imports_nothing_heavy(self) -> None:
        """Listing plugins stays fast, and a broken torch breaks only runs."""
        heavy = sorted(set(HEAVY) & _imported_by(self.kind.__module__))
        assert not heavy, f"importing {self.kind.__module__} imports {heavy}; import them inside the hooks"

    def test_it_says_in_one_line_what_it_is(self) -> None:
        """`tunekit plugins` shows the first line of the class docstring."""
        first = (self.kind.__doc__ or "").strip().partition("\n")[0]
        assert first, f"{self.kind.__name__} has no docstring"

    def test_its_options_are_frozen_and_no_unknown_one_is_accepted(self) -> None:
        """A config is a value; a misspelt option is an error, not a silence."""
        for config in configs_of(self.kind.config_type()):
            assert config.model_config.get("frozen"), f"{config.__name__} is not frozen"
            assert config.model_config.get("extra") == "forbid", f"{config.__name__} accepts unknown options"
        with pytest.raises(pydantic.ValidationError, match="surely_no_option"):
            self.kind(**self.plugin.config.model_dump(), surely_no_option=1)

    def test_every_option_is_described(self) -> None:
        """Editors and `tunekit schema` show the description; groups of options have one too."""
        bare = [
            f"{config.__name__}.{name}"
            for config in configs_of(self.kind.config_type())
            for name, field in config.model_fields.items()
            if not (field.description or "").strip()
        ]
        assert not bare, f"without description: {bare}"

    def test_the_same_options_make_equal_configs(self) -> None:
        """Options survive being written to a record, where only those given are kept, and read back."""
        config = self.plugin.config
        assert type(config).model_validate(config.model_dump(mode="json", exclude_unset=True)) == config

    def test_its_hooks_take_and_return_what_their_specs_say(self) -> None:
        """Names are some of the spec's, annotations are the spec's, and no hook wraps another plugin's."""
        specs = self._specs()
        hooks = hooks_of(self.kind)
        assert hooks, f"{self.kind.__name__} implements no hook"
        found = [line for hook in hooks for line in differences(self.kind, hook, specs.get(hook))]
        assert not found, "\n".join(found)

    def test_no_hook_was_left_unmarked(self) -> None:
        """A method called after a hook but without `@hookimpl` would never be called."""
        marked, specs = hooks_of(self.kind), self._specs()
        forgotten = [name for name in dir(self.kind) if name in specs and name not in marked]
        assert not forgotten, f"without @hookimpl: {forgotten}"

    def test_its_capabilities_are_frozen_sets_of_dotted_names(self) -> None:
        """The planner does set arithmetic with them."""
        plugin = self.make()
        for kind in ("requires", "provides", "conflicts", "after"):
            names = getattr(plugin, kind)
            assert isinstance(names, frozenset), f"{kind} is a {type(names).__name__}"
            assert all(isinstance(name, str) and _DOTTED.fullmatch(name) for name in names), f"{kind} is {names}"

    def test_its_readme_mentions_every_option(self) -> None:
        """Each option stands in the README in backticks, one inside a group as `group.option`."""
        text = readme_of(self.kind, self.entry().distribution)
        missing = [path for path in own_options(self.kind) if f"`{path}`" not in text]
        assert not missing, f"the README does not mention {missing}"

    def test_its_distribution_needs_the_core_and_not_a_stranger(self) -> None:
        """The core is called tunekit-core; `tunekit` on the public index is somebody else's project."""
        needed = list(requirements_of(self.entry().distribution))
        assert "tunekit" not in needed, "the dependency `tunekit` is a stranger's code; write `tunekit-core`"
        assert "tunekit-core" in needed or self.entry().distribution == "tunekit-core"

    def _specs(self) -> dict[str, Any]:
        published = (spec for plugin in (self.make(), *self.companions) for spec in plugin.hookspecs)
        return {
            name: function
            for specs in (HookSpecs, *published)
            for name, function in vars(specs).items()
            if hasattr(function, "tunekit_kind")
        }


@cache
def _imported_by(module: str) -> frozenset[str]:
    """The top-level packages that importing a module brings into a fresh interpreter."""
    code = (
        f"import sys, tunekit.catalog; before = set(sys.modules); import {module}; print(*(set(sys.modules) - before))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return frozenset(name.partition(".")[0] for name in done.stdout.split())
