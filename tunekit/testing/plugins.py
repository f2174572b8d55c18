"""What every plugin has to satisfy, whatever it does; the other suites build on this one."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from typing import Any, ClassVar

import pydantic
import pytest

from ..calls import Calls
from ..catalog import Catalog, Entry, hooks_of
from ..hooks import HookSpecs
from ..plugin import Plugin
from .options import configs_of, own_options
from .overriding import refuse_silent_overrides
from .readme import readme_of
from .runs import calls_of
from .signatures import differences

HEAVY = ("torch", "transformers", "peft", "datasets", "accelerate", "trl", "bitsandbytes", "tensorflow", "jax")
"""Packages that importing a plugin's module may not import: `tunekit plugins` imports every plugin."""

_DOTTED = re.compile(r"[a-z0-9_]+(\.[a-z0-9_-]+)*")


class PluginSuite:
    """Subclass it, or the suite of a hook, and name the plugin class.

    `options` are those the plugin is made with; `companions` are other plugins that have to be in the run with it, as
    DoRA needs LoRA. Where several sets of options matter, write a class for each.
    """

    plugin: ClassVar[type[Plugin[Any]]]
    options: ClassVar[Mapping[str, Any]] = {}
    companions: ClassVar[Sequence[Plugin[Any]]] = ()

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        refuse_silent_overrides(cls)

    def make(self, **options: Any) -> Plugin[Any]:
        """Make the plugin, with `options` over the suite's own."""
        return self.plugin(**{**self.options, **options})

    def calls(self, **options: Any) -> Calls:
        """Hook calls over the plugin and its companions."""
        return calls_of(self.make(**options), *self.companions)

    def entry(self) -> Entry:
        """The entry point that the plugin is installed under."""
        entry = Catalog.discover().entry_of(self.plugin)
        assert entry is not None, f"no installed distribution has {self.plugin.__name__} as an entry point of `tunekit`"
        return entry

    def test_its_entry_point_resolves_to_the_class(self) -> None:
        """A recipe that names the plugin gets this class."""
        assert Catalog.discover().load(self.entry().name) is self.plugin

    def test_importing_its_module_imports_nothing_heavy(self) -> None:
        """Listing plugins stays fast, and a broken torch breaks only runs."""
        code = (
            "import sys, tunekit.catalog; before = set(sys.modules); "
            f"import {self.plugin.__module__}; print(*(set(sys.modules) - before))"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        heavy = sorted(set(HEAVY) & {name.partition(".")[0] for name in done.stdout.split()})
        assert not heavy, f"importing {self.plugin.__module__} imports {heavy}; import them inside the hooks"

    def test_it_says_in_one_line_what_it_is(self) -> None:
        """`tunekit plugins` shows the first line of the class docstring."""
        first = (self.plugin.__doc__ or "").strip().partition("\n")[0]
        assert first, f"{self.plugin.__name__} has no docstring"

    def test_its_options_are_frozen_and_no_unknown_one_is_accepted(self) -> None:
        """A config is a value; a misspelt option is an error, not a silence."""
        for config in configs_of(self.plugin.config_type()):
            assert config.model_config.get("frozen"), f"{config.__name__} is not frozen"
            assert config.model_config.get("extra") == "forbid", f"{config.__name__} accepts unknown options"
        with pytest.raises(pydantic.ValidationError, match="surely_no_option"):
            self.make(surely_no_option=1)

    def test_every_option_is_described(self) -> None:
        """Editors and `tunekit schema` show the description; groups of options have one too."""
        bare = [
            f"{config.__name__}.{name}"
            for config in configs_of(self.plugin.config_type())
            for name, field in config.model_fields.items()
            if not (field.description or "").strip()
        ]
        assert not bare, f"without description: {bare}"

    def test_the_same_options_make_equal_configs(self) -> None:
        """Options survive being written to a record and read back."""
        config = self.make().config
        assert type(config).model_validate(config.model_dump(mode="json")) == config

    def test_its_hooks_take_and_return_what_their_specs_say(self) -> None:
        """Names are some of the spec's, annotations are the spec's, and no hook wraps another plugin's."""
        specs = self._specs()
        hooks = hooks_of(self.plugin)
        assert hooks, f"{self.plugin.__name__} implements no hook"
        found = [line for hook in hooks for line in differences(self.plugin, hook, specs.get(hook))]
        assert not found, "\n".join(found)

    def test_no_hook_was_left_unmarked(self) -> None:
        """A method called after a hook but without `@hookimpl` would never be called."""
        marked, specs = hooks_of(self.plugin), self._specs()
        forgotten = [name for name in dir(self.plugin) if name in specs and name not in marked]
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
        text = readme_of(self.plugin, self.entry().distribution)
        missing = [path for path in own_options(self.plugin) if f"`{path}`" not in text]
        assert not missing, f"the README does not mention {missing}"

    def test_its_distribution_needs_the_core_and_not_a_stranger(self) -> None:
        """The core is called tunekit-core; `tunekit` on the public index is somebody else's project."""
        needed = list(_requirements(self.entry().distribution))
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


def _requirements(distribution: str) -> Iterator[str]:
    """The normalised names of what a distribution depends on."""
    for line in metadata.requires(distribution) or ():
        name = re.match(r"[A-Za-z0-9._-]+", line)
        assert name is not None, f"{line!r} is no requirement"
        yield re.sub(r"[-_.]+", "-", name.group()).lower()
