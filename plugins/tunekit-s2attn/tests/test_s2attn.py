"""Shifted sparse attention: the paper's, inside each sequence, in training alone; and what it is refused with."""

from __future__ import annotations

from functools import partial
from typing import Any

import pydantic
import pytest
import torch

import tunekit as tk
from tunekit.errors import PlanError, TunekitError
from tunekit.testing import PatchSuite, save_tiny_model, tiny_bundle
from tunekit.testing.observing import token_ids
from tunekit_dpo import Dpo, Orpo
from tunekit_freeze import Freeze
from tunekit_lora import Lora
from tunekit_s2attn import S2Attention
from tunekit_s2attn.attention import ShiftedSparse, groups
from tunekit_sft import Sft
from tunekit_train import Batch, Provided, TokenLogProbs
from tunekit_train.forward import Forward, Strategy, choose_strategy, prepared
from tunekit_train.segments import segments_attention
from tunekit_train.testing import CrossEntropy, bundle, family_model, random_items

CLOSE = {"rtol": 1e-5, "atol": 1e-6}
"""fp32: the same sums in another order."""


class TestS2Attention(PatchSuite):
    plugin = S2Attention(group=4)
    changes = frozenset({"training", "gradients"})


def paper(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, group: int) -> torch.Tensor:
    """Algorithm 1 of the paper, [batch, seq, heads, head_dim] each: shift half of the heads, attend, shift back.

    With the mask that the paper names against what wraps around: the tokens that the shift has put behind the last
    ones, and those last ones, do not see each other.
    """
    batch, length, heads, width = query.shape
    shifted = []
    for tensor in (query, key, value):
        first, second = tensor.chunk(2, dim=2)
        parts = torch.cat((first, second.roll(-group // 2, 1)), dim=2)
        shifted.append(parts.view(batch * length // group, group, heads, width).transpose(1, 2))
    query, key, value = shifted  # [groups, heads, group, head_dim]
    causal = torch.ones(group, group, dtype=torch.bool).tril()
    mask = causal.repeat(len(query), heads, 1, 1)
    wrapped = slice(length // group - 1, None, length // group)
    mask[wrapped, heads // 2 :, group // 2 :, : group // 2] = False
    scores = (query @ key.transpose(-1, -2) * width**-0.5).masked_fill(~mask, float("-inf"))
    out = (scores.softmax(-1) @ value).transpose(1, 2).reshape(batch, length, heads, width)
    first, second = out.chunk(2, dim=2)
    return torch.cat((first, second.roll(group // 2, 1)), dim=2)


def random_parts(length: int, heads: int, key_heads: int) -> tuple[torch.Tensor, ...]:
    """Query, key and value, [1, heads, seq, head_dim], that want a gradient."""
    made = torch.Generator().manual_seed(length)
    return tuple(
        torch.randn(1, count, length, 8, generator=made, requires_grad=True) for count in (heads, key_heads, key_heads)
    )


def borders(*lengths: int) -> torch.Tensor:
    return torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)


@pytest.mark.parametrize(("heads", "key_heads"), [(4, 4), (8, 4), (6, 3), (4, 1)])
def test_it_is_the_papers_attention_of_each_sequence(heads: int, key_heads: int) -> None:
    lengths, group, layer = (32, 16, 24), 8, torch.nn.Identity().train()
    parts = random_parts(sum(lengths), heads, key_heads)
    out, _ = ShiftedSparse(group)(layer, *parts, None, cu_seq_lens_q=borders(*lengths))
    whole = [part.repeat_interleave(heads // part.shape[1], dim=1).transpose(1, 2) for part in parts]
    expected = torch.cat(
        [paper(*each, group) for each in zip(*(part.split(lengths, dim=1) for part in whole), strict=True)], dim=1
    )
    torch.testing.assert_close(out, expected, **CLOSE)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(0))
    ours, theirs = (torch.autograd.grad((each * weights).sum(), parts) for each in (out, expected))
    for left, right in zip(ours, theirs, strict=True):
        torch.testing.assert_close(left, right, **CLOSE)


def test_the_last_group_of_a_sequence_may_be_shorter() -> None:
    assert groups([10, 4, 9], 4, 0) == [4, 4, 2, 4, 4, 4, 1]
    assert groups([10, 4, 9], 4, 2) == [2, 4, 4, 4, 2, 4, 3]


def test_one_group_that_covers_every_sequence_is_full_attention() -> None:
    parts, given = random_parts(30, 4, 2), {"cu_seq_lens_q": borders(16, 14)}
    layer = torch.nn.Identity().train()
    whole, _ = segments_attention(layer, *parts, None, **given)
    assert torch.allclose(ShiftedSparse(16)(layer, *parts, None, **given)[0], whole, **CLOSE)
    assert not torch.allclose(ShiftedSparse(14)(layer, *parts, None, **given)[0], whole, atol=1e-2)


def test_in_evaluation_attention_is_whole() -> None:
    ours, plain = tiny_bundle(), tiny_bundle()
    S2Attention(group=4).tunekit_patch(bundle=ours)
    ids = token_ids(length=30)
    torch.testing.assert_close(ours.model.eval()(ids).logits, plain.model.eval()(ids).logits)
    options = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 5, "do_sample": False}
    assert torch.equal(ours.model.generate(ids, **options), plain.model.generate(ids, **options))


def patched(family: str, group: int) -> Any:
    made = bundle(family_model(family))
    S2Attention(group=group).tunekit_patch(bundle=made)
    return made.model.train()


def loss_and_gradients(model: Any, batch: Batch, strategy: str) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    chosen = Strategy(strategy, "a test")  # type: ignore[arg-type]
    with prepared(model, chosen, autocast=False):
        forward = Forward(model, batch, chosen.lay_out(batch))
        total = CrossEntropy().sums(batch, Provided({TokenLogProbs(): TokenLogProbs().provide(forward)})).loss
        model.zero_grad()
        total.backward()
    return total.detach(), {name: each.grad.clone() for name, each in model.named_parameters()}


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "gpt_oss"])
def test_end_to_end_padded_and_one_by_one_are_the_same(family: str) -> None:
    """Plain heads, a sliding window, capped scores, sinks: with groups shorter than the sequences and the window."""
    model, batch = patched(family, 4), Batch(tuple(random_items(4, shortest=3, longest=20)))
    end_to_end, padded = (loss_and_gradients(model, batch, name) for name in ("segments", "padded"))
    alone = [loss_and_gradients(model, Batch((item,)), "segments") for item in batch.items]
    torch.testing.assert_close(end_to_end[0], sum(loss for loss, _ in alone))
    torch.testing.assert_close(padded[0], end_to_end[0])
    for name, gradient in end_to_end[1].items():
        message = partial("{} {}".format, name)
        torch.testing.assert_close(gradient, sum(each[name] for _, each in alone), rtol=1e-4, atol=2e-6, msg=message)
        torch.testing.assert_close(padded[1][name], gradient, rtol=1e-4, atol=2e-6, msg=message)
    whole = loss_and_gradients(family_model(family).train(), batch, "segments")[0]
    assert abs(whole - end_to_end[0]) > 1e-4


def test_rows_padded_on_the_left_say_the_same_as_on_the_right() -> None:
    model, ids = patched("llama", 4), torch.arange(3, 14)[None]
    blank, seen = torch.zeros(1, 5, dtype=torch.long), torch.ones_like(ids)
    left = model(torch.cat((blank, ids), 1), attention_mask=torch.cat((blank, seen), 1), position_ids=None).logits
    right = model(torch.cat((ids, blank), 1), attention_mask=torch.cat((seen, blank), 1)).logits
    # Positions differ by five everywhere, which rotations do not see.
    torch.testing.assert_close(left[:, 5:], right[:, :11], rtol=1e-4, atol=1e-5)


def test_a_token_is_heard_in_its_groups_alone_and_never_by_an_earlier_one() -> None:
    parts = random_parts(24, 4, 4)
    out, _ = ShiftedSparse(8)(torch.nn.Identity().train(), *parts, None, cu_seq_lens_q=borders(24))
    (heard,) = torch.autograd.grad(out[0, 13].sum(), parts[2])  # by token 13: its groups are 8..15 and 12..19
    assert {at for at in range(24) if heard[0, 0, at].any()} == set(range(8, 14))
    assert {at for at in range(24) if heard[0, 3, at].any()} == {12, 13}


def test_sequences_without_borders_in_one_row_are_an_error() -> None:
    model, ids = patched("llama", 4), torch.arange(3, 15)[None]
    positions = torch.cat((torch.arange(7), torch.arange(5)))[None]
    with pytest.raises(RuntimeError, match="positions restart inside a row, and nothing says where sequences end"):
        model(ids, position_ids=positions)


def test_what_does_not_hold_with_it_is_switched_off_and_recorded() -> None:
    strategy = choose_strategy(patched("llama", 4), "auto", 0, "stages.0.sft")
    assert (strategy.name, strategy.share_prompts) == ("segments", False)
    assert strategy.sharing_reason.startswith("groups are counted from the beginning of each sequence")


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # of torch.compile, hidden
def test_compiled_blocks_give_the_same_losses(tmp_path: Any) -> None:
    from tunekit_train import TrainConfig, train
    from tunekit_train.testing import context

    def losses(name: str, **compute: Any) -> list[float]:
        (tmp_path / name).mkdir()
        events: list[Any] = []
        options = TrainConfig(steps=3, compute=compute)
        train(CrossEntropy(), random_items(9), bundle(patched("llama", 4)), options, context(tmp_path / name, events))
        return [event.metrics["loss"] for event in events if event.kind == "step"]

    assert losses("compiled", compile=True, compile_backend="eager") == pytest.approx(losses("plain"), rel=1e-5)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny_model(tmp_path_factory.mktemp("s2attn") / "model"))


ROWS = [{"instruction": f"Say {number}.", "output": f"It is {number}. " * 12} for number in range(8)]
PAIRS = [{"instruction": f"Say {n}.", "chosen": f"It is {n}. " * 9, "rejected": f"No, {n}? " * 9} for n in range(6)]


def pipeline(model: str, *use: Any, stage: Any = None, data: Any = ROWS, group: int = 16) -> tk.Pipeline:
    stages = [stage or Sft(epochs=3, learning_rate=5e-3)]
    return tk.Pipeline(model=model, data=data, use=[S2Attention(group=group), *use], stages=stages)


def facts(run: tk.Run) -> dict[str, Any]:
    return run.record.finished_stages()[0]["facts"]


def test_a_run_learns_and_says_afterwards_what_ordinary_attention_says(model: str, tmp_path: Any) -> None:
    run = pipeline(model, Lora(rank=4)).run(tmp_path / "run")
    losses = [line["loss"] for line in run.metrics if line["kind"] == "step"]
    assert losses[-1] < losses[0]
    assert "groups of 16" in (run.folder / "reports.json").read_text()
    assert facts(run)["strategy"] == "segments"
    dense = pipeline(model, Lora(rank=4), group=2).run(tmp_path / "other")
    assert [line["loss"] for line in dense.metrics if line["kind"] == "step"] != losses


def test_frozen_layers_are_computed_each_time_and_a_shared_prompt_for_each_answer(model: str, tmp_path: Any) -> None:
    frozen = pipeline(model, Freeze(layers=1)).run(tmp_path / "frozen")
    assert facts(frozen)["frozen_layers"] == 0
    assert "in groups while training, and whole otherwise" in facts(frozen)["frozen_layers_reason"]
    paired = pipeline(model, Lora(rank=4), stage=Orpo(epochs=1), data=PAIRS).run(tmp_path / "pairs")
    assert facts(paired)["share_prompts"] is False


def test_a_group_that_no_sequence_exceeds_is_refused(model: str) -> None:
    with pytest.raises(
        PlanError, match=r"use.s2attn.group: is 1024, and no sequence has more than 1024 .* set it to 256"
    ):
        pipeline(model, Lora(), group=1024).plan()


def test_a_stage_with_a_reference_is_refused_in_plan_and_run(model: str, run_stage: Any) -> None:
    with pytest.raises(PlanError, match="trains with another attention than dpo scores its reference with"):
        pipeline(model, Lora(), stage=Dpo(epochs=1), data=PAIRS).plan()
    with pytest.raises(PlanError, match="compares what the model says in training with what it says in evaluation"):
        run_stage()


@pytest.fixture
def run_stage(tmp_path: Any) -> Any:
    """Train with a reference on a model that was patched, and never planned."""
    from tunekit_train import ReferenceLogProbs, TrainConfig, train
    from tunekit_train.testing import context

    class Compared(CrossEntropy):
        needs = (TokenLogProbs(), ReferenceLogProbs())

    def run() -> None:
        made = bundle(patched("llama", 4))
        train(Compared(), random_items(4), made, TrainConfig(steps=1), context(tmp_path))

    return run


def test_a_stage_that_learns_from_its_own_answers_is_refused(model: str) -> None:
    pytest.importorskip("tunekit_ppo")
    from tunekit_ppo import Ppo

    assert S2Attention.conflicts & Ppo.provides


@pytest.mark.parametrize("group", [0, 3, -4])
def test_a_group_that_has_no_half_is_refused(group: int) -> None:
    with pytest.raises(pydantic.ValidationError, match="group"):
        S2Attention(group=group)


def test_a_model_that_reads_more_than_text_is_refused() -> None:
    made = tiny_bundle()
    made.model.config.get_text_config = lambda *_, **__: object()
    with pytest.raises(TunekitError, match=r"use\.s2attn: the attention of LlamaForCausalLM cannot be replaced"):
        S2Attention(group=4).tunekit_patch(bundle=made)
