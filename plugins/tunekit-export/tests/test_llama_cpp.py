"""llama.cpp itself reads what is written: the same tokens, the same numbers, the same answers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tokenizers import Regex, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM

from tunekit.testing import tiny_model, tiny_tokenizer
from tunekit.testing.observing import token_ids
from tunekit_export.gguf_file import KINDS, write_gguf
from tunekit_export.vocabulary import SPLITS, vocabulary_of

llama_cpp = pytest.importorskip("llama_cpp")

TEXTS = [
    "Hello, world!", " leading and trailing ", "two  spaces   three", "tabs\tand\nnew\n\nlines\r\n", "", "a",
    "It's we're I'll they'd DON'T", "In 1984 there were 12345 of them: 3.14159, 1,000,000", "1 22 333 4444 55555",
    "naïve café Zürich Ångström", "北京是中国的首都。", "\u041f\u0440\u0438\u0432\u0435\u0442",
    "emoji 🙂👩‍👩‍👧‍👦 flag 🇫🇷",
    "def f(x):\n    return x**2  # squared\n", "for (int i = 0; i < 10; ++i) { a[i] += i; }",
    '<p class="x">&amp;</p>', "https://example.org/a?b=c&d=%20e#f", "x<|endoftext|>y<|im_end|>",
    "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", "\u200bzero\u00a0width \u3000wide\u2028line",
]  # fmt: skip


def opened(path, **options):
    return llama_cpp.Llama(
        str(path), n_ctx=256, n_threads=1, n_threads_batch=1, logits_all=True, verbose=False, **options
    )


def cut(llama, text, begin=False):
    return llama.tokenize(text.encode(), add_bos=begin, special=True)


def scores(llama, ids):
    """float32 [seq vocab]."""
    llama.reset()
    llama.eval(ids)
    return torch.from_numpy(np.array(llama.scores[: len(ids)]))


def write(model, tokenizer, path, kind="f32"):
    size = model.config.vocab_size
    write_gguf(model, vocabulary_of(tokenizer, size), path, kind, "a")
    return path


def of_digits(pattern):
    """The tiny tokenizer that cuts as this pattern says; without one, numbers into digits as SmolLM's does."""
    tokenizer = tiny_tokenizer()
    if pattern is None:
        first, rest = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        first = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
        rest = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([first, rest])
    return tokenizer


TOKENIZERS = {
    "gpt-2": tiny_tokenizer,
    "smollm": lambda: of_digits(None),
    **{name: lambda pattern=pattern: of_digits(pattern) for pattern, name in SPLITS.items()},
}


@pytest.mark.parametrize("name", [*TOKENIZERS, "characters"])
def test_it_cuts_text_as_the_tokenizer_does(name, of_characters, tmp_path):
    tokenizer = of_characters if name == "characters" else TOKENIZERS[name]()
    llama = opened(write(tiny_model(vocab_size=520), tokenizer, tmp_path / "a.gguf"), vocab_only=True)
    for text in TEXTS:
        ids = tokenizer(text)["input_ids"]
        if name == "characters" and text.startswith(" "):
            continue  # puts a blank before every text, where transformers does not before one
        assert cut(llama, text, begin=tokenizer.bos_token_id is not None) == ids, text


@pytest.mark.parametrize("kind", KINDS)
def test_it_computes_what_the_model_computes(kind, tmp_path):
    model, ids = tiny_model(), token_ids(rows=1, length=48)
    found = scores(opened(write(model, tiny_tokenizer(), tmp_path / "a.gguf", kind)), ids[0].tolist())
    with torch.no_grad():
        expected = model(input_ids=ids).logits[0]
    bits = int("".join(filter(str.isdigit, kind.partition("_")[0])))
    close = {32: 2e-3, 16: 0.02, 8: 0.03}.get(bits, 2.0 ** (2 - bits))
    assert (found - expected).abs().max() < close * expected.abs().max()


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("llama", {"tie_word_embeddings": True, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}),
        ("mistral", {"sliding_window": None}),
        ("qwen2", {}),
        ("qwen3", {"head_dim": 128}),
    ],
)
def test_it_computes_every_architecture(kind, config, tmp_path):
    shape = {
        "vocab_size": 512, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256, "bos_token_id": None,
    }  # fmt: skip
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**shape, **config})).eval()
    for name, parameter in model.named_parameters():
        if name.endswith(".bias"):
            parameter.data.normal_()
    ids = token_ids(rows=1, length=48)
    found = scores(opened(write(model, tiny_tokenizer(), tmp_path / "a.gguf")), ids[0].tolist())
    with torch.no_grad():
        expected = model(input_ids=ids).logits[0]
    assert (found - expected).abs().max() < 2e-3 * expected.abs().max()


def test_a_run_that_is_exported_answers_there_as_it_does_here(run):
    made = run.export("gguf", quantization="f32", rows=1)
    llama = opened(made.folder / made.facts["file"])
    conversation = [{"role": "user", "content": "What is 3 and one?"}]
    tokenizer = run.bundle.tokenizer
    ids = tokenizer.apply_chat_template(conversation, add_generation_prompt=True)["input_ids"]
    text = tokenizer.apply_chat_template(conversation, add_generation_prompt=True, tokenize=False)
    assert cut(llama, text) == list(ids)
    with torch.no_grad():
        told = run.bundle.model.generate(input_ids=torch.tensor([ids]), max_new_tokens=12, do_sample=False)
    answer = llama.create_chat_completion(conversation, temperature=0.0, max_tokens=12)
    expected = tokenizer.decode(told[0, len(ids) :], skip_special_tokens=True)
    assert answer["choices"][0]["message"]["content"] == expected
