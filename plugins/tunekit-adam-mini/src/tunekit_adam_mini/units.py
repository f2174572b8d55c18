"""Which numbers of a parameter share one learning rate, and the optimiser over parameters grouped by that."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Literal

from tunekit.values import BYTES, Estimate, OptimizerSettings
from tunekit_train.estimate import states_estimate
from tunekit_train.forward import base_model

from . import AdamMiniConfig
from .optimizer import AdamMiniW

Unit = Literal["head", "row", "column", "whole", "number"]
"""The rows of an attention head, a row, a column, all of a parameter, or each number by itself."""

QUERY_AND_KEY = frozenset({"q_proj", "k_proj", "query", "key", "wq", "wk"})
"""Layers whose outputs are attention heads, by the last part of their names."""


def units_of(model: Any, named: Iterable[tuple[str, Any]]) -> dict[str, Unit]:
    """The unit of each parameter, by name, after the partition of the paper.

    Query and key share by attention head; other matrices by output neuron, embedding and head by token, factors of an
    adapter by row; norms as a whole; biases not at all.
    """
    from transformers.pytorch_utils import Conv1D

    columns = {id(layer.weight) for layer in model.modules() if isinstance(layer, Conv1D)}
    rows = head_rows(model)
    return {name: _unit(name, parameter, rows, id(parameter) in columns) for name, parameter in named}


def head_rows(model: Any) -> int:
    """How many outputs of query and key are one attention head."""
    config = base_model(model).config.get_text_config()
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def make_optimizer(
    config: AdamMiniConfig, model: Any, named: list[tuple[str, Any]], settings: OptimizerSettings
) -> AdamMiniW:
    """One group of parameters for each unit, and for what decays and what does not."""
    units, rows = units_of(model, named), head_rows(model)
    groups: dict[tuple[Unit, bool], dict[str, Any]] = {}
    for name, parameter in named:
        unit, decays = units[name], parameter.ndim >= 2
        options: dict[str, Any] = {"params": [], "unit": unit, "head_rows": rows if unit == "head" else 0}
        weight_decay = settings.weight_decay if decays else 0.0
        groups.setdefault((unit, decays), {**options, "weight_decay": weight_decay})["params"].append(parameter)
    return AdamMiniW(
        list(groups.values()), lr=settings.learning_rate, betas=(config.beta1, config.beta2), eps=config.eps
    )


def estimate_states(dtype: str, estimate: Estimate) -> Estimate:
    """Add a mean for each number that trains and a square for each unit, at `dtype`."""
    model = estimate.skeleton
    assert model is not None, "the loader's estimate comes before the optimiser's"
    units, rows = units_of(model, model.named_parameters()), head_rows(model)
    of = {id(parameter): units[name] for name, parameter in model.named_parameters()}

    def bytes_of(parameter: Any) -> int:
        return BYTES[dtype] * (int(parameter.numel()) + count(tuple(parameter.shape), of[id(parameter)], rows))

    return states_estimate(estimate, bytes_of)


def count(shape: tuple[int, ...], unit: Unit, rows: int) -> int:
    """How many units a parameter of this shape has."""
    whole = math.prod(shape)
    sizes = {"head": rows * shape[-1], "row": shape[-1], "column": shape[0], "whole": whole, "number": 1}
    return whole // sizes[unit]


def _unit(name: str, parameter: Any, rows: int, columns: bool) -> Unit:
    if parameter.ndim < 2:
        return "number" if name.endswith("bias") else "whole"
    if name.rpartition(".")[0].rpartition(".")[2] in QUERY_AND_KEY and parameter.shape[0] % rows == 0:
        return "head"
    return "column" if columns else "row"
