"""For tests of stages and objectives: tiny models, a tokenizer, items and a stage context, with no file and no run."""

from __future__ import annotations

import random
import sys
import warnings
from collections.abc import Iterable, Iterator
from collections.abc import Sequence as List
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tunekit.errors import InterruptedRunError, PlanError, Problem
from tunekit.values import Account, Event, Example, Item, Machine, ModelBundle, Precision, StageContext, TokenSequence

from . import AdamW
from .config import TrainConfig
from .needs import TokenLogProbs
from .objective import Batch, Need, Objective, Provided, Sums

if TYPE_CHECKING:
    from .suite import ObjectiveSuite as ObjectiveSuite

VOCABULARY = 128
FP32 = Precision("cpu", "float32", "float32", "float32", "tests")
BF16 = Precision("cpu", "bfloat16", "bfloat16", "float32", "tests")


def __getattr__(name: str) -> Any:
    """Import the suite, and with it pytest, when it is first asked for."""
    if name != "ObjectiveSuite":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import pytest

    if "tunekit_train.suite" not in sys.modules:
        pytest.register_assert_rewrite("tunekit_train.suite")
    from .suite import ObjectiveSuite

    return ObjectiveSuite


class CrossEntropy(Objective):
    """The least objective: sum(-w log p)."""

    needs: tuple[Need[Any], ...] = (TokenLogProbs(),)

    def weight(self, batch: Batch) -> float:
        """The sum of the loss weights."""
        return sum(sum(sequence.weights) for sequence in batch.sequences)

    def sums(self, batch: Batch, provided: Provided) -> Sums:
        """sum(-w log p)."""
        scores = provided[TokenLogProbs()]
        return Sums(-(scores.weights * scores.log_probs).sum())


class OneOptimizer:
    """Calls that know one plugin: AdamW, or another given."""

    def __init__(self, plugin: Any = None) -> None:
        self.plugin = plugin or AdamW()

    def own(self, hook: str, **arguments: Any) -> Any:
        if not hasattr(self.plugin, hook):
            raise PlanError([Problem("use", f"no plugin answers {hook}", "name one that does")])
        return getattr(self.plugin, hook)(**arguments)

    def chain(self, hook: str, argument: str, value: Any, **arguments: Any) -> Any:
        answer = getattr(self.plugin, hook, None)
        return value if answer is None else answer(**{argument: value}, **arguments)


def tiny_llama(seed: int = 0, **changes: Any) -> Any:
    """A random two-layer Llama with grouped-query attention."""
    torch.manual_seed(seed)
    options = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "tie_word_embeddings": True,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    return LlamaForCausalLM(LlamaConfig(**{**options, **changes}))


def with_lora(model: Any, dropout: float = 0.0, **options: Any) -> Any:
    """The model under a LoRA adapter whose second matrix is not zero, so that all its parameters get gradients.

    `options` are further ones of `peft.LoraConfig`.
    """
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    given = {"r": 4, "lora_dropout": dropout, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    config = LoraConfig(**{**given, **options})
    with warnings.catch_warnings():  # of PEFT, which reads a property that transformers renamed
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
        adapted = get_peft_model(model, config)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    return adapted


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of the words t0, t1, ... with a chat template."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    words = {"<pad>": 0, "<s>": 1, "</s>": 2, **{f"t{number}": number for number in range(3, VOCABULARY)}}
    tokenizer = Tokenizer(WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )


def random_items(count: int, seed: int = 0, shortest: int = 3, longest: int = 20) -> list[Item]:
    """Items of random length: the first third is context, the rest is supervised, some tokens by half."""
    dice = random.Random(seed)
    return [Item((_sequence(dice, row + 1, dice.randint(shortest, longest)),)) for row in range(count)]


def _sequence(dice: random.Random, row: int, length: int) -> TokenSequence:
    ids = tuple(dice.randrange(3, VOCABULARY) for _ in range(length))
    weights = tuple(0.0 if at < max(1, length // 3) else dice.choice((1.0, 1.0, 0.5)) for at in range(length))
    return TokenSequence(ids, weights, row, f"rows.json, row {row}")


def word_examples(count: int, seed: int = 0, longest: int = 20, **values: Any) -> list[Example]:
    """Documents of the words that `tiny_tokenizer` and `WordEncoder` know, of random length."""
    dice = random.Random(seed)
    lengths = [dice.randint(3, longest) for _ in range(count)]
    texts = [" ".join(f"t{dice.randrange(3, VOCABULARY)}" for _ in range(length)) for length in lengths]
    return [
        Example(row, f"rows.json, row {row}", text=text, source="rows.json", **values)
        for row, text in enumerate(texts, 1)
    ]


class WordEncoder:
    """Makes a token of each word of a document, and several items where there are more than `max_length`.

    A document without a word cannot be trained on. `encoded` holds the rows that were encoded.
    """

    def __init__(self, max_length: int = 1000, fingerprint: str = "words") -> None:
        self.max_length, self.fingerprint = max_length, fingerprint
        self.encoded: list[int] = []

    def encode(self, examples: List[Example], account: Account) -> list[list[Item]]:
        """The items of each document."""
        return [list(self._items(example, account)) for example in examples]

    def encode_all(self, examples: Iterable[Example], account: Account) -> Iterator[Item]:
        """The items of all documents."""
        return (item for example in examples for item in self._items(example, account))

    def _items(self, example: Example, account: Account) -> Iterator[Item]:
        self.encoded.append(example.row)
        ids = [int(word[1:]) for word in (example.text or "").split()]
        if not ids:
            account.leave_out(example.source, example.where, "has no word", "write one", example.optional)
        for start in range(0, len(ids), self.max_length):
            part = ids[start : start + self.max_length]
            weights = [0.0] * (len(part) // 3) + [1.0] * (len(part) - len(part) // 3)
            noted = account.source(example.source)
            noted.sequences, noted.tokens = noted.sequences + 1, noted.tokens + len(part)
            noted.lengths[len(part)] += 1
            yield Item((TokenSequence(part, weights, example.row, example.where),))


def context(folder: Path, events: list[Event] | None = None, plugin: Any = None, **changes: Any) -> StageContext:
    """A stage context that gathers events."""
    values = {
        "calls": OneOptimizer(plugin),
        "machine": Machine("Linux", "3.11", "cpu", 2, 1 << 34),
        "precision": FP32,
        "folder": folder,
        "seed": 7,
        "emit": (events if events is not None else []).append,
        "name": "sft",
        "key": "stages.0.sft",
    }
    return StageContext(**{**values, **changes})


def check_resumes(plugin: Any, folder: Path, model: Any = tiny_llama, **options: Any) -> None:
    """Train a tiny model with an optimiser's plugin, and again with a break: losses and weights are the same bits.

    The break is at step 5 of 8, with a checkpoint after each third step and an evaluation after each second. `model`
    makes what is trained; `options` are those of `TrainConfig`.
    """
    whole, losses = _trained_for_8(plugin, folder / "whole", model(), **options)
    stopped = folder / "stopped"
    try:
        _trained_for_8(plugin, stopped, model(), stop=5, **options)
    except (KeyboardInterrupt, InterruptedRunError):
        assert (stopped / "checkpoints" / "step-3").is_dir()
    resumed, again = _trained_for_8(plugin, stopped, model(), resume=True, **options)
    assert again == losses[-len(again) :]
    assert len(again) < len(losses), "it started again from the beginning"
    for name, value in whole.named_parameters():
        assert torch.equal(value, resumed.get_parameter(name)), f"{name} differs from that of the uninterrupted run"


def _trained_for_8(
    plugin: Any, folder: Path, model: Any, stop: int = 0, resume: bool = False, **options: Any
) -> tuple[Any, list[float]]:
    from .engine import train

    def tell(event: Event) -> None:
        events.append(event)
        if event.kind == "step" and event.step == stop:
            raise KeyboardInterrupt

    events: list[Event] = []
    folder.mkdir(parents=True, exist_ok=True)
    given: dict[str, Any] = {
        "steps": 8,
        "learning_rate": 1e-2,
        "batch": {"rows": 2, "accumulation": 2},
        "checkpoint": {"every": 3},
        "evaluate": {"share": 0.2, "every": 2},
    }
    surroundings = context(folder, plugin=plugin, resume=resume, emit=tell)
    result = train(CrossEntropy(), random_items(20), bundle(model), TrainConfig(**{**given, **options}), surroundings)
    return result.bundle.model, [event.metrics["loss"] for event in events if event.kind == "step"]


def bundle(model: Any, precision: Precision = FP32) -> ModelBundle:
    """A bundle around a model."""
    return ModelBundle(model, tiny_tokenizer(), "tiny", precision)


_SIZES = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_CHANGES: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    "mistral": {"sliding_window": 6},
    "qwen2": {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1},
    "gemma3_text": {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"]},
    "phi3": {"sliding_window": 6, "original_max_position_embeddings": 64},
    "gemma2": {"sliding_window": 6, "attn_logit_softcapping": 1.0, "final_logit_softcapping": 5.0},
    "lfm2": {"layer_types": ["conv", "full_attention"], "block_multiple_of": 8},
    "gpt_oss": {"sliding_window": 6, "num_local_experts": 4, "num_experts_per_tok": 2},
    "mixtral": {"sliding_window": 6, "num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen2_moe": {**_EXPERTS, "shared_expert_intermediate_size": 24},
    "qwen3_moe": {**_EXPERTS, "norm_topk_prob": True},
}
_EAGER = {"gemma2", "gpt_oss"}
"""Families with caps or sinks, for which transformers writes the attention out."""
_NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}


def family_model(family: str) -> Any:
    """A random two-layer model of a family, with a sliding window shorter than the longest item where it has one."""
    torch.manual_seed(0)
    options = {**_SIZES, **_CHANGES.get(family, {})}
    if family == "gpt2":
        options = {**{name: _SIZES[name] for name in ("vocab_size", "bos_token_id", "eos_token_id")}, **_NO_DROPOUT}
        options.update(_CHANGES["gpt2"])
    config, attention = AutoConfig.for_model(family, **options), "eager" if family in _EAGER else "sdpa"
    return AutoModelForCausalLM.from_config(config, attn_implementation=attention).float()  # type: ignore[no-untyped-call]
