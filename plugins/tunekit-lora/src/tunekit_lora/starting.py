"""Beginning with a saved adapter: whether it is what the options ask for. Reads JSON, imports no torch."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from tunekit.errors import Problem
from tunekit.values import Plan, StagePlan

from . import Lora, LoraConfig
from .patterns import alphas
from .saved import read_settings
from .stacking import other_below

if TYPE_CHECKING:
    from .targets import Chosen


def start_problems(plugin: Lora, plan: Plan) -> Iterator[Problem]:
    """What speaks against the saved adapters that stages are to begin with."""
    for stage in stages_of(plugin, plan):
        assert stage.start is not None
        saved, key = read_settings(stage.start), f"{stage.key}.adapter.start"
        if saved is None:
            remedy = "name the folder of an adapter that a run has saved"
            yield Problem(key, f"{stage.start} holds no LoRA adapter in PEFT's format", remedy)
        else:
            yield from (
                Problem(key, f"{stage.start} {why}", "leave the option out to take what is saved, or start fresh")
                for why in _differences(plugin.config, saved)
            )
            if (wrong := other_below(stage.start, plan)) is not None:
                yield Problem(key, f"{stage.start} {wrong[0]}", wrong[1])


def stages_of(plugin: Lora, plan: Plan) -> Iterator[StagePlan]:
    """The stages whose saved adapter this plugin is to attach; of an adapter's stages only the first names one."""
    for stage in plan.stages:
        own = [use.plugin for use in stage.uses if isinstance(use.plugin, Lora)]
        shared = [one.plugin for one in plan.plugins if one.stage is None and isinstance(one.plugin, Lora)]
        if stage.start is not None and next(iter(own or shared), None) is plugin:
            yield stage


def target_problems(config: LoraConfig, stage: StagePlan, chosen: Chosen, known: Iterable[str]) -> list[Problem]:
    """The problems of a saved adapter for other parts of the model than those `chosen` of all that are `known`.

    A recipe that does not say which takes those that are saved.
    """
    assert stage.start is not None
    saved, given = read_settings(stage.start), config.model_fields_set
    if saved is None:
        return []
    found = []
    if {"targets", "layers"} & given:
        held = {name for name in known if targeted(name, saved["target_modules"])}
        found += _other(stage, "targets", held, chosen.layers)
    if "parameters" in given:
        found += _other(stage, "parameters", saved.get("target_parameters") or (), chosen.parameters)
    if "tokens" in given:
        held = {f"token {number}" for number in saved.get("trainable_token_indices") or ()}
        found += _other(stage, "tokens", held, [f"token {number}" for number in chosen.tokens])
    return found


def _other(stage: StagePlan, option: str, held: Iterable[str], chosen: Iterable[str]) -> list[Problem]:
    other = sorted(set(held).symmetric_difference(chosen))
    if not other:
        return []
    where = "is adapted there and not here" if other[0] in held else "is adapted here and not there"
    what = "layers" if option == "targets" else option
    message = f"{stage.start} is for other {what} than use.lora.{option}: {other[0]} {where}"
    remedy = f"leave {option} out to take what is saved, or start fresh"
    return [Problem(f"{stage.key}.adapter.start", message, remedy)]


def targeted(name: str, targets: Any) -> bool:
    """Whether a module of this name is among the saved `target_modules`."""
    if isinstance(targets, str):
        return re.fullmatch(targets, name) is not None
    return any(name == target or name.endswith(f".{target}") for target in targets)


def _differences(config: LoraConfig, saved: dict[str, Any]) -> Iterator[str]:
    """Options that the recipe gives, and that the saved adapter was not made with."""
    given, asked = config.model_fields_set, config.scale_numerator
    for option, wanted, found in (
        ("rank", config.rank, saved.get("r")),
        ("alpha", asked, saved.get("lora_alpha")),
        ("dropout", config.dropout, saved.get("lora_dropout", 0.0)),
        ("rslora", config.rslora, saved.get("use_rslora", False)),
        ("rank_pattern", config.rank_pattern, saved.get("rank_pattern") or {}),
        ("alpha_pattern", alphas(config), saved.get("alpha_pattern") or {}),
        ("modules_to_save", sorted(config.modules_to_save), sorted(saved.get("modules_to_save") or ())),
    ):
        if option in given and wanted != found:
            yield f"was trained with {option} {found}, and use.lora.{option} is {wanted}"
