"""The two classes a plugin is made of: its options and itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Generic, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict


class PluginConfig(BaseModel):
    """The options of a plugin: frozen, unknown keys refused. Describe every field, with its unit and range."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=False, protected_namespaces=())


Config = TypeVar("Config", bound=PluginConfig)


class Plugin(Generic[Config]):
    """A technique: a frozen config, capabilities, and the hooks it implements with `@hookimpl`.

    `Lora(rank=8)` in Python and `lora: {rank: 8}` in a recipe are the same thing. The object has identity: two plugins
    with equal options are still two plugins.

    Capabilities are dotted names. `requires` must be provided by some planned plugin, `conflicts` by none, and a plugin
    comes after all that provide what it names in `requires` or `after`. Override each with a class attribute where
    it is constant, with a property where it depends on the options. `hookspecs` are the classes whose hooks this plugin
    publishes.
    """

    hookspecs: ClassVar[tuple[type, ...]] = ()

    def __init__(self, config: Config | None = None, /, **options: Any) -> None:
        assert config is None or not options, "give a config or options, not both"
        self.config: Config = self.config_type()(**options) if config is None else config

    @classmethod
    def config_type(cls) -> type[Config]:
        """The class of this plugin's options: the parameter given to `Plugin[...]`."""
        for base in (base for parent in cls.__mro__ for base in parent.__dict__.get("__orig_bases__", ())):
            if isinstance(get_origin(base), type) and issubclass(get_origin(base), Plugin):
                (config,) = get_args(base)
                if isinstance(config, type):
                    return config
        raise TypeError(f"{cls.__name__} names no config class; write class {cls.__name__}(Plugin[YourConfig])")

    @property
    def requires(self) -> frozenset[str]:
        """Capabilities that some other planned plugin must provide."""
        return frozenset()

    @property
    def provides(self) -> frozenset[str]:
        """Capabilities this plugin brings to a run."""
        return frozenset()

    @property
    def conflicts(self) -> frozenset[str]:
        """Capabilities that no other planned plugin may provide."""
        return frozenset()

    @property
    def after(self) -> frozenset[str]:
        """Capabilities whose providers, where there are any, come before this plugin."""
        return frozenset()

    @property
    def base(self) -> Mapping[str, Any]:
        """What this plugin makes of the base, as plain data; nothing: the base stays the model that was named.

        Kept beside each adapter that a run trains, which no other run or session then puts on another base.
        """
        return {}

    def __repr__(self) -> str:
        options = ", ".join(f"{name}={value!r}" for name, value in self.config.model_dump(exclude_unset=True).items())
        return f"{type(self).__name__}({options})"
