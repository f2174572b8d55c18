"""The manual: its code runs, what it takes from the code is fresh, and nothing is missing."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from types import ModuleType

import pytest
import yaml
from docs_helpers import MODELS, PAGES, ROOT, Page, blocks, catalog_of_this_repository, with_tiny_model

import tunekit
from tunekit import errors
from tunekit.catalog import EXPORTS, Catalog
from tunekit.hooks import HookSpecs
from tunekit.recipe import from_mapping
from tunekit.testing import save_tiny_model

DOCS = ROOT / "docs"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def desk(tiny, tmp_path, monkeypatch):
    """A reader's folder: the tiny model, some data, and the examples on the first rows of theirs."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny, "tiny")
    shutil.copytree(ROOT / "examples", "examples")
    for recipe in (tmp_path / "examples" / "recipes").glob("*.yaml"):
        recipe.write_text(with_tiny_model(recipe.read_text()))
    for data in (tmp_path / "examples" / "data").glob("*.jsonl"):
        data.write_text("".join(data.read_text().splitlines(keepends=True)[:8]))
    rows = [{"instruction": f"What is {number} and one?", "output": f"It is {number + 1}."} for number in range(8)]
    for name in ("data.jsonl", "answers.jsonl"):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "mine.yaml").write_text("model: tiny\ndata: data.jsonl\nuse: {lora: {}}\nstages: [sft]\n")
    return tmp_path


@pytest.fixture(scope="module")
def generate():
    spec = importlib.util.spec_from_file_location("generate_docs", DOCS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_a_reader_can_follow_the_page(path, desk, monkeypatch):
    Page(path, monkeypatch).follow()


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_a_block_that_is_left_out_says_why_and_is_rare(path):
    skipped = [block for block in blocks(path) if block.skipped]
    assert len(skipped) <= 2
    assert all(len(block.skipped.split()) >= 3 for block in skipped)


def test_what_is_generated_is_fresh(generate: ModuleType):
    ours = {path.parent.name for path in ROOT.glob("plugins/*/pyproject.toml")}
    listed = [*Catalog.discover().listing(), *Catalog.discover(group=EXPORTS).listing()]
    missing = ours - {row.distribution for row in listed}
    assert not missing, f"install {missing} to check the manual"
    stale = [path.name for path in generate.stale()]
    assert not stale, f"{stale} are not what the code says; run `python docs/generate.py`"


def test_every_hook_has_a_heading_in_run_order():
    found = re.findall(r"^##+ (tunekit_\w+)$", (DOCS / "hooks.md").read_text(), re.MULTILINE)
    own = [name for name, spec in vars(HookSpecs).items() if hasattr(spec, "tunekit_kind")]
    catalog = Catalog.discover()
    plugins = [catalog.load(plugin) for plugin in sorted(catalog_of_this_repository())]
    classes = dict.fromkeys(specs for plugin in plugins for specs in plugin.hookspecs)
    published = [name for specs in classes for name, spec in vars(specs).items() if hasattr(spec, "tunekit_kind")]
    assert "tunekit_lora_config" in published
    assert found == own + published


def test_every_option_of_every_plugin_is_in_the_recipe_reference():
    text = (DOCS / "recipe.md").read_text()
    catalog = Catalog.discover()
    for name in catalog_of_this_repository():
        assert f"\n### {name}\n" in text
        for option in catalog.load(name).config_type().model_fields:
            assert re.search(rf"`(use|stages)\.{name}\.{option}[`.]", text), f"{name}.{option} is missing"


def test_every_option_of_every_export_target_is_in_the_recipe_reference():
    text = (DOCS / "recipe.md").read_text()
    catalog = Catalog.discover(group=EXPORTS)
    ours = {path.parent.name for path in ROOT.glob("plugins/*/pyproject.toml")}
    for name in (row.name for row in catalog.listing() if row.distribution in ours):
        assert f"\n### export {name}\n" in text
        for option in catalog.load(name).config_type().model_fields:
            assert re.search(rf"`export\.({name}|TARGET)\.{option}[`.]", text), f"{name}.{option} is missing"


def test_the_manual_lists_the_public_names():
    region = (DOCS / "index.md").read_text().partition("generated: public -->")[2].partition("<!--")[0]
    assert re.findall(r"^\| `(\w+)`", region, re.MULTILINE) == list(tunekit.__all__)
    assert list(tunekit.__all__) == sorted(tunekit.__all__)


def sections_of_errors() -> dict[str, str]:
    parts = re.split(r"^## (\w+Error)$", (DOCS / "errors.md").read_text(), flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def test_every_error_is_in_the_manual_with_its_exit_code_and_a_remedy():
    classes = {
        name: error
        for name, error in vars(errors).items()
        if isinstance(error, type) and issubclass(error, errors.TunekitError)
    }
    sections = sections_of_errors()
    assert list(sections) == list(classes)
    for name, text in sections.items():
        facts = dict(re.findall(r"^\| \*\*(.+?)\*\* \| (.+?) \|$", text, re.MULTILINE))
        assert list(facts) == ["When", "Exit code", "Example", "What to do"], name
        assert facts["Exit code"] == str(classes[name].exit_code), name
        assert ("*" in text.partition("|")[0]) == (name in tunekit.__all__), f"the star of {name}"


def test_the_exit_codes_in_the_manual_are_those_of_the_program():
    table = (DOCS / "errors.md").read_text().partition("## Exit codes")[2].partition("##")[0]
    listed = {int(code) for code in re.findall(r"^\| (\d+) ", table, re.MULTILINE)}
    raised = {error.exit_code for error in vars(errors).values() if hasattr(error, "exit_code")}
    assert listed == raised | {0}


def misspelt_key(folder):
    from_mapping({"model": "m", "stage": []})


def dora_alone(folder):
    tunekit.Pipeline("tiny", [{"text": "a"}], use=["dora"], stages=["sft"]).plan(estimate=False)


def unknown_columns(folder):
    (folder / "rows.jsonl").write_text('{"name": "a"}\n')
    tunekit.Pipeline("tiny", "rows.jsonl", use=["lora"], stages=["sft"]).plan()


def misspelt_plugin(folder):
    Catalog.discover().load("laura")


def missing_package(folder):
    from tunekit_transformers.sources import find_source

    find_source("pkg:nowhere")


def no_run(folder):
    tunekit.open_run("runs/none")


def failing_hook(folder):
    raise errors.HookCallError("fast", "tunekit-fast", "1.0", "tunekit_patch", ZeroDivisionError("division by zero"))


PROVOKED = {
    "RecipeError": misspelt_key,
    "PlanError": dora_alone,
    "DataError": unknown_columns,
    "UnknownPluginError": misspelt_plugin,
    "HookCallError": failing_hook,
    "ModelNotFoundError": missing_package,
    "RunFolderError": no_run,
}


@pytest.mark.parametrize("name", PROVOKED)
def test_the_example_of_an_error_is_what_it_says(name, desk):
    with pytest.raises(getattr(errors, name)) as raised:
        PROVOKED[name](desk)
    example = re.search(r"\*\*Example\*\* \| `(.+?)` \|", sections_of_errors()[name])
    assert example is not None
    assert example[1] in str(raised.value)


def test_every_page_is_in_the_navigation():
    config = yaml.safe_load((DOCS / "theme" / "mkdocs.yml").read_text())
    listed = re.findall(r"[\w-]+\.md", json.dumps(config["nav"]))
    assert sorted(listed) == sorted(path.name for path in DOCS.glob("*.md"))


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_links_inside_the_manual_lead_somewhere(path):
    text = re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", text):
        assert (path.parent / target).exists(), f"{path.name} links to {target}"


def test_the_model_of_the_pages_is_the_one_that_is_replaced():
    named = {model for path in PAGES for model in MODELS if model in path.read_text()}
    assert MODELS[0] in named


def test_the_plugin_of_the_manual_passes_the_conformance_kit_and_runs_in_a_recipe(desk, monkeypatch):
    page = Page(DOCS / "write-a-plugin.md", monkeypatch)
    written = [block for block in blocks(page.path) if block.title]
    for block in written:
        (desk / block.title).parent.mkdir(parents=True, exist_ok=True)
        (desk / block.title).write_text(block.text)
    environment = {**os.environ, "PYTHONPATH": str(desk / "site"), "PYTHONDONTWRITEBYTECODE": "1"}
    python = [sys.executable, "-m"]
    install = ["pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-index", "--target", "site"]
    for command in (
        [*install, "./tunekit-worddrop"],
        ["pytest", "-q", "-p", "no:cacheprovider", "-c", os.devnull, "tunekit-worddrop/tests"],
    ):
        done = subprocess.run([*python, *command], env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    program = [sys.executable, "-c", "from tunekit.cli import main; main()"]
    command = [*program, "train", "worddrop.yaml", "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "drops 20%" in (desk / "runs" / "named" / "reports.json").read_text()
