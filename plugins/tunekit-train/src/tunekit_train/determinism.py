"""Deterministic algorithms for the duration of a stage."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

CUBLAS = "CUBLAS_WORKSPACE_CONFIG"


@contextmanager
def deterministic(asked: bool) -> Iterator[None]:
    """Where asked for, let PyTorch use deterministic algorithms only, and put everything back afterwards.

    An operation that has none raises RuntimeError. Where the environment says nothing, cuBLAS gets the workspace that
    makes its products repeatable; it must not have been used on another stream before.
    Source: PyTorch's notes on reproducibility.
    """
    if not asked:
        yield
        return
    cudnn = torch.backends.cudnn
    with ExitStack() as stack:
        warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
        before = torch.are_deterministic_algorithms_enabled()
        stack.callback(torch.use_deterministic_algorithms, before, warn_only=warn_only)
        for name in ("deterministic", "benchmark"):
            stack.callback(setattr, cudnn, name, getattr(cudnn, name))
        if CUBLAS not in os.environ:
            os.environ[CUBLAS] = ":4096:8"
            stack.callback(os.environ.pop, CUBLAS, None)
        torch.use_deterministic_algorithms(True)
        cudnn.deterministic, cudnn.benchmark = True, False
        yield
