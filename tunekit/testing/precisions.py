"""What a precision policy has to satisfy: a reason, and nothing that the hardware cannot do."""

from __future__ import annotations

from typing import ClassVar

import pytest

from ..errors import PlanError
from ..values import BYTES, Accelerator, Machine, Precision
from .plugins import PluginSuite
from .runs import fake_machine

MACHINES: dict[str, Machine] = {
    "a plain CPU": fake_machine(),
    "a CPU with bf16": fake_machine(cpu_features=("avx512_bf16",)),
    "an NVIDIA card with bf16": fake_machine(Accelerator("cuda", "nvidia", "card", 24 << 30, (8, 0))),
    "an NVIDIA card without bf16": fake_machine(Accelerator("cuda", "nvidia", "card", 16 << 30, (7, 5))),
    "an AMD card with bf16": fake_machine(Accelerator("cuda", "amd", "card", 24 << 30, bf16=True)),
    "an NPU that says nothing": fake_machine(Accelerator("npu", "huawei", "card", 32 << 30)),
}


class PrecisionSuite(PluginSuite):
    """The policy is asked about several machines that are not there.

    `refuses` names those of `MACHINES` that it cannot serve with these options; it says so with a PlanError.
    """

    refuses: ClassVar[frozenset[str]] = frozenset()

    def policy(self, machine: Machine) -> Precision:
        """The policy for a machine."""
        precision: Precision = self.calls().own("tunekit_precision", machine=machine)
        return precision

    @pytest.mark.parametrize("name", MACHINES)
    def test_it_serves_the_machine_or_says_why_not(self, name: str) -> None:
        """Known dtypes, a device the machine has, and a reason that the plan can show."""
        machine = MACHINES[name]
        if name in self.refuses:
            with pytest.raises(PlanError):
                self.policy(machine)
            return
        precision = self.policy(machine)
        assert {precision.weights, precision.compute, precision.trainable} <= set(BYTES)
        assert precision.device in {"cpu", machine.device}
        assert precision.reason.strip()

    @pytest.mark.parametrize("name", MACHINES)
    def test_it_asks_for_nothing_the_machine_cannot_do(self, name: str) -> None:
        """fp16 overflows on a CPU, bf16 needs hardware where a card says it has none, fp16 cannot train parameters."""
        machine = MACHINES[name]
        if name in self.refuses:
            return
        precision = self.policy(machine)
        assert precision.trainable != "float16", "fp16 parameters lose small updates"
        assert not (precision.device == "cpu" and precision.compute == "float16")
        if name == "an NVIDIA card without bf16" and precision.device == "cuda":
            assert precision.compute != "bfloat16"

    @pytest.mark.parametrize("name", sorted(MACHINES))
    def test_the_same_machine_gives_the_same_policy(self, name: str) -> None:
        """The choice is a function of the machine and the options."""
        if name not in self.refuses:
            assert self.policy(MACHINES[name]) == self.policy(MACHINES[name])
