"""Write the parts of the manual that the code already says: `python docs/generate.py`.

A page marks such a part with `<!-- generated: NAME -->` and `<!-- generated: end -->`; the rest is written by hand.
`python docs/generate.py --check` changes nothing and fails where a page is stale.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

import tunekit
from tunekit import testing, values
from tunekit.catalog import EXPORTS, Catalog, Listing
from tunekit.catalog import PLUGINS as GROUP
from tunekit.hooks import HookSpecs
from tunekit.options import ExportConfig
from tunekit.plugin import Plugin
from tunekit.recipe.model import AdapterOptions, MixingOptions, SourceOptions

DOCS = Path(__file__).resolve().parent
PLUGINS = DOCS.parent / "plugins"
REGION = re.compile(r"(<!-- generated: (?!end)([a-z-]+) -->\n).*?(<!-- generated: end -->)", re.DOTALL)
SECTIONS = ("Kind", "When", "Changes", "Returns", "Raises", "Example")
"""How every hook docstring closes."""
LIMITS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
FOREIGN = {"hookimpl": "Mark a method as the implementation of the hook it is named after."}
"""Public names whose docstring is another library's."""
TYPES = {"int": "whole number", "float": "number", "bool": "true or false", "str": "text", "Path": "path"}


def public() -> Iterator[str]:
    """The public names of `tunekit`, with the first line of what each is."""
    yield from _table("name", "what it is")
    for name in tunekit.__all__:
        yield _row(f"`{name}`", FOREIGN.get(name) or _first_line(getattr(tunekit, name)))


def suites() -> Iterator[str]:
    """The suites of the conformance kit, each with the hook it is for."""
    yield from _table("suite", "for")
    for name in testing.__all__:
        if name.endswith("Suite"):
            yield _row(f"`{name}`", _first_line(inspect.getmodule(getattr(testing, name))))


def hooks() -> Iterator[str]:
    """Every hook of the core, in the order a run calls them."""
    for name, spec in vars(HookSpecs).items():
        if hasattr(spec, "tunekit_kind"):
            yield from _hook(name, spec, "##")


def published() -> Iterator[str]:
    """Every hook that an installed plugin publishes."""
    for specs, rows in _publishers().items():
        names = ", ".join(f"`{row.name}`" for row in rows)
        by = (
            f"`{rows[0].name}` ({rows[0].distribution})"
            if len(rows) == 1
            else f"every stage on the engine of `tunekit-train`: {names}"
        )
        for name, spec in vars(specs).items():
            if hasattr(spec, "tunekit_kind"):
                yield from _hook(name, spec, "###", f"Published by {by}. ")


def value_types() -> Iterator[str]:
    """The values that hooks are given and return."""
    for name in sorted(values.__all__):
        value = getattr(values, name)
        if inspect.isclass(value) and (dataclasses.is_dataclass(value) or getattr(value, "_is_protocol", False)):
            yield from ("", f"### {name}", "", *_prose(inspect.getdoc(value) or ""), "")
            yield from ("```py", *_members(value), "```")


def source() -> Iterator[str]:
    """The options of a data source."""
    yield from _options(SourceOptions, "data.")


def mixing() -> Iterator[str]:
    """How several sources become one stream."""
    yield from _options(MixingOptions, "data.")


def adapter() -> Iterator[str]:
    """Which adapter a stage trains."""
    yield from _options(AdapterOptions, "adapter.")


def options() -> Iterator[str]:
    """The options of every plugin of this repository."""
    for row, plugin in sorted(_plugins(), key=_stages_first):
        key = f"stages.{row.name}" if _is_stage(row) else f"use.{row.name}"
        yield from ("", f"### {row.name}", "", f"{_first_line(plugin)} From `{row.distribution}`.", "")
        config = plugin.config_type()
        if config.model_fields:
            yield from _options(config, f"{key}.")
        else:
            yield f"It has no options: `{key}={{}}`."


def exports() -> Iterator[str]:
    """The options of every export target of this repository; those that all share are told once."""
    yield from ("", "### every target", "")
    yield from _options(ExportConfig, "export.TARGET.")
    for row, plugin in _plugins(EXPORTS):
        yield from ("", f"### export {row.name}", "", f"{_first_line(plugin)} From `{row.distribution}`.", "")
        shared = ExportConfig.model_fields
        own = {name: field for name, field in plugin.config_type().model_fields.items() if name not in shared}
        if own:
            yield from _table("option", "default", "takes", "meaning")
            yield from _field_rows(own, f"export.{row.name}.")
        else:
            yield f"It has no options of its own: `export=[{row.name}]`."


REGIONS: Mapping[str, Callable[[], Iterator[str]]] = {
    "public": public,
    "suites": suites,
    "hooks": hooks,
    "published": published,
    "values": value_types,
    "source": source,
    "mixing": mixing,
    "adapter": adapter,
    "options": options,
    "exports": exports,
}


def page(text: str) -> str:
    """A page with its generated parts written anew."""

    def write(match: re.Match[str]) -> str:
        body = "\n".join(REGIONS[match[2]]()).strip("\n")
        return f"{match[1]}\n{body}\n\n{match[3]}"

    return REGION.sub(write, text)


def stale() -> list[Path]:
    """The pages whose generated parts are not what the code says."""
    return [path for path in sorted(DOCS.glob("*.md")) if page(path.read_text()) != path.read_text()]


def main() -> int:
    """Write the pages, or with `--check` only say which are stale."""
    pages = stale()
    for path in pages:
        if "--check" not in sys.argv:
            path.write_text(page(path.read_text()))
        print(f"{'stale' if '--check' in sys.argv else 'written'}: {path.relative_to(DOCS.parent)}")
    return 1 if pages and "--check" in sys.argv else 0


def _plugins(group: str = GROUP) -> Iterator[tuple[Listing, type[Plugin[Any]]]]:
    """The installed plugins that this repository holds; a stranger's plugin has its own manual."""
    ours = {folder.parent.name for folder in PLUGINS.glob("*/pyproject.toml")}
    catalog = Catalog.discover(group=group)
    for row in catalog.listing():
        if row.distribution in ours and row.status == "available":
            yield row, catalog.load(row.name)


def _publishers() -> dict[type, list[Listing]]:
    """The classes of published hooks, each with the plugins that publish it."""
    found: dict[type, list[Listing]] = {}
    for row, plugin in _plugins():
        for specs in plugin.hookspecs:
            found.setdefault(specs, []).append(row)
    return found


def _is_stage(row: Listing) -> bool:
    return "tunekit_train_stage" in row.hooks


def _stages_first(found: tuple[Listing, type[Plugin[Any]]]) -> tuple[bool, str]:
    return not _is_stage(found[0]), found[0].name


def _hook(name: str, spec: Any, level: str, origin: str = "") -> Iterator[str]:
    summary, sections = _read_docstring(spec)
    yield from ("", f"{level} {name}", "", origin + _markup(summary), "")
    yield from ("```py", *_signature(name, spec), "```", "")
    yield from _table("", "")
    for title in SECTIONS:
        yield _row(f"**{title}**", _markup(sections[title]))


def _read_docstring(spec: Any) -> tuple[str, dict[str, str]]:
    """Split a hook docstring into what comes first and its closing sections."""
    text = inspect.getdoc(spec) or ""
    head, *rest = re.split(rf"^({'|'.join(SECTIONS)}): ", text, flags=re.MULTILINE)
    found = {title: " ".join(body.split()) for title, body in zip(rest[::2], rest[1::2], strict=True)}
    assert tuple(found) == SECTIONS, f"{spec.__name__} closes with {tuple(found)}, not {SECTIONS}"
    return " ".join(head.split()), found


def _signature(name: str, spec: Any) -> Iterator[str]:
    """The signature as a plugin writes it, one argument to a line where it is long."""
    annotations = spec.__annotations__
    given = [f"{each}: {annotations[each]}" for each in inspect.signature(spec).parameters if each != "self"]
    result = annotations["return"]
    whole = f"def {name}({', '.join(['self', *given])}) -> {result}: ..."
    if len(whole) <= 100:
        yield from ("@hookimpl", whole)
        return
    yield from ("@hookimpl", f"def {name}(", "    self,", *(f"    {each}," for each in given), f") -> {result}: ...")


def _members(value: type) -> Iterator[str]:
    """A value's fields, or a protocol's methods, as code in the repository's style."""
    fields = dataclasses.fields(value) if dataclasses.is_dataclass(value) else ()
    members = vars(value).items()
    shown = [name for name, member in members if isinstance(member, property)]
    methods = [name for name, member in members if inspect.isfunction(member) and not name.startswith("_")]
    lines = [f"    {field.name}: {field.type}{_default_of(field)}" for field in fields]
    lines += [f"    {name}  # {_first_line(getattr(value, name))}" for name in shown]
    lines += [""] if lines and methods else []
    lines += [f"    def {name}{_plain_signature(getattr(value, name))}: ..." for name in methods]
    yield from (f"class {value.__name__}:", *(line.replace("'", '"') for line in lines))


def _plain_signature(function: Any) -> str:
    """The signature with its annotations as they are written, which are texts here."""
    return str(inspect.signature(function)).replace("'", "")


def _default_of(field: dataclasses.Field[Any]) -> str:
    if field.default is not dataclasses.MISSING:
        return f" = {field.default!r}"
    if field.default_factory is dataclasses.MISSING:
        return ""
    made = field.default_factory()
    return f" = {type(made).__name__}()" if isinstance(made, values.Account) else f" = {made!r}"


def _options(config: type[BaseModel], prefix: str) -> Iterator[str]:
    yield from _table("option", "default", "takes", "meaning")
    yield from _option_rows(config, prefix)


def _option_rows(config: type[BaseModel], prefix: str) -> Iterator[str]:
    yield from _field_rows(config.model_fields, prefix)


def _field_rows(fields: Mapping[str, FieldInfo], prefix: str) -> Iterator[str]:
    for name, field in fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from _option_rows(inner, f"{prefix}{name}.")
        else:
            yield _row(f"`{prefix}{name}`", _default(field), _takes(field), _markup(field.description or ""))


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined:
        return "required"
    if value is None or value in ((), {}):
        return "none"
    return f"`{str(value).lower() if isinstance(value, bool) else _number(value)}`"


def _number(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) and value < 1e-3 else str(value)


def _takes(field: FieldInfo) -> str:
    limits = [
        f"{words} {getattr(bound, name):g}"
        for bound in field.metadata
        for name, words in LIMITS.items()
        if getattr(bound, name, None) is not None
    ]
    return ", ".join([_type_name(field.annotation), *limits])


def _type_name(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return ", ".join(f"`{argument}`" for argument in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_type_name(argument) for argument in arguments if argument is not types.NoneType)
    if origin in (tuple, list):
        return f"list of {_type_name(arguments[0])}"
    if origin is dict:
        return f"mapping of {_type_name(arguments[0])} to {_type_name(arguments[1])}"
    name = str(hint.__name__)
    return TYPES.get(name, name)


def _prose(text: str) -> Iterator[str]:
    """A docstring as Markdown."""
    yield from (_markup(line) for line in text.splitlines())


def _markup(text: str) -> str:
    """Text that a Markdown table can hold; what is in backticks stays as it is."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(part if part.startswith("`") else part.replace("|", "\\|").replace("*", "\\*") for part in parts)


def _first_line(thing: Any) -> str:
    return _markup((inspect.getdoc(thing) or "").strip().partition("\n")[0])


def _table(*titles: str) -> Iterator[str]:
    yield _row(*titles)
    yield _row(*("---" for _ in titles))


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.exit(main())
