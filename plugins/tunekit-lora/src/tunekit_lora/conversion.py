"""From an adapter over a residual base to a plain LoRA that loads on the base as it was, and back.

The trained weight is R + s B A, where R = W - s B0 A0 is the residual, B0 A0 the start and s LoRA's scale. So the
difference to W is s (B A - B0 A0) = s [B, -B0] [A; A0], a LoRA of twice the rank with the same scale.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import torch
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from peft.utils.other import transpose
from safetensors.torch import load_file, save_file

from .residual import START, Factors, adapted_layers, adapter_of, factors_of

FILE = "residual.json"
"""Beside a converted adapter: the configuration it was trained with, and each layer's rank, alpha and scale."""


def convert_(folder: Path, model: Any) -> Path:
    """Turn the adapter that PEFT has just written into a plain LoRA. One that was never decomposed stays as it is."""
    name = adapter_of(model)
    layers = {key: layer for key, layer in adapted_layers(model) if hasattr(layer, START)}
    if not layers:
        return folder
    tensors = load_file(folder / SAFETENSORS_WEIGHTS_NAME)
    for key, layer in layers.items():
        down, up = factors_of(model, layer)
        start: Factors = getattr(layer, START)
        tensors[f"{key}.lora_A.weight"] = torch.cat([down, start.down]).detach().cpu()
        tensors[f"{key}.lora_B.weight"] = torch.cat([up, -start.up], dim=1).detach().cpu()
    save_file(tensors, folder / SAFETENSORS_WEIGHTS_NAME, metadata={"format": "pt"})
    described = {
        key: {"rank": layer.r[name], "alpha": layer.lora_alpha[name], "scaling": layer.scaling[name]}
        for key, layer in layers.items()
    }
    original = json.loads((folder / "adapter_config.json").read_text())
    with quietly():
        _doubled(peft.LoraConfig.from_pretrained(str(folder))).save_pretrained(str(folder))
    (folder / FILE).write_text(json.dumps({"config": original, "layers": described}, indent=1))
    return folder


def _doubled(config: Any) -> Any:
    """The configuration of a plain LoRA of twice the rank with the same scale: alpha / rank, or alpha / sqrt(rank)."""
    factor = 2**0.5 if config.use_rslora else 2
    return replace(
        config,
        init_lora_weights=True,
        r=2 * config.r,
        lora_alpha=factor * config.lora_alpha,
        rank_pattern={key: 2 * rank for key, rank in config.rank_pattern.items()},
        alpha_pattern={key: factor * alpha for key, alpha in config.alpha_pattern.items()},
    )


def take_apart_(model: Any, folder: Path) -> Any:
    """Undo `convert_` on a model that has loaded the folder: adapter, start and residual are again what they were.

    An adapter that was never converted stays as it is.
    """
    if not (folder / FILE).is_file():
        return model
    kept, name = json.loads((folder / FILE).read_text()), adapter_of(model)
    for key, layer in dict(adapted_layers(model)).items():
        described = kept["layers"][key]
        rank, (down, up) = described["rank"], factors_of(model, layer)
        start = Factors(down[rank:].detach().clone(), -up[:, rank:].detach().contiguous())
        layer.r[name], layer.lora_alpha[name], layer.scaling[name] = rank, described["alpha"], described["scaling"]
        layer.lora_A[name].out_features = layer.lora_B[name].in_features = rank
        down.data, up.data = down.data[:rank].clone(), up.data[:, :rank].contiguous()
        setattr(layer, START, start)
        _subtract_(layer, start, described["scaling"])
    make: Any = peft.LoraConfig.from_peft_type
    with quietly():
        model.peft_config[name] = make(**{**kept["config"], "inference_mode": False})
    return model


def _subtract_(layer: Any, start: Factors, scaling: float) -> None:
    """Leave the residual in the base: the products of PEFT's own `pissa_init` in its order, for the same bits."""
    base = layer.get_base_layer()
    weight = transpose(base.weight.data, layer.fan_in_fan_out)  # [out in]
    base.weight.data = transpose(weight - scaling * start.up @ start.down, layer.fan_in_fan_out)


@contextmanager
def quietly() -> Iterator[None]:
    """Keep from the user PEFT's warning that its own conversion cannot do ranks that differ; this one can."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Using Rank-Stabilized LoRA with rank_pattern", category=UserWarning)
        yield
