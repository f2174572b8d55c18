"""What the plan can tell: kinds that do not train, hardware that cannot, checkpoints of another kind."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from tunekit.errors import Problem
from tunekit.values import Machine, Plan
from tunekit_transformers.quantizing import HEADS

from . import DYNAMIC, Kind, TorchaoConfig

FLOAT8 = (8, 9)
"""The least compute capability of NVIDIA's with products in float8 (Ada, Hopper)."""

TYPES = {
    "Int8WeightOnlyConfig": "int8",
    "IntxWeightOnlyConfig": "int4",
    "Float8WeightOnlyConfig": "float8",
    "Int8DynamicActivationInt8WeightConfig": "int8-dynamic",
    "Int8DynamicActivationIntxWeightConfig": "int4-dynamic",
    "Float8DynamicActivationFloat8WeightConfig": "float8-dynamic",
}


def dynamic_problems(config: TorchaoConfig, plan: Plan) -> Iterable[Problem]:
    """Refuse to train over layers that cut the gradient."""
    if config.kind in DYNAMIC and plan.stages:
        trains = config.kind.removesuffix("-dynamic")
        what = f"is {config.kind}, which rounds what goes into each layer, and no gradient passes: nothing below learns"
        yield Problem("use.torchao.kind", what, f"train with {trains} and export to {config.kind}, or take qat")


def hardware_problems(kind: Kind, device: str, machine: Machine, key: str) -> Iterable[Problem]:
    """Refuse products in float8 where there are none: on any other `device`, and on older cards."""
    if kind != "float8-dynamic":
        return
    remedy = "take float8, which stores weights in it and multiplies in more"
    if device != "cuda":
        what = f"is {kind}, which needs an accelerator that multiplies in float8, and the run computes on {device}"
        yield Problem(key, what, remedy)
        return
    known = [one.capability for one in machine.accelerators if one.capability is not None]
    if not any(capability >= FLOAT8 for capability in known):
        what = f"is {kind}, and no accelerator here multiplies in float8 (NVIDIA from compute capability 8.9)"
        yield Problem(key, what, remedy)


def own(stored: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """What a checkpoint says of its weights where torchao has stored them, else None."""
    return stored if stored is not None and stored["quant_method"] == "torchao" else None


def as_stored(config: TorchaoConfig, stored: Mapping[str, Any] | None) -> TorchaoConfig:
    """The options with the groups and the layers to skip that a checkpoint was made with."""
    stored = own(stored)
    if stored is None:
        return config
    described = _described(stored)
    granularity = described.get("_data", {})
    granularity = granularity.get("weight_granularity") or granularity.get("granularity") or {}
    group = granularity.get("_data", {}).get("group_size") if isinstance(granularity, Mapping) else None
    kept = dict.fromkeys(name.removesuffix(".weight") for name in stored.get("modules_to_not_convert") or ())
    return config.model_copy(update={"group": group, "skip": tuple(name for name in kept if name not in HEADS)})


def stored_problems(config: TorchaoConfig, stored: Mapping[str, Any] | None) -> Iterable[Problem]:
    """Refuse options that ask for another kind of weights than the checkpoint has."""
    stored = own(stored)
    if stored is None:
        return
    described = _described(stored)
    name = described.get("_type", "a kind without a name")
    kind = TYPES.get(name)
    bits = described.get("_data", {}).get("weight_dtype", {})
    if kind in {"int4", "int4-dynamic"} and "int4" not in str(bits):
        kind = None
    if kind is None:
        what = f"the weights are stored by torchao as {name}, which this plugin does not know"
        yield Problem("model", what, "name a copy with plain weights")
    elif kind != config.kind:
        what = f"is {config.kind}, but the weights are stored quantised already, as {kind}"
        yield Problem("use.torchao.kind", what, f"write kind: {kind}")
    given = [name for name in ("group", "skip") if name in config.model_fields_set]
    for name in given:
        what = "was decided when these weights were quantised"
        yield Problem(f"use.torchao.{name}", what, "leave it out, or name a copy with plain weights")


def _described(stored: Mapping[str, Any]) -> Mapping[str, Any]:
    """torchao's own configuration as it is written into a checkpoint."""
    described: Mapping[str, Any] = stored.get("quant_type", {}).get("default", {})
    return described
