"""New tokens have rows that begin as is said, train, and are there again whenever the run is opened."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pydantic
import pytest
import torch

import tunekit as tk
from tunekit.errors import PlanError
from tunekit.testing.options import shows
from tunekit.testing.runs import estimate_for, plan_for, run_context
from tunekit.testing.tiny import FP32, MIXED, save_tiny_model, tiny_model, tiny_tokenizer
from tunekit.values import EstimateRequest, LoadRequest, ModelBundle, Start
from tunekit_lora import Lora
from tunekit_vocabulary import Vocabulary
from tunekit_vocabulary.training import refuse_other_rows

PLAN, CALL = "<|plan|>", "<|call|>"
ROWS = [
    {"messages": [{"role": "user", "content": f"river {at}"}, {"role": "assistant", "content": f"ambertown {at}"}]}
    for at in range(12)
]


@pytest.fixture
def grown() -> Callable[..., Any]:
    """The tiny model with these options, as (model, tokenizer, report)."""

    def grow(precision: Any = FP32, model: Any = None, **options: Any) -> tuple[Any, Any, Any]:
        plugin, tokenizer = Vocabulary(**options), tiny_tokenizer()
        plugin.tunekit_patch_tokenizer(tokenizer, run_context(plugin))
        model = model or tiny_model(dtype=precision.weights)
        return model, tokenizer, plugin.tunekit_patch(ModelBundle(model, tokenizer, "tiny", precision))

    return grow


def known() -> int:
    """Rows of the base that belong to a token."""
    return max(tiny_tokenizer().get_vocab().values()) + 1


@shows("multiple")
@pytest.mark.parametrize(("multiple", "rows"), [(64, 576), (100, 600), (1, 513)])
def test_an_embedding_that_is_too_small_grows_to_a_multiple(grown: Any, multiple: int, rows: int) -> None:
    missing = 513 - known()
    model, tokenizer, _ = grown(tokens=[f"w{at}" for at in range(missing)], multiple=multiple)
    assert len(tokenizer) == 513
    assert model.get_input_embeddings().weight.shape[0] == model.lm_head.weight.shape[0] == rows
    assert model.config.vocab_size == rows


def test_rows_that_are_enough_are_kept_and_those_of_new_tokens_begun(grown: Any) -> None:
    model, tokenizer, _ = grown(special_tokens=[PLAN])
    assert model.config.vocab_size == 512
    changed = (model.lm_head.weight != tiny_model().lm_head.weight).any(dim=1).nonzero().flatten().tolist()
    assert changed == [tokenizer.convert_tokens_to_ids(PLAN)] == [known()]


@shows("start", "noise")
@pytest.mark.parametrize("noise", [0.01, 0.5])
def test_a_new_row_is_the_mean_of_the_old_and_noise_of_the_stated_deviation(grown: Any, noise: float) -> None:
    words = [f"w{at}" for at in range(64)]
    model, tokenizer, _ = grown(tokens=words, noise=noise)
    ids = tokenizer.convert_tokens_to_ids(words)
    base = tiny_model()
    for new, old in zip(matrices(model), matrices(base), strict=True):
        difference = new[ids] - old[: known()].double().mean(dim=0)
        assert difference.std().item() == pytest.approx(noise, rel=0.03)  # 8192 numbers: known to 0.8%
        assert abs(difference.mean().item()) < noise / 20
    assert not torch.allclose(*(each[ids] for each in matrices(model)))


@shows("start")
def test_without_noise_it_is_the_mean_alone(grown: Any) -> None:
    model, tokenizer, _ = grown(special_tokens=[PLAN, CALL], start="mean")
    for new, old in zip(matrices(model), matrices(tiny_model()), strict=True):
        for token in (PLAN, CALL):
            row = new[tokenizer.convert_tokens_to_ids(token)]
            torch.testing.assert_close(row, old[: known()].mean(dim=0), atol=1e-6, rtol=0)


@shows("start", "special_tokens", "tokens")
def test_a_described_token_begins_as_the_mean_of_the_words_that_describe_it(grown: Any) -> None:
    described = {PLAN: "a plain answer", "ambertown": "the river town"}
    model, tokenizer, _ = grown(
        special_tokens={PLAN: described[PLAN]}, tokens={"ambertown": described["ambertown"]}, start="description"
    )
    for new, old in zip(matrices(model), matrices(tiny_model()), strict=True):
        for token, words in described.items():
            ids = tiny_tokenizer()(words)["input_ids"]
            row = new[tokenizer.convert_tokens_to_ids(token)]
            torch.testing.assert_close(row, old[ids].mean(dim=0), atol=1e-6, rtol=0)


def test_tied_ends_stay_one_matrix(grown: Any) -> None:
    model, tokenizer, _ = grown(model=tiny_model(tie_word_embeddings=True), tokens=[f"w{at}" for at in range(200)])
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.lm_head.weight.shape[0] % 64 == 0
    assert model.lm_head.weight.shape[0] >= len(tokenizer)


@shows("seed")
def test_rows_follow_from_the_seed_in_any_dtype(grown: Any) -> None:
    first, again, other = (grown(tokens=["ambertown"], seed=seed)[0].lm_head.weight for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    half = grown(MIXED, tokens=["ambertown"])[0].lm_head.weight
    torch.testing.assert_close(half.float(), first, atol=1e-2, rtol=1e-2)


def test_global_random_state_is_left_alone(grown: Any) -> None:
    before = torch.get_rng_state()
    grown(tokens=[f"w{at}" for at in range(200)])
    assert torch.equal(before, torch.get_rng_state())


@shows("special_tokens", "tokens")
def test_special_tokens_are_for_templates_and_ordinary_ones_for_texts(grown: Any) -> None:
    _, tokenizer, _ = grown(special_tokens=[PLAN], tokens=["ambertown"])
    assert PLAN in tokenizer.all_special_tokens
    assert "ambertown" not in tokenizer.all_special_tokens
    assert len(tokenizer("ambertown")["input_ids"]) == 1
    assert tokenizer.decode(tokenizer(f"{PLAN}ambertown")["input_ids"], skip_special_tokens=True) == "ambertown"


def test_a_token_that_is_known_already_is_said_and_its_row_kept(grown: Any) -> None:
    model, _, report = grown(special_tokens=["<|im_start|>"])
    assert torch.equal(model.lm_head.weight, tiny_model().lm_head.weight)
    assert report.summary == "512 rows are enough"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokens": [" "]}, "is no token"),
        ({"tokens": ["a b", "a b"]}, "is named twice"),
        ({"special_tokens": [PLAN], "tokens": [PLAN]}, "is named twice"),
        ({"tokens": ["new"], "start": "mean", "noise": 0.1}, "noise acts only where"),
        ({"tokens": ["new"], "start": "description"}, "'new' has none"),
        ({"tokens": {"new": "a word"}}, "descriptions act only where"),
        ({"start": "description"}, "no new token to describe"),
    ],
)
def test_options_that_contradict_each_other_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(pydantic.ValidationError, match=message):
        Vocabulary(**options)


def test_the_estimate_counts_new_rows_and_what_trains_of_them() -> None:
    words = [f"w{at}" for at in range(200)]
    plugin, tokenizer = Vocabulary(tokens=words), tiny_tokenizer()
    plain = estimate_for()
    plugin.tunekit_patch_tokenizer(tokenizer, run_context(plugin))
    request = EstimateRequest(plan_for(plugin), LoadRequest("tiny", FP32))
    found = plugin.tunekit_estimate(request, replace(plain, tokenizer=tokenizer))
    added = 2 * 128 * (found.skeleton.config.vocab_size - 512)
    assert found.skeleton.config.vocab_size >= len(tokenizer)
    assert (found.parameters, found.trainable) == (plain.parameters + added, plain.trainable + added)
    assert found.memory["weights"] == plain.memory["weights"] + 4 * added


# Whole runs.


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny_model(tmp_path_factory.mktemp("base") / "model"))


WORDS = tuple(f"w{at}" for at in range(150))


def pipeline(base: str, *plugins: Any, rows: Any = None, **options: Any) -> tk.Pipeline:
    use = {"vocabulary": {"tokens": ["ambertown", *WORDS], **options}, **dict(plugins)}
    stage = {"sft": {"epochs": 1, "learning_rate": 1e-2, "checkpoint": {"every": 2}}}
    return tk.Pipeline(base, rows or ROWS, use={"precision": {"compute": "fp32"}, **use}, stages=[stage])


def row_of(run: Any, token: str = "ambertown") -> Any:
    """The rows of a token as the model computes with them, in embedding and head."""
    at = run.bundle.tokenizer.convert_tokens_to_ids(token)
    model = run.bundle.model.get_base_model() if hasattr(run.bundle.model, "get_base_model") else run.bundle.model
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    return torch.stack([end.weight[at].detach().float().cpu() for end in ends])


@shows("train")
@pytest.mark.parametrize("train", [True, False])
def test_after_training_an_adapter_alone_the_rows_are_there_again(base: str, tmp_path: Path, train: bool) -> None:
    run = pipeline(base, ("lora", {"rank": 2}), train=train).run(tmp_path / "run")
    use = {"precision": {"compute": "fp32"}, "vocabulary": {"tokens": ["ambertown", *WORDS]}}
    fresh = tk.open_model(base, use=use)
    moved = not torch.equal(row_of(run), row_of(fresh))
    assert moved is train
    again = tk.open_run(tmp_path / "run")
    assert torch.equal(row_of(again), row_of(run))
    assert torch.equal(row_of(again, "w3"), row_of(run, "w3"))
    assert again.chat("river 1", max_new_tokens=8) == run.chat("river 1", max_new_tokens=8)
    assert run.plan.estimate.trainable == sum(p.numel() for p in run.bundle.model.parameters() if p.requires_grad)
    saved = sum(file.stat().st_size for file in (run.adapter or Path()).glob("adapter_model*"))
    assert saved < 600_000, "the adapter holds its own weights, not those of the whole embedding"


def test_rows_trained_with_all_weights_are_not_begun_anew(base: str, tmp_path: Path) -> None:
    run = pipeline(base).run(tmp_path / "run")
    again = tk.open_run(tmp_path / "run")
    assert torch.equal(row_of(again), row_of(run))
    assert again.chat("river 1", max_new_tokens=8) == run.chat("river 1", max_new_tokens=8)


def test_a_merged_adapter_keeps_the_rows_it_has_trained(base: str, tmp_path: Path) -> None:
    vocabulary = Vocabulary(tokens=["ambertown", *WORDS])
    session = tk.Session(base, use=[vocabulary, Lora(rank=2)])
    stage = {"sft": {"epochs": 1, "learning_rate": 1e-2}}
    trained = row_of(session.train("own", ROWS, [stage], tmp_path / "run"))
    session.merge("own", tmp_path / "merged")
    merged = tk.open_model(str(tmp_path / "merged"), use=[vocabulary])
    torch.testing.assert_close(row_of(merged), trained)
    assert len(merged.bundle.tokenizer("ambertown")["input_ids"]) == 1


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")  # PEFT's, from_pretrained as it is
def test_plain_peft_opens_the_adapter_with_the_rows_it_has_trained(base: str, tmp_path: Path) -> None:
    import peft
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run = pipeline(base, ("lora", {"rank": 2})).run(tmp_path / "run")
    tokenizer = AutoTokenizer.from_pretrained(str(run.adapter))
    model = AutoModelForCausalLM.from_pretrained(base)
    model.resize_token_embeddings(len(tokenizer), pad_to_multiple_of=64, mean_resizing=False)
    opened = peft.PeftModel.from_pretrained(model, str(run.adapter)).get_base_model()
    at = tokenizer.convert_tokens_to_ids("ambertown")
    ends = (opened.get_input_embeddings(), opened.get_output_embeddings())
    assert torch.equal(torch.stack([end.weight[at].detach() for end in ends]), row_of(run))


@pytest.mark.parametrize(
    ("plugins", "where"),
    [
        ([("freeze", {"layers": 1})], "use.vocabulary.train"),
        ([("full", {"freeze_embeddings": True})], "use.vocabulary.train"),
    ],
)
def test_what_would_leave_new_rows_as_they_began_is_refused(base: str, plugins: Any, where: str) -> None:
    with pytest.raises(PlanError) as refused:
        pipeline(base, *plugins).plan()
    assert [problem.where for problem in refused.value.problems] == [where]
    pipeline(base, *plugins, train=False).plan(estimate=False)
    pipeline(base, ("freeze", {"layers": 1, "extra": ["embed_tokens", "lm_head"]})).plan(estimate=False)


def test_a_low_rank_update_of_the_embedding_is_refused_beside_rows_that_train(base: str) -> None:
    with pytest.raises(PlanError, match="gets a low-rank update, and the rows of new tokens are to train"):
        pipeline(base, ("lora", {"rank": 2, "targets": ["embed_tokens", "q_proj"]})).plan()


def test_a_start_that_trains_the_rows_of_one_end_is_told_by_the_other(grown: Any, tmp_path: Path) -> None:
    model, tokenizer, _ = grown(tokens=[PLAN])
    ids = [tokenizer.convert_tokens_to_ids(PLAN)]
    for rows, what in (
        ({}, r"trains no rows of the new tokens, and use\.vocabulary\.train is true; set .*train: false, or start"),
        ({"model.embed_tokens": ids}, r"trains no rows of the new tokens in lm_head, and .* is true; start fresh"),
        ({"lm_head": ids}, r"trains no rows of the new tokens in model\.embed_tokens, and .* is true; start fresh"),
    ):
        saved = {"peft_type": "LORA", "trainable_token_indices": rows}
        (tmp_path / "adapter_config.json").write_text(json.dumps(saved))
        with pytest.raises(PlanError, match=rf"^1 problem in the plan:\n.*a\.key: {tmp_path} {what}"):
            refuse_other_rows(True, Start(tmp_path, "a.key"), model)


def test_an_embedding_that_trains_whole_trains_the_new_rows_with_it(base: str, tmp_path: Path) -> None:
    lora = ("lora", {"rank": 2, "modules_to_save": ["embed_tokens", "lm_head"]})
    run = pipeline(base, lora).run(tmp_path / "run")
    assert torch.equal(row_of(tk.open_run(tmp_path / "run")), row_of(run))


def test_data_with_tokens_that_have_no_row_is_refused_with_the_way_out(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "model")
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([*WORDS, "ambertown"])
    tokenizer.save_pretrained(str(folder))
    stage = {"sft": {"epochs": 1}}
    with pytest.raises(PlanError, match=r"the embedding of the model has 512 rows; add `vocabulary: {}` to use"):
        tk.Pipeline(str(folder), ROWS, use=["lora"], stages=[stage]).plan()
    plan = tk.Pipeline(str(folder), ROWS, use={"lora": {}, "vocabulary": {}}, stages=[stage]).plan()
    assert plan.estimate is not None


def matrices(model: Any) -> tuple[Any, Any]:
    return model.model.embed_tokens.weight.detach(), model.lm_head.weight.detach()
