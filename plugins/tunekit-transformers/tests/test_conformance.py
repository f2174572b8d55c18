"""Loader and backend satisfy what every loader and every backend has to."""

from __future__ import annotations

from tunekit.testing import BackendSuite, LoaderSuite
from tunekit_transformers import Transformers


class TestLoader(LoaderSuite):
    plugin = Transformers()


class TestBackend(BackendSuite):
    plugin = Transformers()


class TestBackendThatAnswersOneByOne(BackendSuite):
    plugin = Transformers(batch=1)
