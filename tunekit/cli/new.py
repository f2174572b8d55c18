"""`tunekit new`: write the start of a plugin that works and passes the conformance kit."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from importlib import metadata, resources
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import TunekitError
from .console import Json, console, only_json

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

    from ..catalog import Catalog

_NAME = re.compile(r"[a-z][a-z0-9]*([-_][a-z0-9]+)*")
TEST_DEPENDENCIES = ("pytest", "torch", "transformers")


class Hook(Enum):
    """The hooks that a plugin can start from."""

    PATCH = "patch"
    ADAPTER = "adapter"
    FORMAT = "format"
    OPTIMIZER = "optimizer"
    STAGE = "stage"
    INFER = "infer"
    PRECISION = "precision"


@dataclass(frozen=True)
class Start:
    """What a plugin of a hook starts from: what it does, and what it depends on besides the core."""

    summary: str
    dependencies: tuple[str, ...] = ()


STARTS: dict[Hook, Start] = {
    Hook.PATCH: Start("Word dropout while training", ("torch>=2.5",)),
    Hook.ADAPTER: Start("(IA)3 adapters through PEFT", ("torch>=2.5", "transformers>=5", "peft>=0.19")),
    Hook.FORMAT: Start("Rows of question and answer"),
    Hook.OPTIMIZER: Start("The Lion optimiser", ("torch>=2.5",)),
    Hook.STAGE: Start("Fine-tuning with the focal loss", ("tunekit-train", "torch>=2.5")),
    Hook.INFER: Start("Answers sampled with min-p", ("torch>=2.5", "transformers>=5")),
    Hook.PRECISION: Start("One dtype for everything"),
}


class NewPluginError(TunekitError):
    """A plugin of this name cannot be written here."""

    exit_code = 2


def add_to(app: typer.Typer) -> None:
    """Add the subcommand."""
    new = typer.Typer(help="Write the start of a plugin.", no_args_is_help=True)
    new.command("plugin")(plugin)
    new.callback()(lambda: None)
    app.add_typer(new, name="new")


def plugin(
    name: Annotated[str, typer.Argument(help="Name in recipes, such as word-dropout.")],
    hook: Annotated[Hook, typer.Option(help="What the plugin does.")] = Hook.PATCH,
    folder: Annotated[Path, typer.Option(help="Where to write the folder tunekit-NAME.")] = Path(),
    json: Json = False,
) -> None:
    """Write a distribution tunekit-NAME with a small working plugin, its README, and its conformance tests."""
    made = write_plugin(name, hook, folder)
    files = sorted(str(path.relative_to(made)) for path in made.rglob("*") if path.is_file())
    if json:
        with only_json() as write:
            write({"folder": str(made), "files": files})
        return
    screen = console()
    for file in files:
        screen.print(f"wrote {made / file}")
    screen.print(f"install it: [bold]pip install --editable '{made}\\[test]'[/bold]")
    screen.print(f"test it: [bold]pytest --import-mode=importlib {made}[/bold]")


def write_plugin(name: str, hook: Hook, folder: Path) -> Path:
    """Write the distribution into `folder` and return its own folder.

    Raises NewPluginError where the name is none or taken, or the place is taken.
    """
    from ..catalog import Catalog

    check_name(name, Catalog.discover())
    made = folder / f"tunekit-{name}"
    if made.exists():
        raise NewPluginError(f"{made} exists already", "choose another name, or another place with --folder")
    values = _values(name, hook)
    _write(made, values["package"], hook, values)
    return made


def check_name(name: str, catalog: Catalog) -> None:
    """Refuse a name that Python cannot import, or that something installed has, and suggest a free one."""
    if not _NAME.fullmatch(name) or name.startswith("tunekit"):
        raise NewPluginError(
            f"{name!r} is no name for a plugin", f"write it like {_mended(name)!r}: a to z, 0 to 9 and -"
        )
    taken = _owner(name, catalog)
    if taken:
        free = next(
            each for each in (f"my-{name}", *(f"{name}-{n}" for n in range(2, 99))) if not _owner(each, catalog)
        )
        raise NewPluginError(f"the name {name!r} is taken by {taken}", f"choose another, such as {free!r}")


def _owner(name: str, catalog: Catalog) -> str:
    """Who has this name: the distribution of an installed plugin, or one that is called after it."""
    if name in catalog:
        return catalog.entry(name).distribution
    try:
        return metadata.distribution(f"tunekit-{name}").metadata["Name"]
    except metadata.PackageNotFoundError:
        return ""


def _mended(name: str) -> str:
    words = re.findall(r"[a-z0-9]+", name.lower().removeprefix("tunekit"))
    mended = "-".join(words) or "my-plugin"
    return mended if mended[0].isalpha() else f"my-{mended}"


def _values(name: str, hook: Hook) -> dict[str, str]:
    """What the templates call `name`, `package`, `Class` and so on."""
    from .. import values

    start = STARTS[hook]
    made = "".join(word.capitalize() for word in re.split(r"[-_]", name))
    reserved = {*values.__all__, "Plugin", "Any", "Field", "Literal", "Iterator", "Problem", "Train"}
    tests = (*TEST_DEPENDENCIES, *(["peft"] if hook is Hook.ADAPTER else []))
    return {
        "name": name,
        "distribution": f"tunekit-{name}",
        "package": f"tunekit_{name.replace('-', '_')}",
        "Class": f"{made}Plugin" if made in reserved else made,
        "summary": start.summary,
        "dependencies": ", ".join(f'"{each}"' for each in ("tunekit-core", *start.dependencies)),
        "test_dependencies": ", ".join(f'"{each}"' for each in tests),
    }


def _write(made: Path, package: str, hook: Hook, values: dict[str, str]) -> None:
    templates = resources.files(__package__) / "templates"
    places = {"src": made / "src" / package, "tests": made / "tests"}
    for folder in places.values():
        folder.mkdir(parents=True)
    _render(templates / "pyproject.toml.tmpl", made, values)
    _render(templates / hook.value / "README.md.tmpl", made, values)
    for part, folder in places.items():
        for template in (templates / hook.value / part).iterdir():
            _render(template, folder, values)
    (places["src"] / "py.typed").touch()


def _render(template: Traversable, folder: Path, values: dict[str, str]) -> None:
    text = Template(template.read_text(encoding="utf-8")).substitute(values)
    (folder / template.name.removesuffix(".tmpl")).write_text(text, encoding="utf-8")
