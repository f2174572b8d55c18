"""Export targets: merged weights, the adapter alone, GGUF, an Ollama model, a hub."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from pydantic import Field, model_validator

from tunekit.errors import Problem
from tunekit.hooks import hookimpl
from tunekit.options import DenseExportConfig, ExportConfig
from tunekit.plugin import Plugin
from tunekit.values import Context, Exported, ExportRequest, Machine, ModelBundle, Plan

__all__ = [
    "Adapter",
    "AdapterConfig",
    "Gguf",
    "GgufConfig",
    "Hub",
    "HubConfig",
    "Merged",
    "MergedConfig",
    "Ollama",
    "OllamaConfig",
]


class MergedConfig(DenseExportConfig):
    """The options of merged weights."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto", description="how weights are written, merged in float32 whatever it is; auto: as the run's are"
    )
    shard: str = Field(
        default="5GB",
        pattern=r"^[1-9][0-9]*[KMGT]B$",
        description="largest weight file, such as 500MB or 2GB; above it weights are split",
    )


class Merged(Plugin[MergedConfig]):
    """One dense model in safetensors, the adapter added into its weights, for transformers and who reads its format."""

    @hookimpl
    def tunekit_check(self, plan: Plan, machine: Machine) -> Iterable[Problem]:
        """Refuse a reward model, and a base that nothing was quantised of."""
        from tunekit_transformers.dense_exports import dense_problems

        return dense_problems(self, plan, images=True)

    @hookimpl
    def tunekit_export(self, bundle: ModelBundle, request: ExportRequest, context: Context) -> Exported:
        """Merge in float32, round once, write, and have transformers read it."""
        from .merged import export_merged

        return export_merged(self.config, bundle, request)


class AdapterConfig(ExportConfig):
    """The options of the adapter alone."""


class Adapter(Plugin[AdapterConfig]):
    """The adapter alone in PEFT's format, for the base as it was, with tokenizer and chat template."""

    @hookimpl
    def tunekit_check(self, plan: Plan, machine: Machine) -> Iterable[Problem]:
        """Refuse a run that trains no adapter, and a base that others do not read rightly on this machine."""
        from .checks import adapter_problems

        return adapter_problems(self, plan, machine)

    @hookimpl
    def tunekit_export(self, bundle: ModelBundle, request: ExportRequest, context: Context) -> Exported:
        """Copy it, name its base as others know it, and have peft read it."""
        from .adapter import export_adapter

        return export_adapter(bundle, request, context)


class GgufConfig(DenseExportConfig):
    """The options of a GGUF file."""

    quantization: Literal["f32", "bf16", "f16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"] = Field(
        default="q8_0",
        description="how matrices are stored: bits a weight, then 0 for a scale, 1 for scale and offset of 32 weights; "
        "with 4 and 5 bits embedding and head take 8",
    )


class Gguf(Plugin[GgufConfig]):
    """One GGUF file with tokenizer and chat template, for llama.cpp and who builds on it."""

    @hookimpl
    def tunekit_check(self, plan: Plan, machine: Machine) -> Iterable[Problem]:
        """Refuse a model that cannot be written, where its config is at hand."""
        from .checks import gguf_problems

        return gguf_problems(self, plan)

    @hookimpl
    def tunekit_export(self, bundle: ModelBundle, request: ExportRequest, context: Context) -> Exported:
        """Merge in float32, quantise matrices, write, and have transformers read it."""
        from .gguf_export import export_gguf

        return export_gguf(self.config, bundle, request)


class OllamaConfig(GgufConfig):
    """The options of an Ollama model: those of its GGUF file, and what its model file says."""

    temperature: float | None = Field(default=None, ge=0, description="of answers; none: Ollama's own default")
    top_p: float | None = Field(
        default=None, gt=0, le=1, description="sample from the likeliest tokens of this mass; none: Ollama's default"
    )
    repeat_penalty: float | None = Field(
        default=None, gt=0, description="divides the scores of tokens said before; none: Ollama's default"
    )
    context: int | None = Field(
        default=None, ge=1, description="tokens that question and answer may have; none: Ollama's default"
    )
    system: str | None = Field(
        default=None, description="system message of conversations without one; none: the chat template's own"
    )


class Ollama(Plugin[OllamaConfig]):
    """A GGUF file and the model file with which `ollama create` takes it up."""

    @hookimpl
    def tunekit_check(self, plan: Plan, machine: Machine) -> Iterable[Problem]:
        """As for GGUF."""
        from .checks import gguf_problems

        return gguf_problems(self, plan)

    @hookimpl
    def tunekit_export(self, bundle: ModelBundle, request: ExportRequest, context: Context) -> Exported:
        """Put the chat template into Ollama's language, write both files, and have transformers read the model."""
        from .ollama import export_ollama

        return export_ollama(self.config, bundle, request)


class HubConfig(ExportConfig):
    """The options of a hub."""

    repository: str = Field(
        pattern=r"^[\w.-]+/[\w.-]+$", description="where it goes, owner/name; made where it is not there"
    )
    of: str | None = Field(
        default=None, description="which export of the run, by its name; none: the one that was made last"
    )
    private: bool = Field(default=True, description="make a new repository that only its owners see")
    branch: str | None = Field(default=None, description="branch of the repository; none: its main one")
    message: str = Field(default="Exported with tunekit", min_length=1, description="message of the commit")
    endpoint: str | None = Field(default=None, description="address of the hub; none: huggingface_hub's own")

    @model_validator(mode="after")
    def _compared_before(self) -> HubConfig:
        idle = sorted({"rows", "row_tokens", "tolerance"} & self.model_fields_set)
        if idle:
            raise ValueError(f"{', '.join(idle)} means nothing here; say it of the export that is pushed")
        return self


class Hub(Plugin[HubConfig]):
    """Push an export that was made before to a model hub, with its card."""

    @hookimpl
    def tunekit_check(self, plan: Plan, machine: Machine) -> Iterable[Problem]:
        """Refuse what is to be pushed before it is made, and a hub that may not be asked."""
        from .checks import hub_problems

        return hub_problems(self, plan)

    @hookimpl
    def tunekit_export(self, bundle: ModelBundle, request: ExportRequest, context: Context) -> Exported:
        """Upload the folder in one commit, and see that all of it is there."""
        from .hub import push

        return push(self.config, request)
