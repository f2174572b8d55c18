"""The catalog: what is installed, and what is wrong with what is not usable. Fake distributions on disk."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import tomllib

from tunekit.catalog import Catalog, hooks_of
from tunekit.errors import TOGETHER, BrokenPluginError, DuplicatePluginError, UnknownPluginError

GOOD = """
from tunekit import Plugin, PluginConfig, hookimpl
from tunekit.values import Machine, Precision
class Config(PluginConfig): pass
class Good(Plugin[Config]):
    '''A good plugin.

    More about it.'''
    provides = frozenset({"good"})
    @hookimpl
    def tunekit_precision(self, machine: Machine) -> Precision: ...
"""


def catalog(site):
    return Catalog.discover([str(site)])


def test_names_come_from_metadata_and_nothing_is_imported(distribution):
    site = distribution("fake-good", {"good": "fake_good:Good"}, GOOD)
    assert catalog(site).names == ("good",)
    assert "fake_good" not in sys.modules


def test_a_named_plugin_is_imported_alone(distribution):
    distribution("fake-bad", {"bad": "fake_bad:Bad"}, "raise RuntimeError('boom')")
    site = distribution("fake-good", {"good": "fake_good:Good"}, GOOD)
    assert catalog(site).load("good").__name__ == "Good"
    assert "fake_bad" not in sys.modules


def test_a_broken_plugin_nobody_named_is_a_row_with_its_reason(distribution):
    distribution("fake-good", {"good": "fake_good:Good"}, GOOD)
    site = distribution("fake-bad", {"bad": "fake_bad:Bad"}, "raise RuntimeError('boom')")
    bad, good = catalog(site).listing()
    assert (bad.name, bad.status, bad.summary) == ("bad", "broken", "boom")
    assert (good.status, good.summary, good.hooks, good.provides) == (
        "available",
        "A good plugin.",
        ("tunekit_precision",),
        ("good",),
    )


def test_a_broken_plugin_that_was_named_raises_with_its_cause(distribution):
    site = distribution("fake-bad", {"bad": "fake_bad:Bad"}, "import nothing_of_this_name")
    with pytest.raises(BrokenPluginError, match=r"plugin 'bad' \(fake-bad 1.0\) cannot be imported") as caught:
        catalog(site).load("bad")
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)
    assert "pip install --force-reinstall fake-bad" in str(caught.value)


def test_an_entry_that_is_no_plugin_is_broken(distribution):
    site = distribution("fake-odd", {"odd": "fake_odd:thing"}, "thing = 3")
    with pytest.raises(BrokenPluginError, match=r"is 3, no subclass of tunekit\.Plugin"):
        catalog(site).load("odd")


def test_an_unknown_name_suggests_the_nearest_and_how_to_install(distribution):
    site = distribution("fake-good", {"good": "fake_good:Good"}, GOOD)
    with pytest.raises(UnknownPluginError, match=r"did you mean 'good'\?.*pip install tunekit-goood"):
        catalog(site).load("goood")


def test_a_plugin_that_comes_with_others_is_named_by_its_distribution(distribution):
    site = distribution("fake-good", {"good": "fake_good:Good"}, GOOD)
    with pytest.raises(
        UnknownPluginError, match=r"^no plugin named 'fsdp' is installed; `pip install tunekit-distributed"
    ):
        catalog(site).load("fsdp")


def test_what_comes_with_others_is_what_the_distributions_of_this_project_say():
    together = {}
    for path in sorted((Path(__file__).parent.parent / "plugins").glob("*/pyproject.toml")):
        project = tomllib.loads(path.read_text())["project"]
        names = [name for name in project["entry-points"].get("tunekit", {}) if f"tunekit-{name}" != project["name"]]
        together.update({project["name"]: tuple(names)} if names else {})
    assert together == TOGETHER


def test_two_distributions_with_one_name_are_named_both(distribution):
    distribution("fake-one", {"good": "fake_one:Good"}, GOOD)
    site = distribution("fake-two", {"good": "fake_two:Good"}, GOOD, version="2.0")
    with pytest.raises(DuplicatePluginError, match=r"fake-one 1\.0 and fake-two 2\.0|fake-two 2\.0 and fake-one 1\.0"):
        catalog(site).load("good")
    assert {row.status for row in catalog(site).listing()} == {"duplicate"}


def test_an_older_copy_further_down_the_path_is_no_duplicate(distribution, site, tmp_path):
    distribution("fake-good", {"good": "fake_good:Good"}, GOOD)
    other = tmp_path / "other"
    (site / "fake_good-1.0.dist-info").rename(site / "keep")
    (other / "fake_good-0.9.dist-info").mkdir(parents=True)
    (site / "keep").rename(site / "fake_good-1.0.dist-info")
    for name in ("METADATA", "entry_points.txt"):
        text = (site / "fake_good-1.0.dist-info" / name).read_text().replace("1.0", "0.9")
        (other / "fake_good-0.9.dist-info" / name).write_text(text)
    assert Catalog.discover([str(site), str(other)]).entry("good").version == "1.0"


@pytest.mark.parametrize("value", ["good", "other, good", "*"])
def test_disabled_plugins_cannot_be_named_and_say_so(distribution, monkeypatch, value):
    monkeypatch.setenv("TUNEKIT_DISABLED_PLUGINS", value)
    found = catalog(distribution("fake-good", {"good": "fake_good:Good"}, GOOD))
    assert found.names == ()
    assert found.listing()[0].status == "disabled"
    with pytest.raises(UnknownPluginError, match="disabled by TUNEKIT_DISABLED_PLUGINS"):
        found.load("good")


def test_a_class_is_found_under_its_installed_name(distribution):
    found = catalog(distribution("fake-good", {"good": "fake_good:Good"}, GOOD))
    plugin = found.load("good")
    entry = found.entry_of(plugin)
    assert entry is not None
    assert (entry.name, entry.distribution) == ("good", "fake-good")
    assert hooks_of(plugin) == ("tunekit_precision",)
