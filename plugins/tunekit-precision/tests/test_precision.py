"""The dtype policy on many machines, asked for many things."""

from __future__ import annotations

import pytest

from tunekit.errors import PlanError
from tunekit.values import Accelerator, Machine, Precision
from tunekit_precision import PrecisionPolicy


def machine(*accelerators: Accelerator, cpu: tuple[str, ...] = ()) -> Machine:
    return Machine("Linux", "3.11", "a processor", 8, 2**35, frozenset(cpu), accelerators)


def nvidia(major: int, minor: int) -> Accelerator:
    return Accelerator("cuda", "nvidia", f"card {major}.{minor}", 2**34, (major, minor))


def other(kind: str, vendor: str, bf16: bool | None) -> Accelerator:
    return Accelerator(kind, vendor, f"{vendor} card", 2**34, None, bf16)


PLAIN = machine()
BF16_CPU = machine(cpu=("avx2", "avx512_bf16"))
AMX_CPU = machine(cpu=("amx_bf16", "amx_tile"))
H100, A100, T4 = machine(nvidia(9, 0)), machine(nvidia(8, 0)), machine(nvidia(7, 5))
MUTE_NVIDIA = machine(Accelerator("cuda", "nvidia", "a card", 2**34))
AMD, OLD_AMD = machine(other("cuda", "amd", True)), machine(other("cuda", "amd", False))
NPU, MUTE_NPU = machine(other("npu", "huawei", True)), machine(other("npu", "huawei", None))
XPU = machine(other("xpu", "intel", True))


def policy(machine: Machine, **options: object) -> Precision:
    return PrecisionPolicy(**options).tunekit_precision(machine)


def refusal(machine: Machine, **options: object) -> str:
    with pytest.raises(PlanError) as caught:
        policy(machine, **options)
    (problem,) = caught.value.problems
    return str(problem)


@pytest.mark.parametrize(
    ("where", "device", "compute", "reason"),
    [
        (PLAIN, "cpu", "float32", "neither AVX512-BF16 nor AMX"),
        (machine(cpu=("avx512f", "avx512_vnni")), "cpu", "float32", "neither AVX512-BF16 nor AMX"),
        (BF16_CPU, "cpu", "bfloat16", "the CPU has AVX512-BF16"),
        (AMX_CPU, "cpu", "bfloat16", "the CPU has AMX"),
        (machine(cpu=("amx_bf16", "avx512_bf16")), "cpu", "bfloat16", "AMX and AVX512-BF16"),
        (H100, "cuda", "bfloat16", "compute capability 9.0"),
        (A100, "cuda", "bfloat16", "compute capability 8.0"),
        (T4, "cuda", "float16", "compute capability 7.5, and bf16 needs 8.0"),
        (machine(nvidia(12, 0)), "cuda", "bfloat16", "compute capability 12.0"),
        (MUTE_NVIDIA, "cuda", "float16", "does not report the compute capability"),
        (AMD, "cuda", "bfloat16", "reports bf16 support"),
        (OLD_AMD, "cuda", "float16", "reports no bf16 support"),
        (NPU, "npu", "bfloat16", "reports bf16 support"),
        (MUTE_NPU, "npu", "float16", "does not say whether it supports bf16"),
        (XPU, "xpu", "bfloat16", "reports bf16 support"),
        (machine(nvidia(7, 0), nvidia(9, 0)), "cuda", "float16", "compute capability 7.0"),
    ],
)
def test_each_machine_gets_the_format_it_is_good_at_and_the_reason(
    where: Machine, device: str, compute: str, reason: str
) -> None:
    found = policy(where)
    assert (found.device, found.weights, found.compute, found.trainable) == (device, compute, compute, "float32")
    assert reason in found.reason
    assert found.autocast == (compute != "float32")


@pytest.mark.parametrize("where", [PLAIN, BF16_CPU, H100, T4])
@pytest.mark.parametrize("compute", ["auto", "fp32"])
def test_mixed_precision_trains_in_fp32(where: Machine, compute: str) -> None:
    assert policy(where, compute=compute).trainable == "float32"


@pytest.mark.parametrize(
    ("where", "options", "expected"),
    [
        (H100, {"compute": "fp16"}, ("cuda", "float16", "float16", "float32")),
        (BF16_CPU, {"compute": "fp32"}, ("cpu", "float32", "float32", "float32")),
        (PLAIN, {"compute": "bf16"}, ("cpu", "bfloat16", "bfloat16", "float32")),
        (MUTE_NPU, {"compute": "bf16"}, ("npu", "bfloat16", "bfloat16", "float32")),
        (BF16_CPU, {"weights": "fp32"}, ("cpu", "float32", "bfloat16", "float32")),
        (T4, {"weights": "fp16"}, ("cuda", "float16", "float16", "float32")),
        (H100, {"device": "cpu"}, ("cpu", "float32", "float32", "float32")),
        (machine(nvidia(7, 5), cpu=("avx512_bf16",)), {"device": "cpu"}, ("cpu", "bfloat16", "bfloat16", "float32")),
        (H100, {"pure": True}, ("cuda", "bfloat16", "bfloat16", "bfloat16")),
        (PLAIN, {"pure": True}, ("cpu", "bfloat16", "bfloat16", "bfloat16")),
    ],
)
def test_an_option_overrules_the_automatic_choice(
    where: Machine, options: dict[str, object], expected: tuple[str, str, str, str]
) -> None:
    found = policy(where, **options)
    assert (found.device, found.weights, found.compute, found.trainable) == expected


@pytest.mark.parametrize(
    ("where", "options", "words"),
    [
        (H100, {"compute": "fp16"}, "fp16 products were asked for"),
        (H100, {"pure": True}, "trained parameters are bf16 too"),
        (PLAIN, {"pure": True}, "bf16 products for pure-half training"),
        (BF16_CPU, {"weights": "fp32"}, "frozen weights in fp32 were asked for"),
        (BF16_CPU, {}, "trained parameters stay fp32"),
    ],
)
def test_the_reason_names_what_was_asked_for(where: Machine, options: dict[str, object], words: str) -> None:
    assert words in policy(where, **options).reason


def test_pure_half_needs_no_autocast() -> None:
    assert not policy(H100, pure=True).autocast


def test_fp16_on_a_cpu_is_refused_because_it_overflows() -> None:
    assert refusal(BF16_CPU, compute="fp16") == (
        "use.precision.compute: is fp16, but fp16 training on a CPU overflows to NaN within a few steps; "
        "set use.precision.compute to bf16 or auto"
    )


def test_fp16_is_refused_on_the_cpu_of_a_machine_with_an_accelerator() -> None:
    assert "set use.precision.compute to fp32 or auto" in refusal(H100, compute="fp16", device="cpu")


def test_bf16_on_an_old_nvidia_card_is_refused() -> None:
    assert refusal(T4, compute="bf16") == (
        "use.precision.compute: is bf16, but card 7.5 has compute capability 7.5, and bf16 needs 8.0; "
        "set use.precision.compute to fp16 or auto"
    )


def test_bf16_is_refused_where_the_driver_says_there_is_none() -> None:
    assert "amd card reports no bf16 support" in refusal(OLD_AMD, compute="bf16")


def test_pure_half_is_refused_where_there_is_no_bf16() -> None:
    message = refusal(T4, pure=True)
    assert message.startswith("use.precision.pure: is true, but card 7.5")
    assert "leave use.precision.pure out" in message


def test_pure_half_with_another_format_is_a_contradiction() -> None:
    assert "use.precision.compute is fp32" in refusal(H100, pure=True, compute="fp32")


@pytest.mark.parametrize("options", [{"compute": "fp32", "weights": "bf16"}, {"compute": "fp16", "weights": "bf16"}])
def test_weights_in_another_half_than_the_products_are_refused(options: dict[str, object]) -> None:
    message = refusal(H100, **options)
    assert message.startswith(f"use.precision.weights: is bf16, but products run in {options['compute']}")


def test_pure_half_stores_all_weights_in_bf16() -> None:
    assert "pure-half training stores everything in bf16" in refusal(H100, pure=True, weights="fp32")


def test_fp16_on_a_cpu_does_overflow() -> None:
    """The reason for the refusal, seen: a product of ordinary activations leaves fp16's range."""
    import torch

    half = torch.full((1, 1024), 16.0, dtype=torch.float16)
    assert torch.isinf(half @ half.T)
    assert torch.isfinite(half.bfloat16() @ half.bfloat16().T)
