"""Cross-entropy satisfies what every objective has to."""

from __future__ import annotations

from tunekit_sft.objective import TokenCrossEntropy
from tunekit_train import Objective
from tunekit_train.testing import ObjectiveSuite


class TestTokenCrossEntropy(ObjectiveSuite):
    def objective(self) -> Objective:
        return TokenCrossEntropy()
