"""Options that go by evaluations, and whether they fit together; imports no torch."""

from __future__ import annotations

from collections.abc import Iterator

from tunekit.errors import Problem

from .config import TrainConfig


def goes_by_metric(config: TrainConfig) -> bool:
    """Whether something goes by a metric of the evaluations."""
    by_plateau = config.schedule.shape == "reduce_lr_on_plateau"
    return config.checkpoint.best or config.early_stopping.patience is not None or by_plateau


def selection_problems(config: TrainConfig, key: str) -> Iterator[Problem]:
    """Options that go by evaluations, without evaluations, and the other way round."""
    evaluate, stopping = config.evaluate, config.early_stopping
    for option, is_set in (("checkpoint.best", config.checkpoint.best), ("early_stopping.patience", stopping.patience)):
        if is_set and not evaluate.share:
            yield Problem(
                f"{key}.{option}", "goes by evaluations, and nothing is held out", f"set {key}.evaluate.share"
            )
    if not evaluate.share:
        for option in sorted(evaluate.model_fields_set - {"share"}):
            yield Problem(f"{key}.evaluate.{option}", "is set, and nothing is held out", f"set {key}.evaluate.share")
        return
    if evaluate.every is not None and evaluate.every_ratio is not None:
        yield Problem(f"{key}.evaluate.every_ratio", "is set besides every", "leave one of the two out")
    if stopping.improvement and stopping.patience is None:
        yield Problem(f"{key}.early_stopping.improvement", "is set without patience", "set patience, or leave it out")
    yield from _metric_problems(config, key)


def _metric_problems(config: TrainConfig, key: str) -> Iterator[Problem]:
    evaluate = config.evaluate
    if not goes_by_metric(config):
        for option in sorted(evaluate.model_fields_set & {"metric", "higher_is_better"}):
            remedy = "set checkpoint.best or early_stopping.patience, or leave it out"
            yield Problem(f"{key}.evaluate.{option}", "is set, and nothing goes by it", remedy)
    elif evaluate.metric != "loss" and evaluate.higher_is_better is None:
        what = f"is not set, and whether a higher {evaluate.metric} is better is not known"
        yield Problem(f"{key}.evaluate.higher_is_better", what, "set it to true or false")
    elif evaluate.metric == "loss" and evaluate.higher_is_better:
        yield Problem(f"{key}.evaluate.higher_is_better", "is true, and the loss is to fall", "leave it out")
