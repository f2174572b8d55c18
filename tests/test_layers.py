"""The house: imports go down only, the core knows no plugin, and no dependency is a stranger's."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import tomllib

ROOT = Path(__file__).resolve().parent.parent
LAYERS = [
    "errors",
    "imports",
    "tensors",
    "values",
    "hooks",
    "plugin",
    "options",
    "local",
    "catalog",
    "recipe",
    "calls",
    "data",
    "plan",
    "record",
    "adapters",
    "opening",
    "exporting",
    "launching",
    "engine",
    "certify",
    "launched",
    "pipeline",
    "session",
    "cli",
]
PYPROJECTS = [ROOT / "pyproject.toml", *sorted((ROOT / "plugins").glob("*/pyproject.toml"))]
PLUGINS = [path.parent for path in PYPROJECTS[1:]]


def imports(path: Path) -> Iterator[str]:
    """Absolute names of every module a file imports, also inside functions."""
    package = path.relative_to(ROOT).parts[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*base, *([node.module] if node.module else [])))
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def layer(module: str) -> int | None:
    parts = module.split(".")
    return LAYERS.index(parts[1]) if len(parts) > 1 and parts[0] == "tunekit" and parts[1] in LAYERS else None


@pytest.mark.parametrize("path", sorted((ROOT / "tunekit").rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_core_imports_go_down_and_never_to_a_plugin_or_torch(path):
    parts = path.relative_to(ROOT).parts
    here = layer("tunekit." + (Path(parts[1]).stem))
    for module in imports(path):
        top = module.partition(".")[0]
        assert not top.startswith("tunekit_"), f"the core imports the plugin {module}"
        if "testing" not in parts and "templates" not in parts:
            assert top not in {"torch", "transformers", "peft", "numpy"}, f"the core imports {module}"
        above = layer(module)
        if here is not None and above is not None:
            assert above <= here, f"{module} stands above {path.name}"


@pytest.mark.parametrize("pyproject", PYPROJECTS, ids=lambda path: path.parent.name)
def test_no_dependency_is_spelled_tunekit(pyproject):
    project = tomllib.loads(pyproject.read_text())["project"]
    extras = (dependency for extra in project.get("optional-dependencies", {}).values() for dependency in extra)
    listed = [*project.get("dependencies", []), *extras]
    for dependency in listed:
        assert not re.match(r"tunekit\s*($|[\[<>=!~;@ ])", dependency), f"{dependency} is somebody else's project"


@pytest.mark.parametrize("folder", PLUGINS, ids=lambda path: path.name)
def test_a_plugin_is_complete_and_named_alike_everywhere(folder):
    meta = tomllib.loads((folder / "pyproject.toml").read_text())
    name = folder.name
    package = name.replace("-", "_")
    assert meta["project"]["name"] == name
    assert "tool" not in meta
    lines = (folder / "pyproject.toml").read_text().splitlines()
    points = sum(len(group) for group in meta["project"]["entry-points"].values())
    assert len(lines) - points < 30
    assert (folder / "README.md").exists()
    assert (folder / "src" / package / "py.typed").exists()
    assert list((folder / "tests").glob("test_*.py"))
    groups = meta["project"]["entry-points"]
    named = {**groups.get("tunekit", {}), **groups.get("tunekit.exports", {})}
    assert named
    assert all(target.startswith(package + ":") for target in named.values())
    assert any(dependency.startswith("tunekit-core") for dependency in meta["project"]["dependencies"])


@pytest.mark.parametrize("folder", PLUGINS, ids=lambda path: path.name)
def test_a_plugin_imports_only_what_it_declares_of_ours(folder):
    declared = {
        re.split(r"[\[<>=!~; ]", dependency)[0].replace("-", "_")
        for dependency in tomllib.loads((folder / "pyproject.toml").read_text())["project"]["dependencies"]
    }
    own = folder.name.replace("-", "_")
    for path in folder.glob("src/**/*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for module in names:
                top = module.partition(".")[0]
                if top.startswith("tunekit_") and top != own:
                    assert top in declared, f"{path.name} imports {top}, which {folder.name} does not declare"
                    assert not any(part.startswith("_") for part in module.split(".")), f"{module} is private"


def test_every_package_of_constraints_is_pinned_exactly():
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9_.\-]+==\S+", line) for line in lines)


def test_no_word_of_a_machine_or_a_registry_in_the_project():
    pattern = re.compile(r"(?<![\w.])/(root|work|home)/|pypi\.org/simple|files\.pythonhosted")
    listed = [path for path in ROOT.rglob("*") if path.suffix in {".py", ".md", ".toml", ".yaml", ".txt", ".ipynb"}]
    skipped = {"build", "dist", "env", "node_modules", "runs", "site", "venv"}
    for path in listed:
        folders = path.relative_to(ROOT).parts[:-1]
        hidden = any(folder.startswith(".") and folder != ".ci" for folder in folders)  # environments, caches
        if not hidden and not skipped & set(folders) and path != Path(__file__):
            assert not pattern.search(path.read_text(errors="ignore")), path
