"""Every start satisfies what an adapter has to, on top of LoRA."""

from __future__ import annotations

import pytest

from tunekit.testing import AdapterSuite
from tunekit_lora import Lora
from tunekit_lora_inits import Corda, Eva, Gaussian, Loraga, Olora, Orthogonal


class TestGaussian(AdapterSuite):
    plugin = Gaussian()
    companions = (Lora(rank=4),)


class TestOrthogonal(AdapterSuite):
    plugin = Orthogonal()
    companions = (Lora(rank=4),)


class TestEva(AdapterSuite):
    plugin = Eva(items=8)
    companions = (Lora(rank=4),)


class TestOlora(AdapterSuite):
    plugin = Olora()
    companions = (Lora(rank=4),)

    @pytest.mark.xfail(reason="16 bits cannot hold the rest of the weights, so they are refused", strict=True)
    def test_what_trains_is_stored_in_the_dtype_of_the_policy(self):
        super().test_what_trains_is_stored_in_the_dtype_of_the_policy()


class TestCorda(TestOlora):
    plugin = Corda(items=8)
    companions = (Lora(rank=4, targets=["q_proj", "up_proj"]),)


class TestLoraga(TestOlora):
    plugin = Loraga(items=8)
    companions = (Lora(rank=4),)
