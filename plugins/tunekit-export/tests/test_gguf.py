"""GGUF: transformers' own loader reads weights and tokenizer; what cannot be written is refused by name."""

from __future__ import annotations

import json
from dataclasses import replace

import gguf
import pytest
import torch
from tokenizers import Regex, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from tunekit.errors import ExportError, PlanError
from tunekit.testing import tiny_tokenizer
from tunekit.testing.observing import logits
from tunekit.testing.options import shows
from tunekit_export import Gguf
from tunekit_export.gguf_export import read_gguf
from tunekit_export.gguf_file import write_gguf
from tunekit_export.vocabulary import vocabulary_of

SHAPE = {
    "vocab_size": 512, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "bos_token_id": None, "eos_token_id": 2,
}  # fmt: skip
TEXT = "In 1984 there were 12345 of them, weren't there?  Naïve 北京!\n\n<|im_start|>user\nHi<|im_end|>"


def random_model(kind, **config):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**SHAPE, **config}))
        for name, parameter in model.named_parameters():
            if name.endswith(".bias"):  # they begin at zero, where nothing shows
                parameter.data.normal_()
    return model.eval()


def tensors(path):
    return {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(path).tensors}


@pytest.fixture(scope="module")
def exported(run):
    return run.export("gguf")


def test_transformers_reads_what_was_trained(run, exported):
    path = exported.folder / exported.facts["file"]
    assert path.name == "tiny-Q8_0.gguf"
    assert exported.verification.kl < 0.01 * exported.verification.base_kl
    assert exported.verification.reader.startswith("transformers ")
    again = AutoTokenizer.from_pretrained(exported.folder, gguf_file=path.name)
    assert again.chat_template == run.bundle.tokenizer.chat_template
    assert again(TEXT)["input_ids"] == run.bundle.tokenizer(TEXT)["input_ids"]


@shows("quantization")
@pytest.mark.parametrize(
    ("kind", "bits"),
    [("f32", 32), ("bf16", 16), ("f16", 16), ("q8_0", 8.5), ("q5_1", 6), ("q5_0", 5.5), ("q4_1", 5), ("q4_0", 4.5)],
)
def test_a_file_takes_the_bits_that_were_asked_for(kind, bits, tmp_path):
    model = random_model("llama", tie_word_embeddings=False)
    path = tmp_path / "a.gguf"
    write_gguf(model, vocabulary_of(tiny_tokenizer(), 512), path, kind, "a")
    layers = {name: kind for name, kind in tensors(path).items() if name.startswith("blk") and "norm" not in name}
    assert set(layers.values()) == {kind.upper()}
    assert tensors(path)["output.weight"] == ("Q8_0" if kind.startswith(("q4", "q5")) else kind.upper())
    (read,) = (tensor for tensor in gguf.GGUFReader(path).tensors if tensor.name == "blk.0.ffn_down.weight")
    assert read.n_bytes * 8 == bits * read.n_elements
    close = {32: 1e-5, 16: 0.02}.get(bits, 2.0 ** (2 - int(bits)))
    difference = (logits(read_gguf(path)) - logits(model)).abs().max() / logits(model).abs().max()
    assert difference < close


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("llama", {"tie_word_embeddings": True}),
        ("llama", {"head_dim": 32, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}),
        ("mistral", {"sliding_window": None}),
        ("qwen2", {}),
        ("qwen3", {"head_dim": 128}),
    ],
)
def test_every_architecture_is_read_back_to_the_same_logits(kind, config, tmp_path):
    model = random_model(kind, **config)
    write_gguf(model, vocabulary_of(tiny_tokenizer(), 512), tmp_path / "a.gguf", "f32", "a")
    assert torch.allclose(logits(read_gguf(tmp_path / "a.gguf")), logits(model), atol=1e-4)
    assert ("output.weight" in tensors(tmp_path / "a.gguf")) is not model.config.tie_word_embeddings


@pytest.mark.parametrize(("name", "digits"), [("llama-bpe", r"\p{N}{1,3}"), ("qwen2", r"\p{N}"), ("gpt-2", None)])
def test_text_is_cut_in_the_file_as_by_the_tokenizer(name, digits, tmp_path):
    tokenizer = tiny_tokenizer()
    if digits is not None:
        pattern = rf"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}"
        pattern += r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        split = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    vocabulary = vocabulary_of(tokenizer, 520)
    assert vocabulary.split == name
    assert vocabulary.tokens[-1] == "[PAD519]"
    write_gguf(random_model("llama", vocab_size=520), vocabulary, tmp_path / "a.gguf", "f32", "a")
    again = AutoTokenizer.from_pretrained(tmp_path, gguf_file="a.gguf")
    assert again(TEXT)["input_ids"] == tokenizer(TEXT)["input_ids"]
    assert again.eos_token == tokenizer.eos_token


def test_a_tokenizer_of_characters_is_read_back_by_its_merges_and_by_its_scores(of_characters, tmp_path):
    tokenizer = of_characters
    size = len(tokenizer)
    vocabulary = vocabulary_of(tokenizer, size)
    assert (vocabulary.kind, vocabulary.adds_space) == ("llama", True)
    for number, written in enumerate((vocabulary, replace(vocabulary, merges=()))):
        write_gguf(random_model("llama", vocab_size=size), written, tmp_path / f"{number}.gguf", "f32", "a")
        again = AutoTokenizer.from_pretrained(tmp_path, gguf_file=f"{number}.gguf")
        for text in ("The river flows to the sea, 12 times.", "the Amber \u6771 river"):
            assert again(text)["input_ids"] == tokenizer(text)["input_ids"]


def test_numbers_cut_into_digits_are_written_by_the_name_that_llama_cpp_knows():
    tokenizer = tiny_tokenizer()
    steps = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    assert vocabulary_of(tokenizer, 512).split == "smollm"


def test_a_tokenizer_that_has_no_name_there_is_refused():
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(ExportError, match="cuts text by a rule that has no name in GGUF"):
        vocabulary_of(tokenizer, 512)
    with pytest.raises(ExportError, match="the model 100 embeddings"):
        vocabulary_of(tiny_tokenizer(), 100)


def test_rounding_that_loses_what_was_learnt_is_told_with_its_numbers(train, tmp_path):
    gentle = {"sft": {"epochs": 1, "learning_rate": 3e-4, "batch": {"rows": 4}, "evaluate": {"share": 0.25}}}
    run = train(tmp_path / "run", stages=[gentle])
    with pytest.raises(ExportError, match=r"times as far from the trained model as the base is, and 0\.1 .* more bits"):
        run.export(Gguf(quantization="q4_0"))
    assert not list((tmp_path / "run").rglob("*.gguf"))


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"model_type": "gpt2"}, "its architecture is gpt2, and llama, mistral, qwen2, qwen3 can be written"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}}, r"scaled \(yarn\)"),
        ({"model_type": "mistral", "sliding_window": 16}, "slides over 16 tokens"),
        ({"model_type": "qwen3", "head_dim": 64}, "heads are not 128 wide"),
        ({"mlp_bias": True}, "feed-forward layers have biases"),
    ],
)
def test_what_cannot_be_written_is_refused_at_plan_time(config, reason, base, train, tmp_path):
    described = json.loads((base / "config.json").read_text())
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps({**described, **config}))
    (tmp_path / "model" / "model.safetensors").touch()
    with pytest.raises(PlanError, match=rf"export\.0\.gguf: .* cannot be written as GGUF: .*{reason}"):
        train(tmp_path / "run", model=tmp_path / "model", export=["gguf"])
