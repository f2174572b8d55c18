"""Segments beyond training: generation on the same model, and what must never be silently wrong."""

from __future__ import annotations

import pytest
import torch

from tunekit.errors import PlanError
from tunekit_train import Batch
from tunekit_train.forward import Forward, choose_strategy, prepared, segments_obstacle
from tunekit_train.layout import lay_end_to_end
from tunekit_train.segments import FAMILIES, NAME, borders_given, segments_attention, switched
from tunekit_train.testing import family_model, random_items, tiny_llama


def test_padded_generation_is_the_same_while_segments_are_switched_on() -> None:
    model = tiny_llama().eval()
    ids = torch.tensor([[0, 0, 0, 5, 6, 7], [8, 9, 10, 11, 12, 13]])
    options = {"attention_mask": (ids != 0).long(), "max_new_tokens": 8, "do_sample": False}
    expected = model.generate(ids, **options)
    with switched(model, NAME):
        assert torch.equal(model.generate(ids, **options), expected)
    assert torch.equal(model.generate(ids, **options), expected)


def test_a_sliding_window_holds_in_a_plain_call_while_segments_are_switched_on() -> None:
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "sliding_window": 4}
    model = MistralForCausalLM(MistralConfig(**sizes, **heads)).eval()
    ids = torch.arange(3, 23)[None]
    expected = model(ids).logits
    with switched(model, NAME):
        torch.testing.assert_close(model(ids).logits, expected)


@pytest.mark.parametrize("family", sorted(FAMILIES - {"gpt2"}))
def test_restarting_positions_without_borders_are_an_error(family: str) -> None:
    model, layout = family_model(family), lay_end_to_end([item.sequences[0] for item in random_items(3, shortest=8)])
    model = model.eval()
    with switched(model, NAME), pytest.raises(RuntimeError, match="nothing says where sequences end"):
        model(input_ids=layout.input_ids, position_ids=layout.position_ids, use_cache=True)


def test_without_a_cache_restarting_positions_get_the_mask_of_transformers() -> None:
    model, layout = tiny_llama().eval(), lay_end_to_end([item.sequences[0] for item in random_items(3)])
    inputs = {"input_ids": layout.input_ids, "position_ids": layout.position_ids, "use_cache": False}
    expected = model(**inputs).logits
    with switched(model, NAME):
        torch.testing.assert_close(model(**inputs).logits, expected)


def test_borders_that_do_not_reach_the_attention_are_an_error() -> None:
    tensors = [torch.zeros(1, 2, 4, 8) for _ in range(3)]
    with borders_given(), pytest.raises(RuntimeError, match="does not hand on where sequences end"):
        segments_attention(torch.nn.Identity(), *tensors, None)


@pytest.mark.parametrize("family", ["gemma2", "gpt_oss"])
def test_capped_scores_and_sinks_hold_in_a_plain_call_and_in_generation_while_segments_are_switched_on(
    family: str,
) -> None:
    model, ids = family_model(family).eval(), torch.arange(3, 23)[None]
    options = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 6, "do_sample": False}
    expected, generated = model(ids).logits, model.generate(ids, **options)
    with switched(model, NAME):
        torch.testing.assert_close(model(ids).logits, expected)
        assert torch.equal(model.generate(ids, **options), generated)


def test_a_change_in_one_sequence_changes_no_other() -> None:
    model = tiny_llama().eval()
    items = random_items(3, shortest=5)
    strategy = choose_strategy(model, "never", 0, "stages.0.sft")

    def logits(batch: Batch) -> torch.Tensor:
        layout = strategy.lay_out(batch)
        with prepared(model, strategy, autocast=False):
            return Forward(model, batch, layout).logits(torch.arange(layout.input_ids.numel()))

    first, changed = random_items(1, seed=9, shortest=5, longest=5)[0], items[1:]
    tail = sum(item.tokens for item in changed)
    left, right = logits(Batch((items[0], *changed))), logits(Batch((first, *changed)))
    assert torch.equal(left[-tail:], right[-tail:])


def test_models_that_are_not_verified_are_padded_and_the_reason_is_said() -> None:
    from transformers import OPTConfig, OPTForCausalLM

    sizes = {"vocab_size": 64, "hidden_size": 32, "ffn_dim": 32, "num_hidden_layers": 2, "word_embed_proj_dim": 32}
    model = OPTForCausalLM(OPTConfig(**sizes, num_attention_heads=4))
    strategy = choose_strategy(model, "auto", 0, "stages.0.sft")
    assert strategy.name == "padded"
    assert strategy.reason == "opt is not among the models verified without padding"
    with pytest.raises(PlanError, match=r"stages.0.sft.batch.padding: padding is never, but opt .* padding: auto"):
        choose_strategy(model, "never", 0, "stages.0.sft")


def test_prompt_learning_adapters_are_padded() -> None:
    import warnings

    from peft import PromptTuningConfig, get_peft_model

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
        model = get_peft_model(tiny_llama(), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    assert "prompt-learning" in (segments_obstacle(model) or "")


def test_the_head_runs_at_the_asked_positions_only() -> None:
    model, seen = tiny_llama(), []
    model.lm_head.register_forward_hook(lambda module, given, out: seen.append(out.shape[1]))
    batch = Batch(tuple(random_items(3)))
    for padding in ("never", "always"):
        strategy = choose_strategy(model, padding, 0, "stages.0.sft")  # type: ignore[arg-type]
        with prepared(model, strategy, autocast=False):
            layout = strategy.lay_out(batch)
            assert Forward(model, batch, layout).logits(layout.positions).shape == (batch.supervised_tokens, 128)


def test_a_model_into_whose_classes_a_library_has_put_a_forward_of_its_own_is_padded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny_llama()
    kind = type(model.model.layers[0].self_attn)

    def forward(*given: object, **options: object) -> None: ...

    forward.__module__ = "quicklib.models.llama"
    monkeypatch.setattr(kind, "forward", forward)
    assert segments_obstacle(model) == "the forward of LlamaAttention was replaced by quicklib"
