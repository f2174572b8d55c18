"""What cannot be done with TRL's trainers, found at plan time: no option is ignored."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from tunekit.calls import implements
from tunekit.errors import Problem, nearest
from tunekit.values import Plan, StagePlan
from tunekit_train import TrainConfig
from tunekit_train.checks import option_problems, several_cards

from .installed import installed_options, misfit
from .options import CLIPPED, GrpoConfig, OnlineConfig

SHARED = frozenset(
    {
        "epochs",
        "steps",
        "seed",
        "learning_rate",
        "weight_decay",
        "max_grad_norm",
        "batch.rows",
        "batch.accumulation",
        "batch.max_length",
        "batch.too_long",
        "batch.padding",
        "checkpoint.every",
        "checkpoint.keep",
        "compute.deterministic",
        "evaluate.at_start",
        "evaluate.every",
        "evaluate.every_ratio",
        "evaluate.share",
        "log.every",
        "log.trackers",
    }
)
"""Options of every stage that mean here what they mean elsewhere, besides the schedule. Any other is refused."""

OURS: Mapping[str, str] = {
    "learning_rate": "write learning_rate as an option of the stage",
    "model_init_kwargs": "the plugin that loads the model says how",
    "trust_remote_code": "the plugin that loads the model says it",
    "remove_unused_columns": "rewards see all columns of a row",
    "shuffle_dataset": "use data.shuffle",
    "generation_batch_size": "use steps_per_generation",
    "chat_template_kwargs": "the prompts are written before TRL sees them",
    "max_tool_calling_iterations": "these stages offer the model no tools",
    "log_completions_hub_repo": "it would publish the answers",
    "log_multimodal": "these stages know texts only",
    "log_unique_prompts": "it acts on what trackers are shown, see log.trackers",
    "use_transformers_continuous_batching": "it casts the model's weights for good",
    "transformers_continuous_batching_config": "it casts the model's weights for good",
    "use_transformers_paged": "it casts the model's weights for good",
    "vllm_importance_sampling_cap": "TRL calls it vllm_importance_sampling_clip_max now",
}
"""Options of TRL that these stages decide, each with what to do instead."""


def problems(plugin: Any, plan: Plan) -> Iterator[Problem]:
    """Everything that is wrong with the stages of this plugin."""
    for stage in plan.stages:
        if stage.plugin.plugin is plugin:
            config: OnlineConfig = plugin.config
            yield from several_cards(plan, plan.machine, stage.key)
            yield from option_problems(config, stage.key)
            yield from _shared(config, stage.key)
            yield from _measured(plan, stage)
            yield from _data(config, stage)
            yield from _processes(plan, stage.key)
            yield from _groups(config, stage.key)
            yield from _rewards(config, plan, stage)
            yield from _losses(config, stage.key)
            yield from _further(plugin, stage.key)
            yield from _synchronised(config, plan, stage.key)
            yield from _reference(config, plan, stage.key)


def _shared(config: OnlineConfig, key: str) -> Iterator[Problem]:
    """Options of our own engine, which does not train here."""
    own = type(config).model_fields.keys() - TrainConfig.model_fields.keys()
    for path, value, usual in _values(config):
        shared = path in SHARED or path.startswith("schedule.") or path.partition(".")[0] in own
        if not shared and value != usual:
            what = f"is {value!r}, which tunekit's own engine does, and this stage is trained by TRL's"
            yield Problem(f"{key}.{path}", what, "leave it out")
    if config.batch.padding == "never":
        yield Problem(f"{key}.batch.padding", "is never, and TRL pads its batches", "leave it out")
    if config.schedule.shape == "reduce_lr_on_plateau":
        what = "is reduce_lr_on_plateau, and TRL's evaluations give it nothing but the loss to go by"
        yield Problem(f"{key}.schedule.shape", what, "use another shape")
    if config.batch.too_long == "split":
        yield Problem(f"{key}.batch.too_long", "is split, and half a prompt is none", "use cut or drop")


def _values(config: BaseModel, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Every option by its path, with its value and its default."""
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        if isinstance(value, BaseModel):
            yield from _values(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value, field.get_default(call_default_factory=True, validated_data={})


def _measured(plan: Plan, stage: StagePlan) -> Iterator[Problem]:
    """Metrics and objectives of plugins know the batches of our own engine."""
    alone = all(type(each.plugin.plugin).__module__ == __package__ for each in plan.stages)
    for planned in (*stage.uses, *(planned for planned in plan.plugins if alone and planned.stage is None)):
        if implements(planned.plugin, "tunekit_train_metrics"):
            what = f"{planned.name} measures batches of tunekit's own engine, and this stage is trained by TRL's"
            yield Problem(planned.key, what, "name it in a stage of that engine")
        if implements(planned.plugin, "tunekit_train_objective"):
            what = f"{planned.name} changes what tunekit's own engine trains for, and this stage is trained by TRL's"
            yield Problem(planned.key, what, "name it in a stage of that engine")


def _data(config: OnlineConfig, stage: StagePlan) -> Iterator[Problem]:
    if stage.mixing.streaming:
        yield Problem(f"{stage.key}.data", "is streamed, and prompts are drawn from all of them", "stream nothing")


def _processes(plan: Plan, key: str) -> Iterator[Problem]:
    """Each of several would go through all prompts alone."""
    if plan.provides("processes"):
        what = "is trained by TRL in one process, and the run is carried out by several"
        yield Problem(key, what, "train it in a run of its own, in one process")


def _groups(config: Any, key: str) -> Iterator[Problem]:
    """Generation batches hold whole groups of answers to one prompt."""
    rows, group = config.batch.rows, config.num_generations
    if (rows * config.micro_batches) % group:
        made = f"{rows} rows x {config.micro_batches} micro-batches are generated at once"
        what = f"is {group}, and {made}: no whole number of groups"
        yield Problem(f"{key}.num_generations", what, "make rows x micro-batches a multiple of it")
    held_out = config.num_generations_eval or group
    if config.evaluate.share and rows % held_out:
        where = "num_generations_eval" if config.num_generations_eval else "num_generations"
        what = f"is {held_out}, and evaluations take {rows} rows at a time: no whole number of groups"
        yield Problem(f"{key}.{where}", what, "make batch.rows a multiple of it, or set num_generations_eval")


def _rewards(config: OnlineConfig, plan: Plan, stage: StagePlan) -> Iterator[Problem]:
    """Something has to value the answers."""
    names = [
        planned.name
        for planned in plan.plugins
        if planned.stage in (None, stage.index) and implements(planned.plugin, "tunekit_reward")
    ]
    if not names:
        what = "learns from rewards, and no plugin of the run values answers"
        yield Problem(
            stage.key, what, "name one under use, such as reward_match, or write one: `use: {./my_reward.py:Mine: {}}`"
        )
    for name in config.reward_weights.keys() - set(names):
        close = nearest(name, names)
        remedy = f"did you mean {close}?" if close else f"rewards here are {', '.join(names) or 'none'}"
        yield Problem(f"{stage.key}.reward_weights.{name}", "names no plugin that values answers", remedy)


def _losses(config: OnlineConfig, key: str) -> Iterator[Problem]:
    """Options that the loss type makes meaningless."""
    if not isinstance(config, GrpoConfig):
        if (bounds := getattr(config, "reward_clip_range", None)) and bounds[0] >= bounds[1]:
            yield Problem(f"{key}.reward_clip_range", f"is {list(bounds)}, an empty range", "write [lowest, highest]")
        return
    loss, given = config.loss_type, config.model_fields_set
    meant = {"epsilon": CLIPPED, "delta": CLIPPED, "epsilon_high": (*CLIPPED, "cispo")}
    for name, losses in meant.items():
        if name in given and getattr(config, name) is not None and loss not in losses:
            yield Problem(f"{key}.{name}", f"does nothing to the loss {loss}", "leave it out, or use another loss_type")
    if loss == "luspo" and config.importance_sampling_level != "sequence":
        yield Problem(f"{key}.importance_sampling_level", "is token, and luspo is a loss of whole answers",
                      "use sequence")  # fmt: skip
    if loss == "vespo" and config.importance_sampling_level != "token":
        yield Problem(f"{key}.importance_sampling_level", "is sequence, and vespo has a weight of its own for that",
                      "use token")  # fmt: skip


def _further(plugin: Any, key: str) -> Iterator[Problem]:
    """Options that are passed on, by the config class of the installed TRL."""
    known = installed_options(*plugin.source)
    own = type(plugin.config).model_fields
    for name, value in plugin.config.trl.items():
        where = f"{key}.trl.{name}"
        if name not in known:
            close = nearest(name, known.keys() - OURS.keys())
            remedy = f"did you mean {close}?" if close else "leave it out"
            yield Problem(where, f"is no option of the installed TRL's {plugin.source[1]}", remedy)
        elif name in OURS or name in own:
            yield Problem(where, "is not passed on", OURS.get(name) or f"write {name} as an option of the stage")
        elif wrong := misfit(value, known[name]):
            yield Problem(where, f"is {value!r}: {wrong}", "give a value of the right type")
        elif name == "generation_kwargs":
            yield from _generation(value or {}, where)


def _synchronised(config: Any, plan: Plan, key: str) -> Iterator[Problem]:
    """TRL moves a reference only where there is a whole model of it."""
    if not config.trl.get("sync_ref_model"):
        return
    where, adapter = f"{key}.trl.sync_ref_model", "tunekit_attach_adapter"
    if not config.beta:
        yield Problem(where, "moves the reference, and beta is 0: there is none", "set beta, or leave it out")
    if any(implements(planned.plugin, adapter) and "adapter" in planned.plugin.provides for planned in plan.plugins):
        yield Problem(where, "moves a whole model, and an adapter is trained", "leave it out")


def _reference(config: Any, plan: Plan, key: str) -> Iterator[Problem]:
    """TRL makes the reference by attaching the adapter once more, which starts it anew and changes the base again."""
    changing = [planned.name for planned in plan.plugins if "base.changed" in planned.plugin.provides]
    if config.beta and changing:
        what = f"is {config.beta:g}, and TRL makes the reference it asks for by a second start of {changing[0]}"
        yield Problem(f"{key}.beta", what, f"set it to 0, or leave {changing[0]} out")
    left = next(_left_out(plan), None)
    if config.beta and left is not None and plan.provides("adapter"):
        what = f"is {config.beta:g}, and TRL's copy of the adapter leaves out what {left} trains"
        yield Problem(f"{key}.beta", what, f"set it to 0, or train nothing of this kind with {left}")


def _left_out(plan: Plan) -> Iterator[str]:
    """Plugins that train what PEFT does not put into a module named after the adapter, by which TRL knows it."""
    for planned in plan.plugins:
        provided, config = planned.plugin.provides, planned.plugin.config
        rows = ("vocabulary" in provided and config.train) or ("adapter.lora" in provided and config.tokens)
        if rows or "adapter.parameters" in provided:
            yield planned.name


def _generation(settings: Mapping[str, Any], where: str) -> Iterator[Problem]:
    """Settings that would go before options of the stage."""
    for name in settings:
        if name in OnlineConfig.model_fields or name in ("max_new_tokens", "max_length", "do_sample"):
            yield Problem(f"{where}.{name}", "goes before what the stage's own options say", "use these")
