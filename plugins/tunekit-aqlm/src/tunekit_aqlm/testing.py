"""A checkpoint as AQLM writes them, made in seconds by k-means: for tests, since making good ones takes days."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from .checkpoint import KEPT


def make_checkpoint(dense: Path, folder: Path, bits: int = 10, books: int = 2, columns: int = 4, **stored: Any) -> Path:
    """Write the dense model of a folder, one safetensors file, as codes into `folder`; head and embeddings stay.

    A group is one row by `columns`. `stored` goes into the `quantization_config` over what is written there.
    """
    shutil.copytree(dense, folder, dirs_exist_ok=True)
    tensors, written = load_file(folder / "model.safetensors"), dict[str, Tensor]()
    for name, tensor in tensors.items():
        if tensor.dim() == 2 and ".layers." in name:
            parts = encoded(tensor.float(), bits, books, columns)
            written |= {f"{name.removesuffix('weight')}{part}": value for part, value in parts.items()}
        else:
            written[name] = tensor
    save_file(written, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "aqlm",
        "nbits_per_codebook": bits,
        "num_codebooks": books,
        "in_group_size": columns,
        "out_group_size": 1,
        KEPT: ["lm_head"],
        **stored,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def encoded(weight: Tensor, bits: int, books: int, columns: int, rounds: int = 2) -> dict[str, Tensor]:
    """Codes, codebooks and scales of a weight [out in]; each codebook takes what the ones before have left."""
    scales = weight.abs().amax(dim=1, keepdim=True)  # [out 1]
    left = (weight / scales).reshape(-1, columns)  # [groups columns]
    codebooks, codes = [], []
    for _ in range(books):
        entries = left[torch.randperm(len(left), generator=torch.Generator().manual_seed(0))[: 2**bits]].clone()
        for _ in range(rounds):
            nearest = torch.cdist(left, entries).argmin(dim=1)
            counts = torch.bincount(nearest, minlength=len(entries)).unsqueeze(1)
            sums = torch.zeros_like(entries).index_add_(0, nearest, left)
            entries = torch.where(counts > 0, sums / counts.clamp(min=1), entries)
        nearest = torch.cdist(left, entries).argmin(dim=1)
        left = left - entries[nearest]
        codebooks.append(entries)
        codes.append(nearest)
    kind = torch.int8 if bits <= 8 else torch.int16
    numbers = torch.stack(codes, dim=-1).reshape(weight.shape[0], -1, books)
    signed = torch.where(numbers >= 2 ** (8 * kind.itemsize - 1), numbers - 2 ** (8 * kind.itemsize), numbers)
    return {
        "codes": signed.to(kind).contiguous(),
        "codebooks": torch.stack(codebooks)[:, :, None, :].contiguous(),
        "scales": scales[:, :, None, None].contiguous(),
    }
