"""A checkpoint in the format of GPTQ or AWQ, made in a moment by rounding each weight to the nearest: for tests."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from .unpacking import AWQ_ORDER

BITS, PER_WORD = 4, 8
SAID: Mapping[str, Mapping[str, Any]] = {
    "gptq": {"checkpoint_format": "gptq", "desc_act": False, "sym": False},
    "awq": {"version": "gemm", "zero_point": True, "modules_to_not_convert": ["lm_head"]},
}
"""What a `quantization_config` says beside method, bits and groups."""


def make_checkpoint(dense: Path, folder: Path, method: Literal["gptq", "awq"], group: int = 32) -> Path:
    """Write the dense model of a folder, one safetensors file, in 4 bits into `folder`; head and embeddings stay."""
    shutil.copytree(dense, folder, dirs_exist_ok=True)
    stored: Callable[[Tensor, int], dict[str, Tensor]] = {"gptq": _gptq, "awq": _awq}[method]
    written: dict[str, Tensor] = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        if tensor.dim() == 2 and ".layers." in name:
            written |= {f"{name.removesuffix('weight')}{part}": each for part, each in stored(tensor, group).items()}
        else:
            written[name] = tensor
    save_file(written, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": method, "bits": BITS, "group_size": group, **SAID[method]}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def _gptq(weight: Tensor, group: int) -> dict[str, Tensor]:
    """Packed along the inputs; a zero is stored as one less."""
    numbers, zeros, scales = _rounded(weight, group)
    return {
        "qweight": pack(numbers.t()).t().contiguous(),
        "qzeros": pack(zeros - 1),
        "scales": scales,
        "g_idx": (torch.arange(len(numbers)) // group).int(),
    }


def _awq(weight: Tensor, group: int) -> dict[str, Tensor]:
    """Packed along the outputs, those of a word in an order of its own."""
    numbers, zeros, scales = _rounded(weight, group)
    places = list(torch.tensor(AWQ_ORDER).argsort())
    mixed = [each.reshape(len(each), -1, PER_WORD)[..., places].flatten(1) for each in (numbers, zeros)]
    return {"qweight": pack(mixed[0]), "qzeros": pack(mixed[1]), "scales": scales}


def _rounded(weight: Tensor, group: int) -> tuple[Tensor, Tensor, Tensor]:
    """Integers [in out], zeros and scales [groups out] of a weight [out in]: w = scale (q - zero)."""
    parts = weight.float().t().reshape(-1, group, len(weight))  # [groups group out]
    low, high = parts.amin(dim=1), parts.amax(dim=1)
    top = 2**BITS - 1
    scales = ((high - low) / top).clamp(min=1e-8).half().float()
    zeros = (-low / scales).round().clamp(1, top)
    numbers = (parts / scales.unsqueeze(1) + zeros.unsqueeze(1)).round().clamp(0, top)
    return numbers.flatten(0, 1).long(), zeros.long(), scales.half()


def pack(numbers: Tensor) -> Tensor:
    """Integers of 4 bits end to end along the last axis: int64 [..., n] to int32 [..., n / 8]."""
    words = (numbers.reshape(*numbers.shape[:-1], -1, PER_WORD) << torch.arange(0, BITS * PER_WORD, BITS)).sum(-1)
    return torch.where(words >= 2**31, words - 2**32, words).int()
