"""Probe the machine without torch: processor, memory, accelerators."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path

from .values import Accelerator, Machine

_QUERY = ("--query-gpu=name,memory.total,compute_cap", "--format=csv,noheader,nounits")


def probe() -> Machine:
    """Look at the machine this process runs on. Takes milliseconds, a little more where a driver has to be asked."""
    processor, features = _processor()
    return Machine(
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        processor=processor,
        cores=_cores(),
        memory_bytes=_memory(),
        cpu_features=features,
        accelerators=_nvidia() or _amd() or _ascend() or _apple(),
    )


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _processor() -> tuple[str, frozenset[str]]:
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return platform.processor() or platform.machine(), frozenset()
    lines = (line.partition(":") for line in reversed(cpuinfo.read_text().splitlines()))
    fields = {name.strip(): value.strip() for name, _, value in lines}
    flags = fields.get("flags", fields.get("Features", ""))
    return fields.get("model name", platform.machine()), frozenset(flags.split())


def _memory() -> int:
    """Physical memory, or the container's limit where that is lower."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.exists() else "max"
    return min(total, int(text)) if text.isdigit() else total


def _nvidia() -> tuple[Accelerator, ...]:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible in ("", "-1") or shutil.which("nvidia-smi") is None:
        return ()
    chosen = ("-i", visible) if visible else ()
    done = subprocess.run(["nvidia-smi", *_QUERY, *chosen], capture_output=True, text=True, timeout=20)
    if done.returncode != 0:
        return ()
    return tuple(_nvidia_card(line) for line in done.stdout.splitlines() if line.count(",") == 2)


def _nvidia_card(line: str) -> Accelerator:
    name, mebibytes, capability = (part.strip() for part in line.split(","))
    major, _, minor = capability.partition(".")
    return Accelerator("cuda", "nvidia", name, int(mebibytes) << 20, (int(major), int(minor or 0)))


def _amd() -> tuple[Accelerator, ...]:
    """AMD cards as the kernel driver lists them; torch calls them `cuda`. All that ROCm supports today have bf16."""
    found = []
    for node in sorted(Path("/sys/class/kfd/kfd/topology/nodes").glob("*/properties")):
        fields = dict(line.split(" ", 1) for line in node.read_text().splitlines() if " " in line)
        if int(fields.get("simd_count", "0")) > 0:
            version = int(fields.get("gfx_target_version", "0"))
            memory = sum(_bank(bank) for bank in node.parent.glob("mem_banks/*/properties"))
            found.append(Accelerator("cuda", "amd", f"gfx{version}", memory, bf16=version >= 90008))
    return tuple(found)


def _bank(properties: Path) -> int:
    fields = dict(line.split(" ", 1) for line in properties.read_text().splitlines() if " " in line)
    return int(fields.get("size_in_bytes", "0"))


def _ascend() -> tuple[Accelerator, ...]:
    """Huawei NPUs; the driver's device files tell how many. Ascend 910B and later have bf16, so it is asked at load."""
    return tuple(Accelerator("npu", "huawei", device.name, 0) for device in sorted(Path("/dev").glob("davinci[0-9]*")))


def _apple() -> tuple[Accelerator, ...]:
    if platform.system() == "Darwin" and platform.machine() == "arm64":
        return (Accelerator("mps", "apple", platform.processor(), _memory()),)
    return ()
