"""Loader and backend satisfy what every backend has to."""

from __future__ import annotations

from tunekit.testing import BackendSuite
from tunekit_transformers import Transformers


class TestBackend(BackendSuite):
    plugin = Transformers()


class TestBackendThatAnswersOneByOne(BackendSuite):
    plugin = Transformers(batch=1)
