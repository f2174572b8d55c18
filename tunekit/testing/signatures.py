"""Compare the signature of a hook implementation with its spec: argument names, their types, the return type."""

from __future__ import annotations

import ast
import inspect
import sys
import types
import typing
from collections.abc import Callable, Iterator
from typing import Any


def differences(plugin: type, hook: str, spec: Callable[..., Any] | None) -> Iterator[str]:
    """Say where an implementation departs from its spec; nothing where all is well."""
    if spec is None:
        yield f"{hook} is no hook of the core, of the plugin or of its companions"
        return
    function = getattr(plugin, hook)
    options = function.tunekit_impl
    if options["wrapper"] or options["hookwrapper"]:
        yield f"{hook} is a wrapper, which would change other plugins' calls"
    taken = list(inspect.signature(function).parameters)[1:]
    given = list(inspect.signature(spec).parameters)[1:]
    yield from (f"{hook} takes {name!r}, but the spec gives {', '.join(given)}" for name in taken if name not in given)
    wanted, found = resolved(spec), resolved(function)
    for name in (*taken, "return"):
        if name not in found:
            yield f"{hook} does not say the type of {name}"
        elif name in wanted and not _fits(found[name], wanted[name], name == "return"):
            yield f"{hook}: {name} is {found[name]}, but the spec says {wanted[name]}"


def resolved(function: Callable[..., Any]) -> dict[str, Any]:
    """The types of arguments and result, those imported under TYPE_CHECKING included."""
    try:
        return typing.get_type_hints(function)
    except NameError:
        module = sys.modules[function.__module__]
        return typing.get_type_hints(function, localns=_checked_imports(module))


def _fits(found: Any, wanted: Any, returned: bool) -> bool:
    """Whether a type may stand where the spec has another: the same one, or for results a narrower one."""
    if found == wanted or wanted is Any:
        return True
    return returned and all(any(_narrower(one, other) for other in _members(wanted)) for one in _members(found))


def _narrower(found: Any, wanted: Any) -> bool:
    kind, base = typing.get_origin(found) or found, typing.get_origin(wanted) or wanted
    if found == wanted or wanted is Any:
        return True
    if not (isinstance(kind, type) and isinstance(base, type) and issubclass(kind, base)):
        return False
    pairs = zip(typing.get_args(found), typing.get_args(wanted), strict=False)
    return all(_fits(inner, outer, True) for inner, outer in pairs)


def _members(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if typing.get_origin(hint) in (types.UnionType, typing.Union) else (hint,)


def _checked_imports(module: types.ModuleType) -> dict[str, Any]:
    """Carry out the imports that a module makes for type checkers only."""
    names: dict[str, Any] = {"__name__": module.__name__, "__package__": module.__package__}
    for node in ast.parse(inspect.getsource(module)).body:
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            imports = [inner for inner in node.body if isinstance(inner, (ast.Import, ast.ImportFrom))]
            exec(compile(ast.Module(list(imports), []), module.__name__, "exec"), names)
    return names
