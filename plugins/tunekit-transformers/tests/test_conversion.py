"""GGUF files are converted once, whole or not at all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import gguf
import pytest
import torch
from safetensors.torch import load_file

from tunekit.errors import TunekitError
from tunekit.testing.runs import run_context
from tunekit.testing.tiny import FP32, tiny_model, tiny_tokenizer
from tunekit.values import Event, LoadRequest, ModelBundle
from tunekit_transformers import Transformers
from tunekit_transformers.conversion import MANIFEST, convert, converted_folder, is_complete
from tunekit_transformers.gguf_header import BLOCKS, read_header, write_without_vocabulary

Loaded = Callable[..., ModelBundle]


def silent(message: str) -> None:
    """Hear a message and do nothing."""


def test_the_converted_model_is_the_model(gguf_file: Path, loaded: Loaded, tmp_path: Path) -> None:
    bundle = loaded(gguf_file, cache=tmp_path / "cache")
    expected, found = tiny_model().state_dict(), bundle.model.state_dict()
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def test_the_converted_tokenizer_is_the_tokenizer(gguf_file: Path, loaded: Loaded, tmp_path: Path) -> None:
    found, expected = loaded(gguf_file, cache=tmp_path / "cache").tokenizer, tiny_tokenizer()
    text = "<|im_start|>user\nWhich river flows, naïvely 漢字?<|im_end|>\n"
    assert found(text)["input_ids"] == expected(text)["input_ids"]
    assert found.chat_template == expected.chat_template
    assert (found.eos_token_id, found.pad_token_id) == (expected.eos_token_id, expected.pad_token_id)


def test_quantised_matrices_are_dequantised_to_bf16(quantised_file: Path, tmp_path: Path) -> None:
    """Against gguf's own dequantisation; what is not quantised in the file is bf16 too, as bf16 can hold it."""
    folder = convert(quantised_file, tmp_path / "cache", silent)
    weights = load_file(folder / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    (stored,) = (tensor for tensor in gguf.GGUFReader(quantised_file).tensors if tensor.name == "blk.1.ffn_up.weight")
    expected = torch.from_numpy(gguf.quants.dequantize(stored.data, stored.tensor_type)).bfloat16()
    assert torch.equal(weights["model.layers.1.mlp.up_proj.weight"], expected)


def test_the_architecture_is_written_into_the_config(gguf_file: Path, tmp_path: Path) -> None:
    folder = convert(gguf_file, tmp_path / "cache", silent)
    assert json.loads((folder / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]


def test_a_file_is_converted_once_and_that_is_told(gguf_file: Path, tmp_path: Path) -> None:
    told: list[Event] = []
    plugin = Transformers(cache=tmp_path / "cache")
    context = run_context(plugin, folder=tmp_path, watch=told.append)
    for _ in range(2):
        plugin.tunekit_load_model(LoadRequest(str(gguf_file), FP32), context)
    (event,) = told
    assert (event.kind, event.stage) == ("started", "load")
    assert event.message == "converting tiny.gguf to safetensors, once (about 5 s)"


def test_nothing_is_drawn_on_the_screen(
    gguf_file: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], loaded: Loaded
) -> None:
    loaded(gguf_file, cache=tmp_path / "cache")
    assert capfd.readouterr() == ("", "")


def test_the_cache_option_names_the_folder(gguf_file: Path, loaded: Loaded, tmp_path: Path) -> None:
    loaded(gguf_file, cache=tmp_path / "here")
    assert is_complete(converted_folder(gguf_file, tmp_path / "here"))


def test_without_the_option_the_users_cache_is_used(
    gguf_file: Path, loaded: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import platformdirs

    monkeypatch.setattr(platformdirs, "user_cache_dir", lambda name: str(tmp_path / "user" / name))
    loaded(gguf_file)
    assert is_complete(converted_folder(gguf_file, tmp_path / "user" / "tunekit" / "models"))


def test_another_content_is_another_copy_wherever_it_differs(gguf_file: Path, tmp_path: Path) -> None:
    content = gguf_file.read_bytes()
    folders = {converted_folder(gguf_file, tmp_path)}
    for position in (100, len(content) // 2, len(content) - 1):
        gguf_file.write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])
        folders.add(converted_folder(gguf_file, tmp_path))
    assert len(folders) == 4


def test_the_same_content_elsewhere_is_the_same_copy(gguf_file: Path, tmp_path: Path) -> None:
    before = converted_folder(gguf_file, tmp_path)
    (tmp_path / "moved").mkdir()
    moved = gguf_file.rename(tmp_path / "moved" / gguf_file.name)
    os.utime(moved, (0, 0))
    assert converted_folder(moved, tmp_path) == before


@pytest.mark.parametrize("damage", ["truncated", "file missing", "manifest missing", "manifest broken"])
def test_a_damaged_copy_is_made_again(gguf_file: Path, tmp_path: Path, loaded: Loaded, damage: str) -> None:
    folder = convert(gguf_file, tmp_path, silent)
    weights = folder / "model.safetensors"
    if damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:-10])
    elif damage == "file missing":
        (folder / "tokenizer.json").unlink()
    elif damage == "manifest missing":
        (folder / MANIFEST).unlink()
    else:
        (folder / MANIFEST).write_text("{")
    bundle = loaded(gguf_file, cache=tmp_path)
    assert torch.equal(bundle.model.lm_head.weight, tiny_model().lm_head.weight)
    assert is_complete(folder)


def test_a_conversion_that_fails_leaves_nothing_behind(
    gguf_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformers

    def full(*arguments: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(transformers.PreTrainedModel, "save_pretrained", full)
    cache = tmp_path / "cache"
    with pytest.raises(TunekitError, match=r"cannot be written to .*cache.*No space left.*use\.transformers\.cache"):
        convert(gguf_file, cache, silent)
    assert [path for path in cache.iterdir() if path.is_dir()] == []


def test_a_cache_that_cannot_be_made_is_said(gguf_file: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TunekitError, match=r"set use\.transformers\.cache to another folder"):
        convert(gguf_file, tmp_path / "file" / "cache", silent)


def test_what_a_killed_process_left_is_cleared_away(gguf_file: Path, tmp_path: Path) -> None:
    folder = converted_folder(gguf_file, tmp_path / "cache")
    stale = folder.parent / f".{folder.name}.partial-99999"
    stale.mkdir(parents=True)
    (stale / "model.safetensors").write_bytes(b"half of it")
    assert convert(gguf_file, tmp_path / "cache", silent) == folder
    assert not stale.exists()


def test_two_processes_at_once_convert_once_and_both_load(gguf_file: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from tunekit_transformers.conversion import convert, is_complete\n"
        "folder = convert(Path(sys.argv[1]), Path(sys.argv[2]), lambda message: print('converting'))\n"
        "assert is_complete(folder); print(folder)"
    )
    command = [sys.executable, "-c", code, str(gguf_file), str(tmp_path / "cache")]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    output = [process.communicate()[0].split() for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sum("converting" in lines for lines in output) == 1
    assert output[0][-1] == output[1][-1]


def test_an_architecture_nobody_knows_is_said(gguf_file: Path, tmp_path: Path) -> None:
    content = gguf_file.read_bytes()
    place = content.index(b"\x05\0\0\0\0\0\0\0llama") + 8
    gguf_file.write_bytes(content[:place] + b"lxxma" + content[place + 5 :])
    with pytest.raises(TunekitError, match=r"transformers cannot read .*use a safetensors copy"):
        convert(gguf_file, tmp_path / "cache", silent)


def test_the_header_is_what_the_reference_reader_reads(quantised_file: Path) -> None:
    header, reference = read_header(quantised_file), gguf.GGUFReader(quantised_file)
    for key, value in header.metadata.items():
        expected = reference.fields[key].contents()
        assert value == (len(expected) if isinstance(expected, list) and isinstance(expected[0], str) else expected)
    assert [tensor.name for tensor in header.tensors] == [tensor.name for tensor in reference.tensors]
    assert [tensor.ggml_type for tensor in header.tensors] == [int(tensor.tensor_type) for tensor in reference.tensors]
    assert [tensor.shape for tensor in header.tensors] == [
        tuple(int(size) for size in reversed(tensor.shape)) for tensor in reference.tensors
    ]
    assert header.parameters == sum(parameter.numel() for parameter in tiny_model().parameters())


def test_the_config_is_the_same_without_the_vocabulary(gguf_file: Path, tmp_path: Path) -> None:
    from transformers import AutoConfig

    (tmp_path / "slim").mkdir()
    write_without_vocabulary(gguf_file, tmp_path / "slim" / gguf_file.name)
    assert "tokenizer.ggml.tokens" not in read_header(tmp_path / "slim" / gguf_file.name).metadata
    slim, whole = (
        AutoConfig.from_pretrained(place, gguf_file=gguf_file.name).to_dict() for place in (tmp_path / "slim", tmp_path)
    )
    assert {**slim, "_name_or_path": ""} == {**whole, "_name_or_path": ""}


def test_the_sizes_of_blocks_are_those_of_gguf() -> None:
    assert {kind: gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(kind)] for kind in BLOCKS} == BLOCKS
