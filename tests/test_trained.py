"""The report of what trains: part by part, each parameter once, in the plan and in its record."""

from __future__ import annotations

from dataclasses import dataclass, replace

from tunekit.display import plan_sections
from tunekit.testing import plan_for
from tunekit.values import Estimate, Trained, trained_parts


@dataclass
class Parameter:
    count: int
    requires_grad: bool = True
    dtype: str = "torch.float32"

    def numel(self) -> int:
        return self.count


class Model:
    def __init__(self, **parameters: Parameter) -> None:
        self.parameters = {name.replace("__", "."): each for name, each in parameters.items()}

    def named_parameters(self):
        return self.parameters.items()


LORA = Model(
    base_model__model__model__embed_tokens__weight=Parameter(50, requires_grad=False),
    base_model__model__model__layers__0__self_attn__q_proj__lora_A__default__weight=Parameter(4),
    base_model__model__model__layers__0__self_attn__q_proj__lora_B__default__weight=Parameter(6),
    base_model__model__model__layers__1__self_attn__q_proj__lora_A__default__weight=Parameter(4),
    base_model__model__model__layers__1__self_attn__q_proj__lora_B__default__weight=Parameter(
        6, dtype="torch.bfloat16"
    ),
    base_model__model__lm_head__modules_to_save__default__weight=Parameter(50),
)


def test_like_places_of_all_layers_are_one_part_and_dtypes_stand_apart():
    assert trained_parts(LORA) == (
        Trained("layers.*.self_attn.q_proj.lora_A", 2, 8, "float32"),
        Trained("layers.*.self_attn.q_proj.lora_B", 1, 6, "float32"),
        Trained("layers.*.self_attn.q_proj.lora_B", 1, 6, "bfloat16"),
        Trained("lm_head", 1, 50, "float32"),
    )


def test_a_plan_tells_the_dtype_that_the_run_will_store_them_in():
    assert {part.dtype for part in trained_parts(LORA, "float16")} == {"float16"}


def test_the_plan_shows_the_parts_once_for_stages_that_train_the_same():
    parts = trained_parts(LORA)
    estimate = Estimate(parameters=126, trainable=70, trained={"sft": parts, "dpo": parts, "reward": parts[:1]})
    shown = {section.title: section for section in plan_sections(replace(plan_for(), estimate=estimate))}
    first = shown["What trains in sft, dpo"]
    assert first.columns == ("part", "tensors", "parameters", "stored in")
    assert first.rows[0] == ("lm_head", "1", "50", "float32")
    assert shown["What trains in reward"].rows == (("layers.*.self_attn.q_proj.lora_A", "2", "8", "float32"),)


def test_parts_beyond_the_table_are_counted():
    parts = tuple(Trained(f"part{number}", 1, number, "float32") for number in range(1, 24))
    estimate = Estimate(parameters=300, trainable=276, trained={"sft": parts})
    (section,) = (each for each in plan_sections(replace(plan_for(), estimate=estimate)) if each.title == "What trains")
    assert len(section.rows) == 20
    assert section.rows[0][0] == "part23"
    assert section.note == "and 3 smaller parts, in plan.json"
