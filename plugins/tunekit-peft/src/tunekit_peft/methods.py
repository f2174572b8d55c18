"""The methods of PEFT: what they can do in a recipe, as the tests find it, and those that cannot be used."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal["layers", "norms", "prompt", "own"]
"""What a method changes: layers, norms, what stands before the text, or places that it finds by itself."""


PROMPT = {"num_virtual_tokens": 20}
BOTH = (4, 8)
"""The bits of bitsandbytes."""


@dataclass(frozen=True)
class Method:
    """One method: its name and paper, what it changes, and what was seen to work.

    `paper` is its arXiv id. `named`: several stand on one model, each switched to exactly. `merges`: it can be added
    into the weights. `quantized`: on weights of how many bits of bitsandbytes it trains. `evaluated`: PEFT can compute
    with shapes alone in evaluation mode only.
    `modules`: what trains lies in modules named after the adapter, and is no parameter named so itself.
    `defaults` are options that PEFT has no usable value for, `idle` those that it takes and does nothing with.
    """

    title: str
    paper: str
    kind: Kind = "layers"
    named: bool = True
    merges: bool = True
    quantized: tuple[int, ...] = ()
    evaluated: bool = False
    modules: bool = False
    defaults: Mapping[str, Any] = field(default_factory=dict)
    idle: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Request:
    """A method as a recipe asks for it, through the plugin of this name.

    `given` are the fields of PEFT's configuration that the recipe itself says, each with its key in the recipe.
    """

    plugin: str
    method: str
    targets: str | tuple[str, ...] | None
    options: Mapping[str, Any]
    modules_to_save: tuple[str, ...] = ()
    given: Mapping[str, str] = field(default_factory=dict)

    @property
    def entry(self) -> Method:
        """What is known of the method."""
        return METHODS[self.method]

    def key(self, option: str) -> str:
        """The recipe key of an option."""
        return f"use.{self.plugin}.options.{option}" if self.plugin == "peft" else f"use.{self.plugin}"


def _before_the_text(title: str, paper: str) -> Method:
    """A method that learns what stands before the text, and is no part of the weights."""
    return Method(title, paper, "prompt", named=False, merges=False, quantized=BOTH, modules=True, defaults=PROMPT)


METHODS: dict[str, Method] = {
    "beft": Method("bias-efficient fine-tuning", "2509.15974", merges=False),
    "boft": Method("butterfly orthogonal fine-tuning", "2311.06243"),
    "c3a": Method("circular convolution", "2407.19342", quantized=(4,)),
    "cartridge": _before_the_text("keys and values of a context", "2506.06266"),
    "deft": Method("decompositional fine-tuning", "in PEFT"),
    "delora": Method("decoupled angles and strength", "2503.18225"),
    "fourierft": Method("discrete Fourier transform of the update", "2405.03003", quantized=BOTH),
    "glora": Method("generalised LoRA", "2306.07967", modules=True),
    "gralora": Method("granular LoRA", "2505.20355", quantized=(4,)),
    "hira": Method("Hadamard high-rank adaptation", "in PEFT", quantized=BOTH),
    "hra": Method("Householder reflections", "2405.17484"),
    "ia3": Method("inhibiting and amplifying inner activations", "2205.05638", quantized=BOTH),
    "ln_tuning": Method("norms", "2312.11420", "norms", named=False, modules=True),
    "loha": Method("low-rank Hadamard product", "2108.06098"),
    "lokr": Method("low-rank Kronecker product", "2309.14859"),
    "miss": Method("matrix shard sharing", "2409.15371", quantized=BOTH),
    "oft": Method(
        "orthogonal fine-tuning", "2306.07280", quantized=BOTH, idle=frozenset({"module_dropout"}), modules=True
    ),
    "osf": Method("orthogonal subspaces", "2504.07097", modules=True),
    "p_tuning": _before_the_text("prompt made by a network", "2103.10385"),
    "peanut": Method("adapters of weight-aware networks", "in PEFT", modules=True),
    "prefix_tuning": _before_the_text("keys and values before the text", "2101.00190"),
    "prompt_tuning": _before_the_text("embeddings before the text", "2104.08691"),
    "psoft": Method("orthogonal fine-tuning of the principal subspace", "2505.11235", modules=True),
    "pvera": Method("probabilistic VeRA", "2512.07703", quantized=BOTH),
    "randlora": Method("random bases at full rank", "2502.00987", quantized=BOTH),
    "road": Method("rotations in two dimensions", "2409.00119", quantized=BOTH),
    "supertuning": Method("sparse updates", "2607.09287"),
    "tinylora": Method("vectors shared by layers", "2602.04118", modules=True),
    "trainable_tokens": Method("rows of the embedding", "in PEFT", "own", quantized=BOTH),
    "unilora": Method("one vector for all layers", "2506.00799"),
    "vblora": Method("vector bank", "2405.15179", quantized=BOTH, evaluated=True),
    "vera": Method("vectors on shared random matrices", "2310.11454", quantized=BOTH),
}
"""What works, by the names that recipes use."""

REFUSED: dict[str, str] = {
    "lora": "the plugin `lora` does it, with more options",
    "adalora": "it moves ranks by importances that no checkpoint holds, so that a run which was killed could not go on "
    "to the same numbers",
    "adamss": "PEFT needs scikit-learn for it, which it does not declare",
    "adaption_prompt": "it replaces the attention of a model, which here runs without padding",
    "cpt": "its loss is its own, on tokens of its own",
    "frod": "PEFT reads the weights to make it, so that a plan could not count what trains",
    "lily": "its routers go by the mean over all tokens of a row, those of padding and of other examples too",
    "multitask_prompt_tuning": "it goes by the task of each row, and rows name none",
    "poly": "it goes by the task of each row, and rows name none",
    "shadow": "it adds a model beside the model, with a loss of its own",
    "shira": "PEFT computes with sparse tensors, which shapes alone cannot follow, so a plan could not tell its memory",
    "waveft": "PEFT looks for what is not zero while it computes, so that a plan could not tell its memory",
    "xlora": "it mixes adapters that are trained already",
}
"""What cannot be used, and why."""
