"""The process in which gptqmodel quantises: `python -m tunekit_gptq.worker JOB`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from .producing import Job


def work(job: Job) -> None:
    """Carry out a job."""
    import torch
    from gptqmodel import BACKEND, GPTQModel, QuantizeConfig  # type: ignore[import-not-found, import-untyped]

    config = QuantizeConfig(**job.settings, offload_to_disk=False)
    model = GPTQModel.load(job.source, config, device=job.device, dtype=getattr(torch, job.dtype))
    rows = [{"input_ids": row, "attention_mask": [1] * len(row)} for row in job.rows]
    # One row at a time: padding would count as data.
    model.quantize(rows, batch_size=1, backend=BACKEND(job.backend), calibration_data_min_length=1)
    model.save(job.target)


if __name__ == "__main__":
    work(Job(**json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))))
