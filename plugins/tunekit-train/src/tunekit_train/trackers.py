"""The trackers that transformers feeds, and what each needs; known without importing transformers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib.util import find_spec

from tunekit.errors import Problem, nearest

TRACKERS: dict[str, tuple[tuple[str, ...], str]] = {
    "azure_ml": (("azureml",), "azureml-core"),
    "clearml": (("clearml",), "clearml"),
    "codecarbon": (("codecarbon",), "codecarbon"),
    "comet_ml": (("comet_ml",), "comet-ml"),
    "dagshub": (("dagshub", "mlflow"), "dagshub mlflow-skinny"),
    "dvclive": (("dvclive",), "dvclive"),
    "flyte": (("flytekit",), "flytekit"),
    "kubeflow": ((), ""),
    "mlflow": (("mlflow",), "mlflow-skinny"),
    "neptune": (("neptune",), "neptune"),
    "swanlab": (("swanlab",), "swanlab"),
    "tensorboard": (("tensorboard",), "tensorboard"),
    "trackio": (("trackio",), "trackio"),
    "wandb": (("wandb",), "wandb"),
}
"""Each tracker's import packages, and what installs them. Kubeflow speaks to a server alone."""


def tracker_problems(names: tuple[str, ...], key: str) -> Iterator[Problem]:
    """Trackers that are unknown, or whose package is not installed."""
    where = f"{key}.log.trackers"
    for name in names:
        if name not in TRACKERS:
            close = nearest(name, TRACKERS)
            remedy = f"did you mean {close}?" if close else f"name one of {', '.join(TRACKERS)}"
            yield Problem(where, f"{name} is no tracker that transformers feeds", remedy)
            continue
        packages, install = _needs(name)
        missing = [package for package in packages if find_spec(package) is None]
        if missing:
            yield Problem(where, f"{name} needs {' and '.join(missing)}, not installed", f"`pip install {install}`")
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield Problem(where, f"names {name} twice", "name it once")


def _needs(name: str) -> tuple[tuple[str, ...], str]:
    """What a tracker needs here: swanlab's own page on this machine is a package of its own."""
    if name == "swanlab" and os.environ.get("SWANLAB_MODE") == "local":
        return ("swanlab", "swanboard"), "'swanlab[dashboard]'"
    return TRACKERS[name]
