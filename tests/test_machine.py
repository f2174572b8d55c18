"""Probing the machine without torch."""

from __future__ import annotations

import os
import stat

from tunekit import machine
from tunekit.values import Accelerator


def test_this_machine_has_cores_and_memory():
    probed = machine.probe()
    assert probed.cores == len(os.sched_getaffinity(0))
    assert probed.memory_bytes > 2**28
    assert probed.processor


def fake_driver(folder, output, code=0):
    path = folder / "nvidia-smi"
    path.write_text(f"#!/bin/sh\nprintf '{output}'\nexit {code}\n")
    path.chmod(path.stat().st_mode | stat.S_IEXEC)


def test_nvidia_cards_are_asked_of_the_driver(tmp_path, monkeypatch):
    fake_driver(tmp_path, "NVIDIA H100, 81559, 9.0\\nTesla T4, 15360, 7.5\\n")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    probed = machine.probe()
    assert probed.device == "cuda"
    assert probed.accelerators[0] == Accelerator("cuda", "nvidia", "NVIDIA H100", 81559 << 20, (9, 0))
    assert probed.accelerators[1].capability == (7, 5)


def test_hidden_cards_and_failing_drivers_leave_the_cpu(tmp_path, monkeypatch):
    fake_driver(tmp_path, "NVIDIA H100, 81559, 9.0\\n")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert machine.probe().device == "cpu"
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    fake_driver(tmp_path, "no driver", code=9)
    assert machine.probe().device == "cpu"
