"""Schedule-free AdamW satisfies what every optimiser has to."""

from __future__ import annotations

from tunekit.testing import OptimizerSuite
from tunekit_schedule_free import ScheduleFree
from tunekit_sft import Sft


class TestScheduleFree(OptimizerSuite):
    plugin = ScheduleFree()
    companions = (Sft(),)  # whose hooks it answers
