"""A tiny random model with a real tokenizer, made in code: no download, no file, the same every time."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..values import DType, ModelBundle, Precision

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

FP32 = Precision("cpu", "float32", "float32", "float32", "fp32 throughout, for tests")
"""The policy that tests use where they are not about precision."""
MIXED = Precision("cpu", "bfloat16", "bfloat16", "float32", "bf16 products, fp32 training, for tests")
"""Frozen weights and products in bf16, trained parameters in fp32."""

VOCABULARY = 512
PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TEXT = (
    "system user assistant",
    "Which river flows through the town? The river is called the Amber, and it flows from the hills to the sea.",
    "What is two and three? Two and three is five. What is four and five? Four and five is nine.",
    "A plain answer is better than a long one, and a question is better than a guess.",
    "The quick brown fox jumps over the lazy dog while seven wizards vex the bold jury with their tokens.",
)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Make a byte-level BPE tokenizer of at most 512 tokens with a ChatML template; any text survives it unchanged."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=Tokenizer.from_str(_trained()),
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[START],
        clean_up_tokenization_spaces=False,
        model_max_length=2048,
    )
    tokenizer.chat_template = CHATML
    return tokenizer


def tiny_model(seed: int = 0, dtype: DType = "float32", **config: Any) -> LlamaForCausalLM:
    """Make a random 2-layer Llama, hidden 128, in evaluation mode. `config` overrides fields of its LlamaConfig.

    The same numbers for the same seed, whatever drew random numbers before.
    """
    import torch
    from transformers import LlamaForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(tiny_config(**config))
    return model.to(getattr(torch, dtype)).eval()  # type: ignore[no-any-return]


def tiny_config(**config: Any) -> Any:
    """The LlamaConfig of the tiny model, with these fields overridden."""
    from transformers import LlamaConfig

    fields: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "pad_token_id": 0,
        "eos_token_id": 2,
    }
    return LlamaConfig(**{**fields, **config})


def tiny_bundle(seed: int = 0, precision: Precision = FP32, **changes: Any) -> ModelBundle:
    """Make a bundle of the tiny model and tokenizer, stored in the policy's `weights` dtype.

    `changes` set other fields of the bundle, such as `saved_adapter`.
    """
    return ModelBundle(tiny_model(seed, precision.weights), tiny_tokenizer(), "tiny", precision, **changes)


def save_tiny_model(folder: str | Path, seed: int = 0, dtype: DType = "float32", **config: Any) -> Path:
    """Save the tiny model and tokenizer as a recipe's `model:` could name them, and return the folder."""
    tiny_model(seed, dtype, **config).save_pretrained(str(folder))
    tiny_tokenizer().save_pretrained(str(folder))
    return Path(folder)


@lru_cache(maxsize=1)
def _trained() -> str:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, START, END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    return tokenizer.to_str()
