"""Rotary positions are scaled by the formulas of the papers, by a factor that follows from the wanted length."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pydantic
import pytest
import torch

import tunekit as tk
from tunekit.errors import PlanError, TunekitError
from tunekit.testing.options import shows
from tunekit.testing.tiny import save_tiny_model, tiny_config
from tunekit_rope import Rope, RopeConfig
from tunekit_rope.scaling import factor_of, reach_of, scale_

LENGTH, BASE, DIM = 128, 10_000.0, 32
"""Of the tiny model here: tokens it was trained for, base of its frequencies, width of a head."""
ROWS = [{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}] * 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny_model(tmp_path_factory.mktemp("rope") / "model", max_position_embeddings=LENGTH))


def opened(folder: str, **options: Any) -> Any:
    return tk.open_model(folder, use=[Rope(**options)])


def frequencies(model: Any) -> Any:
    """float64 [head width / 2] of a loaded model."""
    return model.model.rotary_emb.inv_freq.double()


def plain() -> Any:
    return 1.0 / BASE ** (torch.arange(0, DIM, 2, dtype=torch.float64) / DIM)


@shows("length")
@pytest.mark.parametrize(("length", "factor"), [(129, 2), (256, 2), (257, 3), (1000, 8)])
def test_the_factor_is_the_length_over_the_trained_one_rounded_up(folder: str, length: int, factor: int) -> None:
    assert factor_of(length, LENGTH) == factor
    config = opened(folder, scaling="linear", length=length).bundle.model.config
    assert config.rope_parameters["factor"] == factor
    assert config.max_position_embeddings == factor * LENGTH


@shows("original")
def test_a_model_may_have_been_trained_for_less_than_its_config_says(folder: str) -> None:
    config = opened(folder, length=256, original=64).bundle.model.config
    assert (config.rope_parameters["factor"], config.max_position_embeddings) == (4, 256)
    assert config.rope_parameters["original_max_position_embeddings"] == 64


@shows("scaling")
def test_linear_divides_every_frequency(folder: str) -> None:
    torch.testing.assert_close(
        frequencies(opened(folder, scaling="linear", length=512).bundle.model), plain() / 4, rtol=1e-6, atol=0
    )


def test_llama3_divides_long_waves_keeps_short_ones_and_blends_between(folder: str) -> None:
    found = frequencies(opened(folder, scaling="llama3", length=512).bundle.model)
    low, high = 1.0, 4.0
    expected = []
    for frequency in plain().tolist():
        turns = LENGTH * frequency / (2 * math.pi)  # how often it turns within the trained length
        share = min(1.0, max(0.0, (turns - low) / (high - low)))
        expected.append((1 - share) * frequency / 4 + share * frequency)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-5, atol=0)


def test_yarn_blends_by_turns_and_sharpens_attention(folder: str) -> None:
    model = opened(folder, scaling="yarn", length=512).bundle.model

    def dimension(turns: float) -> float:
        return DIM * math.log(LENGTH / (turns * 2 * math.pi)) / (2 * math.log(BASE))

    first, last = max(math.floor(dimension(32)), 0), min(math.ceil(dimension(1)), DIM - 1)
    ramp = ((torch.arange(DIM // 2, dtype=torch.float64) - first) / (last - first)).clamp(0, 1)
    expected = plain() / 4 * ramp + plain() * (1 - ramp)
    torch.testing.assert_close(frequencies(model), expected, rtol=1e-5, atol=0)
    assert model.model.rotary_emb.attention_scaling == pytest.approx(0.1 * math.log(4) + 1)


def test_dynamic_leaves_short_texts_alone_and_grows_with_long_ones(folder: str) -> None:
    talk, ids = opened(folder, scaling="dynamic", length=512), torch.arange(3, 503)[None]
    model = talk.bundle.model
    base = tk.open_model(folder).bundle.model
    with torch.no_grad():
        assert torch.equal(model(ids[:, :100]).logits, base(ids[:, :100]).logits)
        model(ids[:, :400])
    stretched = BASE * (4 * 400 / LENGTH - 3) ** (DIM / (DIM - 2))
    expected = 1.0 / stretched ** (torch.arange(0, DIM, 2, dtype=torch.float64) / DIM)
    torch.testing.assert_close(frequencies(model), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("scaling", ["linear", "dynamic", "yarn", "llama3"])
def test_it_reads_and_answers_as_far_as_was_asked_and_no_further(folder: str, scaling: str) -> None:
    text = "river " * 150  # more than the trained length, less than what is asked for
    with pytest.raises(TunekitError, match="reads 128 at most"):
        tk.open_model(folder).perplexity([text])
    talk = opened(folder, scaling=scaling, length=512)
    assert reach_of(talk.bundle.model.config) == 512
    assert math.isfinite(talk.perplexity([text]))
    with pytest.raises(TunekitError, match="reads 512 at most"):
        talk.perplexity(["river " * 600])


@shows("scaling")
def test_none_takes_off_what_a_model_comes_with(tmp_path: Path) -> None:
    scaled = {"rope_type": "yarn", "factor": 4.0, "rope_theta": BASE, "original_max_position_embeddings": LENGTH}
    folder = save_tiny_model(tmp_path / "model", max_position_embeddings=4 * LENGTH, rope_parameters=scaled)
    model = opened(str(folder), scaling="none").bundle.model
    torch.testing.assert_close(frequencies(model), plain(), rtol=1e-6, atol=0)
    assert model.config.max_position_embeddings == LENGTH


@pytest.mark.parametrize("scaling", ["linear", "dynamic", "yarn", "llama3"])
def test_a_saved_model_is_not_scaled_twice(folder: str, tmp_path: Path, scaling: str) -> None:
    options = {"scaling": scaling, "length": 500}
    model = opened(folder, **options).bundle.model
    model.save_pretrained(tmp_path / "saved")
    tk.open_model(folder).bundle.tokenizer.save_pretrained(tmp_path / "saved")
    again = opened(str(tmp_path / "saved"), **options).bundle.model
    assert again.config.rope_parameters == model.config.rope_parameters
    assert again.config.max_position_embeddings == model.config.max_position_embeddings
    with pytest.raises(TunekitError, match=f"is scaled by {scaling} already"):
        opened(str(tmp_path / "saved"), scaling=scaling, length=5000)


def test_of_layers_with_other_positions_those_of_full_attention_are_scaled() -> None:
    from transformers import Gemma3TextConfig

    config = Gemma3TextConfig(num_hidden_layers=2, max_position_embeddings=LENGTH)
    before = dict(config.rope_parameters["sliding_attention"])
    scale_(config, RopeConfig(scaling="linear", length=512))
    assert config.rope_parameters["sliding_attention"] == before
    assert config.rope_parameters["full_attention"]["factor"] == 4
    assert reach_of(config) == 512


def own_frequencies(config: Any) -> tuple[Any, float]:
    """What transformers makes of a config by its own function: frequencies, and what attention is sharpened by."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    return ROPE_INIT_FUNCTIONS[config.rope_parameters["rope_type"]](config, torch.device("cpu"))


def test_yarn_that_a_model_comes_with_keeps_the_borders_and_the_sharpness_of_its_makers() -> None:
    """Of gpt-oss, whose borders are not rounded, and DeepSeek, which says by how much attention is sharpened."""
    from transformers import DeepseekV3Config, GptOssConfig

    deepseek = {"rope_type": "yarn", "factor": 40.0, "mscale": 0.7, "mscale_all_dim": 1.0, "beta_fast": 30}
    deepseek |= {"beta_slow": 2, "original_max_position_embeddings": 4096, "rope_theta": 10_000.0}
    for config, length, factor in (
        (GptOssConfig(), 131_072, 32),
        (DeepseekV3Config(rope_parameters=deepseek, max_position_embeddings=163_840), 163_840, 40),
    ):
        before, (expected, sharpness) = config.to_dict(), own_frequencies(config)
        scale_(config, RopeConfig(scaling="yarn", length=length))
        assert config.to_dict() == before
        found, ours = own_frequencies(config)
        assert torch.equal(found, expected)
        assert ours == sharpness
        config.rope_parameters = {
            name: config.rope_parameters[name]
            for name in ("rope_type", "factor", "rope_theta", "original_max_position_embeddings")
        }
        assert not torch.allclose(own_frequencies(config)[0], expected, rtol=1e-3)  # or nothing is shown here
        for other in ({"length": length // factor * 2}, {"length": length, "original": 2048}, {"scaling": "linear"}):
            with pytest.raises(TunekitError, match=f"is scaled by yarn already \\(factor {factor}\\)"):
                scale_(config, RopeConfig(**{"length": length, **other}))


def test_a_factor_that_a_config_leaves_to_its_lengths_is_known() -> None:
    from transformers import LlamaConfig

    said = {"rope_type": "yarn", "factor": None, "rope_theta": BASE, "original_max_position_embeddings": 512}
    config = LlamaConfig(max_position_embeddings=2048, rope_parameters=said)
    scale_(config, RopeConfig(scaling="yarn", length=2048))
    assert (config.rope_parameters, reach_of(config)) == (said, 2048)


@pytest.mark.parametrize("scaling", ["linear", "yarn", "llama3"])
def test_what_belongs_to_positions_however_they_are_scaled_stays(scaling: str) -> None:
    """Sections of an image's positions and how they lie; the share of a head that turns."""
    from transformers import LlamaConfig

    own = {"rope_theta": BASE, "mrope_section": [4, 6, 6], "mrope_interleaved": True, "partial_rotary_factor": 0.5}
    config = LlamaConfig(max_position_embeddings=LENGTH, rope_parameters={"rope_type": "default", **own})
    scale_(config, RopeConfig(scaling=scaling, length=512))
    assert {name: config.rope_parameters.get(name) for name in own} == own
    scale_(config, RopeConfig(scaling="none"))
    assert config.rope_parameters == {"rope_type": "default", **own}


def test_positions_of_another_kind_are_not_taken_for_scaled_ones() -> None:
    from transformers import LlamaConfig

    config = LlamaConfig(max_position_embeddings=LENGTH)
    config.rope_parameters = {"rope_type": "proportional", "rope_theta": BASE, "partial_rotary_factor": 0.25}
    for options in ({"scaling": "none"}, {"length": 512}):
        with pytest.raises(TunekitError, match="by proportional already"):
            scale_(config, RopeConfig(**options))


def test_a_model_without_rotary_positions_is_refused() -> None:
    from transformers import GPT2Config

    with pytest.raises(TunekitError, match="gpt2 has no rotary positions"):
        scale_(GPT2Config(), RopeConfig(length=4096))


def test_a_length_that_the_model_reads_anyway_is_refused() -> None:
    with pytest.raises(TunekitError, match="length is 2000, and the model reads 2048 as it is"):
        scale_(tiny_config(), RopeConfig(length=2000))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scaling": "yarn"}, "length is missing"),
        ({"scaling": "none", "length": 9}, "mean nothing where scaling is none"),
        ({"length": 64, "original": 64}, "the model reads 64 as it is"),
    ],
)
def test_options_that_contradict_each_other_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(pydantic.ValidationError, match=message):
        Rope(**options)


def trained(folder: str, limit: int, **options: Any) -> tk.Pipeline:
    stage = {"sft": {"epochs": 1, "batch": {"max_length": limit}}}
    use = {"precision": {"compute": "fp32"}, "lora": {"rank": 2}, "rope": options}
    return tk.Pipeline(folder, ROWS, use=use, stages=[stage])


def test_a_plan_says_the_factor_and_refuses_longer_stages(folder: str) -> None:
    plan = trained(folder, 512, length=512).plan()
    assert plan.estimate is not None
    assert "rotary positions: yarn, factor 4, 128 tokens become 512" in plan.estimate.notes
    with pytest.raises(PlanError, match=r"stages\.0\.sft\.batch\.max_length: is 600, and use\.rope\.length 512"):
        trained(folder, 600, length=512).plan()


def test_training_beyond_the_trained_length_is_refused_where_positions_follow_the_company(folder: str) -> None:
    with pytest.raises(PlanError, match="a loss would depend on its batch"):
        trained(folder, 256, scaling="dynamic", length=512).plan()
    trained(folder, LENGTH, scaling="dynamic", length=512).plan()


def test_a_run_opens_again_with_the_positions_it_was_trained_with(folder: str, tmp_path: Path) -> None:
    run = trained(folder, 256, length=256).run(tmp_path / "run")
    again = tk.open_run(tmp_path / "run")
    assert torch.equal(frequencies_of(again), frequencies_of(run))
    assert not torch.allclose(frequencies_of(run), plain())
    assert again.chat("hi", max_new_tokens=4) == run.chat("hi", max_new_tokens=4)


def frequencies_of(run: Any) -> Any:
    return frequencies(run.bundle.model.get_base_model())


def test_an_option_that_comes_later_makes_no_other_base_of_what_was_trained_before() -> None:
    class Later(RopeConfig):
        window: int = 4

    later = Rope(length=8192)
    later.config = Later(length=8192)
    assert later.base == Rope(length=8192).base == {"scaling": "yarn", "length": 8192}
