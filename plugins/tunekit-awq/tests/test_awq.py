"""What AWQ is given to look at, and checkpoints as autoawq wrote them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tunekit.testing import fake_machine, plan_for, save_tiny_model
from tunekit.testing.observing import logits
from tunekit_awq import Awq
from tunekit_gptq.rounding import make_checkpoint
from tunekit_lora import Lora

OLD = {"zero_point": True, "q_group_size": 32, "w_bit": 4, "version": "GEMM"}
"""What autoawq wrote into quant_config.json."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model in AWQ's format, as transformers writes it today."""
    dense = save_tiny_model(tmp_path_factory.mktemp("dense"))
    return make_checkpoint(dense, tmp_path_factory.mktemp("today"), "awq")


def as_autoawq_wrote_it(
    checkpoint: Path, folder: Path, inside: Any = None, weights: str = "model.safetensors", **said: Any
) -> Path:
    """The same weights with options in a file of their own, `inside` of config.json instead, or in a file `weights`."""
    shutil.copytree(checkpoint, folder)
    config = json.loads((folder / "config.json").read_text())
    config.pop("quantization_config")
    (folder / "config.json").write_text(json.dumps(config | ({"quantization_config": inside} if inside else {})))
    if said:
        (folder / "quant_config.json").write_text(json.dumps(said))
    (folder / "model.safetensors").rename(folder / weights)
    return folder


def problems(plugin: Awq, model: Path) -> list[str]:
    plan = plan_for(plugin, Lora(rank=4), model=str(model))
    return [str(problem) for problem in plugin.tunekit_check(plan=plan, machine=fake_machine())]


@pytest.mark.parametrize(
    "told",
    [
        OLD,
        {**OLD, "weights": "awq_model_w4_g32.safetensors"},
        {"inside": {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm",
                    "modules_to_not_convert": None}},
    ],
    ids=["its own file", "weights by another name", "in config.json"],
)  # fmt: skip
def test_what_autoawq_wrote_is_read_to_the_bit(checkpoint: Path, tmp_path: Path, told: dict[str, Any]) -> None:
    pytest.importorskip("gptqmodel")
    from tunekit_gptq.testing import loaded

    old = as_autoawq_wrote_it(checkpoint, tmp_path / "old", **told)
    assert problems(Awq(), old) == []
    expected = logits(loaded(Awq(), checkpoint, data=None).model)
    assert torch.equal(logits(loaded(Awq(cache=tmp_path / "kept"), old, data=None).model), expected)
    assert problems(Awq(group_size=64), old)[0].startswith("use.awq.group_size: means nothing")


@pytest.mark.parametrize("layout", ["GEMV", "GEMV_fast"])
def test_layouts_of_autoawq_without_a_kernel_that_trains_are_refused(
    checkpoint: Path, tmp_path: Path, layout: str
) -> None:
    pytest.importorskip("gptqmodel")
    old = as_autoawq_wrote_it(checkpoint, tmp_path / "old", **{**OLD, "version": layout})
    (found,) = problems(Awq(), old)
    assert found == (
        f"model: the checkpoint is in the layout {layout.lower()}, and gemm can be trained on; name a copy in one of "
        "these"
    )


def test_rows_that_differ_in_length_are_all_looked_at() -> None:
    """gptqmodel keeps the last of such rows alone, so they are laid end to end and cut into blocks of one length."""
    rows = [list(range(start, start + length)) for start, length in ((100, 12), (200, 31), (300, 10), (400, 17))]
    tokens = [token for row in rows for token in row]
    dense = SimpleNamespace(dtype=torch.float16)
    blocks = Awq(sample_tokens=16).job(dense, rows, Path(), "cpu").rows
    assert [len(block) for block in blocks] == [16] * 4
    assert [token for block in blocks for token in block] == tokens[:64]
    assert Awq(sample_tokens=512).job(dense, rows, Path(), "cpu").rows == [tokens]
