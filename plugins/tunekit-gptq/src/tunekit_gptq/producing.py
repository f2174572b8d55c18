"""Quantise a dense model by rows of tokens, with gptqmodel, in a process of its own.

gptqmodel sets environment variables, starts threads that stay, and draws on the screen, and the memory it has used is
best given back as a whole.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tunekit.errors import TunekitError

SHOWN = 12
"""Last lines of what gptqmodel has said that an error shows."""
LOG = "log.txt"
WORKERS = "GPTQMODEL_CPU_WORKERS"


@dataclass(frozen=True)
class Job:
    """What the other process does: quantise the model in `source` by `rows` and save it into `target`.

    `settings` are those of gptqmodel's QuantizeConfig, `backend` the kernel that packs, `dtype` that of the products.
    """

    source: str
    target: str
    settings: Mapping[str, Any]
    backend: str
    rows: list[list[int]]
    device: str
    dtype: str


def quantize(dense: Any, tokenizer: Any, job: Job) -> None:
    """Quantise a loaded dense model into the folder `job.target`, with its tokenizer; `job.source` is set here.

    TunekitError with the end of what gptqmodel has said where it fails.
    """
    from dataclasses import replace

    from tunekit_transformers.quiet import quiet

    target = Path(job.target).absolute()
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".dense-") as name:
        source = Path(name, "model")
        with quiet():
            dense.save_pretrained(str(source))
            tokenizer.save_pretrained(str(source))
        _carry_out(replace(job, source=str(source), target=str(target)), Path(name))
        _mend(source, target)


def _carry_out(job: Job, folder: Path) -> None:
    (folder / "job.json").write_text(json.dumps(asdict(job)), encoding="utf-8")
    # gptqmodel asks for two workers that load, whatever there is.
    environment = {WORKERS: "2", **os.environ}
    command = [sys.executable, "-m", "tunekit_gptq.worker", str(folder / "job.json")]
    with (folder / LOG).open("w") as log:
        # There, since it leaves logs where it is.
        done = subprocess.run(
            command, cwd=folder, env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL, check=False
        )
    if done.returncode:
        said = (folder / LOG).read_text(encoding="utf-8", errors="replace").splitlines()
        end = "\n".join(line for line in said if line.strip() and "░" not in line and "█" not in line)
        lines = end.splitlines()[-SHOWN:]
        raise TunekitError("gptqmodel could not quantise the model; it ended with:\n" + "\n".join(lines))


def _mend(source: Path, target: Path) -> None:
    """Put back what gptqmodel changes besides the weights: it makes answers sampled, and leaves its log."""
    for name in ("generation_config.json",):
        if (source / name).is_file():
            shutil.copy(source / name, target / name)
    for path in target.glob("quant_log*"):
        path.unlink()
