"""From a machine and what was asked for to a dtype policy with its reason. Knows no torch."""

from __future__ import annotations

from dataclasses import dataclass

from tunekit.errors import Problem
from tunekit.values import Accelerator, DType, Machine, Precision

DTYPES: dict[str, DType] = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
SHORT: dict[DType, str] = {name: short for short, name in DTYPES.items()}
BF16_CPU_FEATURES = {"amx_bf16": "AMX", "avx512_bf16": "AVX512-BF16"}


@dataclass(frozen=True, slots=True)
class Choice:
    """What was asked for, as the options say it: `auto` or a short dtype name."""

    device: str = "auto"
    compute: str = "auto"
    weights: str = "auto"
    pure: bool = False


@dataclass(frozen=True, slots=True)
class Ability:
    """What a device can compute in: the best format and why, and the formats it cannot train in, each with why."""

    device: str
    best: DType
    reason: str
    impossible: dict[DType, str]


def decide(choice: Choice, machine: Machine) -> tuple[Precision | None, list[Problem]]:
    """Return the policy, or None with every problem of the request."""
    use_accelerator = bool(machine.accelerators) and choice.device == "auto"
    ability = _accelerator_ability(machine.accelerators[0]) if use_accelerator else _cpu_ability(machine)
    compute = _compute(choice, ability)
    weights = _weights(choice, compute)
    problems = _problems(choice, compute, weights, ability)
    if problems:
        return None, problems
    trainable: DType = "bfloat16" if choice.pure else "float32"
    return Precision(ability.device, weights, compute, trainable, _reason(choice, ability, compute, weights)), []


def _compute(choice: Choice, ability: Ability) -> DType:
    if choice.compute != "auto":
        return DTYPES[choice.compute]
    return "bfloat16" if choice.pure else ability.best


def _weights(choice: Choice, compute: DType) -> DType:
    return compute if choice.weights == "auto" else DTYPES[choice.weights]


def _problems(choice: Choice, compute: DType, weights: DType, ability: Ability) -> list[Problem]:
    if choice.pure and compute != "bfloat16":
        return [
            Problem(
                "use.precision.pure",
                f"pure-half training uses bf16 for everything, but use.precision.compute is {SHORT[compute]}",
                "set use.precision.compute to bf16, or leave use.precision.pure out",
            )
        ]
    if compute in ability.impossible:
        key = "use.precision.pure" if choice.pure and choice.compute == "auto" else "use.precision.compute"
        remedy = f"set use.precision.compute to {SHORT[ability.best]} or auto"
        remedy += " and leave use.precision.pure out" if choice.pure else ""
        value = "true" if key.endswith("pure") else SHORT[compute]
        return [Problem(key, f"is {value}, but {ability.impossible[compute]}", remedy)]
    if weights not in (compute, "float32") or (choice.pure and weights != compute):
        return [
            Problem(
                "use.precision.weights",
                f"is {SHORT[weights]}, but products run in {SHORT[compute]}"
                + (" and pure-half training stores everything in bf16" if choice.pure else ""),
                f"set use.precision.weights to {SHORT[compute]} or auto"
                + ("" if choice.pure else ", or to fp32 for exact frozen weights"),
            )
        ]
    return []


def _reason(choice: Choice, ability: Ability, compute: DType, weights: DType) -> str:
    parts = [_compute_reason(choice, ability, compute)]
    if choice.pure:
        parts.append("pure bf16 was asked for, so trained parameters are bf16 too")
    elif compute != "float32":
        parts.append("trained parameters stay fp32")
    if choice.weights != "auto" and not choice.pure:
        parts.append(f"frozen weights in {SHORT[weights]} were asked for")
    return "; ".join(parts)


def _compute_reason(choice: Choice, ability: Ability, compute: DType) -> str:
    if choice.compute != "auto":
        return f"{SHORT[compute]} products were asked for ({ability.reason})"
    if choice.pure and compute != ability.best:
        return f"bf16 products for pure-half training ({ability.reason})"
    return ability.reason


def _cpu_ability(machine: Machine) -> Ability:
    fp16 = "fp16 training on a CPU overflows to NaN within a few steps"
    found = [label for flag, label in BF16_CPU_FEATURES.items() if flag in machine.cpu_features]
    if found:
        reason = f"bf16 products: the CPU has {' and '.join(found)}, several times the matrix throughput of fp32"
        return Ability("cpu", "bfloat16", reason, {"float16": fp16})
    reason = "fp32: the CPU has neither AVX512-BF16 nor AMX, without which bf16 is slower than fp32"
    return Ability("cpu", "float32", reason, {"float16": fp16})


def _accelerator_ability(accelerator: Accelerator) -> Ability:
    if accelerator.vendor.lower() == "nvidia":
        return _nvidia_ability(accelerator)
    name, kind = accelerator.name, accelerator.kind
    if accelerator.bf16:
        return Ability(kind, "bfloat16", f"bf16 products: {name} reports bf16 support", {})
    says = "reports no bf16 support" if accelerator.bf16 is False else "does not say whether it supports bf16"
    impossible: dict[DType, str] = {"bfloat16": f"{name} {says}"} if accelerator.bf16 is False else {}
    return Ability(kind, "float16", f"fp16 products: {name} {says}", impossible)


def _nvidia_ability(accelerator: Accelerator) -> Ability:
    name, kind = accelerator.name, accelerator.kind
    if accelerator.capability is None:
        reason = f"fp16 products: the driver does not report the compute capability of {name}"
        return Ability(kind, "float16", reason, {})
    number = "{}.{}".format(*accelerator.capability)
    if accelerator.capability >= (8, 0):
        return Ability(kind, "bfloat16", f"bf16 products: {name} has compute capability {number} (8.0 or more)", {})
    reason = f"fp16 products: {name} has compute capability {number}, and bf16 needs 8.0"
    return Ability(kind, "float16", reason, {"bfloat16": f"{name} has compute capability {number}, and bf16 needs 8.0"})
