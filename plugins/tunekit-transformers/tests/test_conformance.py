"""Loader and backend satisfy what every backend has to."""

from __future__ import annotations

from tunekit_transformers import Transformers

from tunekit.testing import BackendSuite


class TestBackend(BackendSuite):
    plugin = Transformers()


class TestBackendThatAnswersOneByOne(BackendSuite):
    plugin = Transformers(batch=1)
