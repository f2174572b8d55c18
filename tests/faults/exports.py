"""Faults of export targets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from faults.registry import fault, suite_of

from tunekit.hooks import hookimpl
from tunekit.options import ExportConfig
from tunekit.plugin import Plugin
from tunekit.testing import ExportSuite
from tunekit.values import Context, Exported, ExportRequest, ModelBundle, Verification


def exporting(
    write: Callable[[ModelBundle, ExportRequest], Any] = lambda bundle, request: request.dense(False).model,
    measured: Callable[[Verification], Verification] = lambda found: found,
    read: Callable[[ModelBundle, Path], Any] | None = None,
    before: Callable[[ModelBundle, ExportRequest], None] = lambda bundle, request: None,
) -> Any:
    class Faulty(Plugin[ExportConfig]):
        """Writes safetensors."""

        @hookimpl
        def tunekit_export(self, bundle: ModelBundle, request: ExportRequest, context: Context) -> Exported:
            from transformers import AutoModelForCausalLM

            from tunekit_transformers.comparing import verify

            before(bundle, request)
            write(bundle, request).save_pretrained(str(request.folder))
            again = read or (lambda bundle, folder: AutoModelForCausalLM.from_pretrained(str(folder), dtype="auto"))
            found = verify(bundle, request, lambda: again(bundle, request.folder), "transformers")
            return Exported(measured(found))

    return suite_of(ExportSuite, Faulty())


@fault(
    ExportSuite,
    "test_what_it_writes_says_what_was_trained",
    "what was trained is not in it",
)
def an_export_of_the_base():
    return exporting(write=lambda bundle, request: request.base().model)


@fault(ExportSuite, "test_its_numbers_are_those_of_the_models", "base_perplexity")
def an_export_with_a_number_of_its_own():
    return exporting(measured=lambda found: replace(found, base_perplexity=found.trained_perplexity))


@fault(ExportSuite, "test_an_export_of_something_else_shows", "the files were not read again")
def an_export_that_compares_the_model_with_itself():
    return exporting(read=lambda bundle, folder: bundle.model)


@fault(ExportSuite, "test_it_writes_into_its_folder_only", "left behind: .*scratch")
def an_export_that_leaves_scratch_behind():
    return exporting(before=lambda bundle, request: Path("scratch").write_text("half"))


@fault(ExportSuite, "test_it_leaves_the_trained_model_as_it_was", "another one afterwards")
def an_export_that_rounds_the_model_it_was_given():
    return exporting(before=lambda bundle, request: bundle.model.bfloat16().float())
