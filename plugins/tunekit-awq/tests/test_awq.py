"""What AWQ is given to look at."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import torch

from tunekit_awq import Awq


def test_rows_that_differ_in_length_are_all_looked_at() -> None:
    """gptqmodel keeps the last of such rows alone, so they are laid end to end and cut into blocks of one length."""
    rows = [list(range(start, start + length)) for start, length in ((100, 12), (200, 31), (300, 10), (400, 17))]
    tokens = [token for row in rows for token in row]
    dense = SimpleNamespace(dtype=torch.float16)
    blocks = Awq(sample_tokens=16).job(dense, rows, Path(), "cpu").rows
    assert [len(block) for block in blocks] == [16] * 4
    assert [token for block in blocks for token in block] == tokens[:64]
    assert Awq(sample_tokens=512).job(dense, rows, Path(), "cpu").rows == [tokens]
