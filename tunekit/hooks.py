"""Every hook of tunekit on one page, in the order a run calls them.

Three kinds. *own*: exactly one plugin answers, chosen by the planner. *chain*: all planned plugins answer in plan
order, each given what the one before returned. *watch*: observers, whose failure becomes a warning in the record.

Nobody calls `pm.hook.x()`: `tunekit.calls` calls one hook on one plugin at a time. An implementation takes the
arguments it needs, by name, and leaves the others out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import pluggy

from .errors import Problem
from .values import (
    Backend,
    BadRow,
    Context,
    Estimate,
    EstimateRequest,
    Event,
    Example,
    Examples,
    Exported,
    ExportRequest,
    Launch,
    LoadRequest,
    Machine,
    ModelBundle,
    OptimizerSettings,
    Plan,
    Precision,
    Prepared,
    Processes,
    Prompt,
    Quantization,
    Report,
    Rows,
    Sample,
    Source,
    StageContext,
    StageResult,
    ToolFormat,
)

if TYPE_CHECKING:
    import typer

Kind = Literal["own", "chain", "watch"]
F = TypeVar("F", bound=Callable[..., Any])

hookimpl = pluggy.HookimplMarker("tunekit")
_mark = pluggy.HookspecMarker("tunekit")


def hookspec(kind: Kind, optional: bool = False) -> Callable[[F], F]:
    """Mark a method as a hook spec of this kind. `optional`: a run may have no plugin that answers."""

    def decorate(function: F) -> F:
        function.tunekit_kind = kind  # type: ignore[attr-defined]
        function.tunekit_optional = optional or kind != "own"  # type: ignore[attr-defined]
        return _mark(function)

    return decorate


class HookSpecs:
    """The hooks of the core. Plugins may publish more through `Plugin.hookspecs`."""

    @hookspec("chain")
    def tunekit_check(self, plan: Plan, machine: Machine) -> Iterable[Problem]:
        """Find what cannot work for reasons of values or hardware.

        Kind: chain; the problems of all plugins are gathered and said at once.
        When: at plan time, after every plugin is configured and before anything is imported or loaded. Where a run that
        has been trained is opened, of the plugins that act then, with a plan that has no stages.
        Changes: nothing. No torch, no network.
        Returns: the problems found; nothing where all is well.
        Raises: nothing on purpose; an exception stops the plan and names the plugin.
        Example: bitsandbytes refuses 8-bit on a device it has no kernels for.
        """
        raise AssertionError

    @hookspec("own")
    def tunekit_precision(self, machine: Machine) -> Precision:
        """Choose the dtype policy for weights, products and trained parameters, and say why.

        Kind: own.
        When: at plan time; the plan shows the reason.
        Changes: nothing. No torch.
        Returns: the policy.
        Raises: PlanError where the recipe asks for what the hardware cannot do.
        Example: bf16 autocast on a CPU with AVX512-BF16, fp32 on one without.
        """
        raise AssertionError

    @hookspec("own", optional=True)
    def tunekit_launch(self, plan: Plan, launch: Launch) -> Processes | None:
        """Bring the run to the processes that carry it out, or this process to the others of its run.

        Kind: own, optional; without one, the run happens in the process that was asked for it.
        When: once the run folder is there and before data is read; in each of the processes as well, where
            `launch.rank` says which it is.
        Changes: starts processes, and waits for them; or joins those that this one was started with.
        Returns: this process's place among those that carry out the run; None where others have carried it out to its
            end.
        Raises: what the process that failed first has raised; InterruptedRunError after Ctrl-C.
        Example: `ddp` starts a process for each accelerator; started by torchrun, it joins the others.
        """
        raise AssertionError

    @hookspec("own")
    def tunekit_read_data(self, source: Source) -> Rows:
        """Open a data source for reading.

        Kind: own.
        When: for each source, at plan time for a sample and at run time for all.
        Changes: nothing.
        Returns: the rows, their columns and a fingerprint.
        Raises: DataError naming the file, and the line where one is malformed.
        Example: JSON, JSONL, CSV, Parquet, a folder of these, a hub data set, rows given in Python.
        """
        raise AssertionError

    @hookspec("own")
    def tunekit_format_data(self, rows: Rows) -> Iterator[Example | BadRow] | None:
        """Turn rows of one shape into canonical examples, one result per row.

        Kind: own per source: the format named in the recipe, else the one that recognises the columns.
        When: for each source, at plan time for a sample and at run time for all.
        Changes: nothing.
        Returns: for each row in order an Example, or a BadRow with a reason and a remedy; None where the columns are
            not of this shape. It decides by the columns, and by the first row where those are ambiguous.
        Raises: nothing for a bad row; rows are never left out silently.
        Example: alpaca rows (`instruction, input, output`) become conversations.
        """
        raise AssertionError

    @hookspec("own")
    def tunekit_load_tokenizer(self, request: LoadRequest, context: Context) -> Any:
        """Load the tokenizer of the model, with its chat template.

        Kind: own.
        When: before any weight is loaded, at plan time as well: data is prepared with it.
        Changes: caches on disk at most.
        Returns: a transformers tokenizer, a fresh object each time.
        Raises: ModelNotFoundError naming what was looked for and where.
        Example: transformers' AutoTokenizer.
        """
        raise AssertionError

    @hookspec("chain")
    def tunekit_patch_tokenizer(self, tokenizer: Any, context: Context) -> Report:
        """Change the tokenizer in place.

        Kind: chain, in place: each plugin sees the tokenizer as the one before left it.
        When: after it is loaded, at plan time as well.
        Changes: this tokenizer object, never a library class.
        Returns: a report with a one-line summary.
        Raises: TunekitError naming the option that does not fit this tokenizer.
        Example: a chat template for a base model.
        """
        raise AssertionError

    @hookspec("own", optional=True)
    def tunekit_tool_format(self) -> ToolFormat:
        """Say how tools are written where the chat template cannot.

        Kind: own, optional.
        When: while data with tools is prepared.
        Changes: nothing.
        Returns: the format.
        Raises: nothing on purpose.
        Example: ReAct, which any chat template can carry.
        """
        raise AssertionError

    @hookspec("own")
    def tunekit_prepare_data(self, data: Examples, tokenizer: Any, context: StageContext) -> Prepared:
        """Turn the examples of a stage into what it learns from: token sequences with a loss weight on each token.

        Kind: own per stage: the plugin the stage is named after.
        When: before any weight is loaded, for all rows; at plan time for a sample; for `tunekit data`.
        Changes: `data.account`, where every row that cannot be trained on is noted; a cache on disk.
        Returns: the items, in the order of the data.
        Raises: nothing for a bad row: it is left out through the account, and the run stops with all of them at once.
        Example: conversations rendered by the model's chat template, answers weighted 1 and prompts 0.
        """
        raise AssertionError

    @hookspec("chain")
    def tunekit_estimate(self, request: EstimateRequest, estimate: Estimate) -> Estimate:
        """Add to the estimate of parameters, data and memory.

        Kind: chain over `estimate`.
        When: when the plan is shown in full; not before a run that skips it. Export targets are asked as well, each by
            itself, with the model as it is loaded and nothing on it; of what they return, only the notes count.
        Changes: nothing. May import torch and read the tokenizer and shapes; never weights, never the network for a
            local model.
        Returns: the estimate with this plugin's part added.
        Raises: ModelNotFoundError; an exception stops the plan and names the plugin.
        Example: LoRA wraps the skeleton and counts what trains.
        """
        raise AssertionError

    @hookspec("own", optional=True)
    def tunekit_quantize(self, request: LoadRequest) -> Quantization:
        """Say how the weights are to be stored and what that allows.

        Kind: own, optional.
        When: before loading.
        Changes: nothing yet: the loader passes the arguments on, or swaps modules after loading.
        Returns: the quantisation.
        Raises: TunekitError where the method cannot be used with this request.
        Example: NF4 with double quantisation through bitsandbytes.
        """
        raise AssertionError

    @hookspec("chain")
    def tunekit_before_load(self, request: LoadRequest, plan: Plan, context: Context) -> LoadRequest:
        """Change how the model is loaded, or which.

        Kind: chain over `request`; `plan` is what it is loaded for.
        When: after quantisation is decided, before loading.
        Changes: caches on disk at most.
        Returns: the request, usually `request.with_arguments(...)` or `request.configured(...)`; with another `model`
            where one was made of it.
        Raises: TunekitError where two plugins ask for different things.
        Example: an attention kernel, a RoPE scaling, a config override; a copy of the model that GPTQ has quantised.
        """
        raise AssertionError

    @hookspec("own")
    def tunekit_load_model(self, request: LoadRequest, context: Context) -> ModelBundle:
        """Load the model.

        Kind: own.
        When: once per run, and once when a finished run is opened again.
        Changes: caches on disk at most.
        Returns: the bundle, on the device of `request.precision`, in its `weights` dtype, with `request.tokenizer`.
        Raises: ModelNotFoundError naming what was looked for and where.
        Example: transformers' Auto classes.
        """
        raise AssertionError

    @hookspec("chain")
    def tunekit_patch(self, bundle: ModelBundle) -> Report:
        """Change the loaded model in place.

        Kind: chain, in place: each patch sees the model as the one before left it.
        When: after loading, before the adapter.
        Changes: this model instance, never a library class.
        Returns: a report with a one-line summary and an undo.
        Raises: TunekitError where the model has nothing to patch.
        Example: NEFTune adds noise to the embeddings while training.
        """
        raise AssertionError

    @hookspec("own", optional=True)
    def tunekit_attach_adapter(self, bundle: ModelBundle, context: Context) -> ModelBundle:
        """Decide which parameters train. No plugin named: all of them.

        Kind: own, optional.
        When: after patches; with `bundle.saved_adapter` set when a trained adapter is to be loaded instead. Once for
            each adapter that the stages name, under `bundle.adapter_name`: a plugin that provides `adapter.named` may
            be given a model that carries another already, and puts this one beside it.
        Changes: the model; what it returns may wrap it.
        Returns: the bundle with the adapter on it; a fresh adapter leaves the model's outputs as they were, a saved
            one is ready to be trained on by a next stage.
        Raises: TunekitError naming the option and the value that do not fit the model.
        Example: LoRA through PEFT.
        """
        raise AssertionError

    @hookspec("own")
    def tunekit_optimizer(
        self,
        bundle: ModelBundle,
        named_parameters: list[tuple[str, Any]],
        settings: OptimizerSettings,
        context: StageContext,
    ) -> Any:
        """Make the optimiser of a stage.

        Kind: own; a stage may name its own.
        When: at the start of each stage.
        Changes: nothing.
        Returns: a `torch.optim.Optimizer` over the named parameters, its state made of tensors and plain numbers only.
        Raises: TunekitError where it cannot optimise these parameters.
        Example: AdamW, GaLore.
        """
        raise AssertionError

    @hookspec("own")
    def tunekit_train_stage(self, bundle: ModelBundle, data: Prepared, context: StageContext) -> StageResult:
        """Train one stage on what it has prepared.

        Kind: own per stage: the plugin the stage is named after.
        When: for each stage, in order.
        Changes: the model's trainable parameters and the stage's folder.
        Returns: the trained bundle, closing metrics and artefacts.
        Raises: DataError, DivergedError, InterruptedRunError.
        Example: supervised fine-tuning.
        """
        raise AssertionError

    @hookspec("chain")
    def tunekit_reward(self, samples: Sequence[Sample], context: StageContext) -> list[float]:
        """Value answers that the model has just given, for a stage that learns from its own answers.

        Kind: chain, each for itself: every planned plugin values all samples, and the rewards of a sample are added up.
            What a plugin's own reward weighs in that sum is an option of the plugin.
        When: whenever such a stage has gathered answers, in training and in evaluation. The stage provides
            `stage.rewarded`; a plan in which nobody would ask is refused.
        Changes: nothing.
        Returns: one finite number for each sample, in their order; more is better. It depends on the sample alone, not
            on the others it comes with.
        Raises: TunekitError where answers cannot be valued; it ends the stage.
        Example: 1 for an answer that holds the number in the row's column `result`, 0 for any other.
        """
        raise AssertionError

    @hookspec("watch")
    def tunekit_event(self, event: Event) -> None:
        """See what happens in a run.

        Kind: watch.
        When: a stage starts, steps, evaluates, saves or finishes.
        Changes: nothing in the run.
        Returns: None.
        Raises: anything; it becomes a warning in the record and the run goes on.
        Example: the progress bar.
        """
        raise AssertionError

    @hookspec("own")
    def tunekit_infer_backend(self, bundle: ModelBundle, context: Context) -> Backend:
        """Make something that answers from a loaded model.

        Kind: own.
        When: after the last stage, or when a finished run is opened to talk to it.
        Changes: nothing.
        Returns: the backend.
        Raises: TunekitError where it cannot serve this model.
        Example: transformers' generate.
        """
        raise AssertionError

    @hookspec("own", optional=True)
    def tunekit_score(self, bundle: ModelBundle, texts: Sequence[Prompt], context: Context) -> list[float]:
        """Value texts, and conversations with their answers, by a trained reward model.

        Kind: own per stage: the last stage of the run whose plugin answers.
        When: after the last stage, or when a finished run is opened: `run.score(texts)`.
        Changes: nothing.
        Returns: a number for each, in their order; more is better.
        Raises: TunekitError where the model has learnt no values.
        Example: the value head that a reward stage has trained.
        """
        raise AssertionError

    @hookspec("own", optional=True)
    def tunekit_export(self, bundle: ModelBundle, request: ExportRequest, context: Context) -> Exported:
        """Write what was trained for others to read, read it again, and compare.

        Kind: own per target: the plugin the target is named after, by an entry point of the group `tunekit.exports`.
        When: after the last stage for the exports that the recipe names, and for `run.export(target)`; `bundle` is the
            trained model. The caller judges the comparison, adds `README.md` and `export.json`, and gives the folder
            its name; what fails leaves none.
        Changes: the files of `request.folder`.
        Returns: the comparison, made with what reads the files elsewhere: without tunekit where the format is somebody
            else's.
        Raises: ExportError where the model cannot be written so.
        Example: merged weights in safetensors, read by transformers.
        """
        raise AssertionError

    @hookspec("chain")
    def tunekit_command(self, app: typer.Typer) -> None:
        """Add a subcommand to the `tunekit` program.

        Kind: chain, in place.
        When: when that subcommand is asked for; it is found by the entry point group `tunekit.commands`, whose entry
            has the subcommand's name, so that other commands import nothing of it.
        Changes: the app it is given.
        Returns: None.
        Raises: nothing on purpose.
        Example: `tunekit serve`.
        """
        raise AssertionError
