"""Both plugins satisfy what every plugin has to."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import pytest

from tunekit.testing import TokenizerPatchSuite, ToolFormatSuite
from tunekit_templates import ChatTemplate, Tools
from tunekit_templates.entries import TEMPLATES, TOOL_FORMATS

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
TEMPLATE_LINES, TOOL_LINES = (part.splitlines() for part in README.split("\n## tools\n"))


class TestPlainTemplate(TokenizerPatchSuite):
    plugin = ChatTemplate(name="alpaca")


class TestTemplateWithMarkers(TokenizerPatchSuite):
    plugin = ChatTemplate(name="qwen3")


class TestTemplateFile(TokenizerPatchSuite):
    plugin = ChatTemplate(file=str(files("tunekit_templates") / "jinja" / "zephyr.jinja"))


class TestTools(ToolFormatSuite):
    plugin = Tools()


class TestHermes(ToolFormatSuite):
    plugin = Tools(format="hermes")


class TestLlama3(ToolFormatSuite):
    plugin = Tools(format="llama3")


class TestMistral(ToolFormatSuite):
    plugin = Tools(format="mistral")


class TestGlm(ToolFormatSuite):
    plugin = Tools(format="glm")


@pytest.mark.parametrize("name", TEMPLATES.names)
def test_the_readme_lists_every_template_with_its_source_and_its_end(name):
    template = TEMPLATES.load(name)
    (row,) = (line.replace("\\|", "|") for line in TEMPLATE_LINES if line.startswith(f"| `{name}` |"))
    assert template.name == name
    assert template.source.partition(",")[0].partition(";")[0] in row
    assert f"`{template.turn_end}`" in row if template.turn_end else "| end token |" in row


@pytest.mark.parametrize("name", TOOL_FORMATS.names)
def test_the_readme_lists_every_tool_format(name):
    assert any(line.startswith(f"| `{name}` |") for line in TOOL_LINES)
