"""Recipes: four ways to say the same thing, and everything wrong said at once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tunekit.errors import RecipeError
from tunekit.recipe import from_code, from_file, from_mapping, json_schema

YAML = """
model: some/model
data: rows.jsonl
use:
  steps_helper: {alpha: 2.5e-1}
  sizes:
stages:
  - steps: {steps: 2}
output: runs/x
"""


def write(folder: Path, text: str, name: str = "recipe.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def messages(error: RecipeError) -> dict[str, str]:
    return {problem.where: f"{problem.message}; {problem.remedy}" for problem in error.problems}


def test_yaml_json_overrides_and_python_give_the_same_recipe(tmp_path, world):
    from fake_world import Both, Steps

    yaml = from_file(write(tmp_path, "model: m\ndata: d.jsonl\nuse: {sizes: {}}\nstages: [{steps: {steps: 2}}]\n"))
    text = json.dumps(
        {"model": "m", "data": [{"path": "d.jsonl"}], "use": {"sizes": None}, "stages": [{"steps": {"steps": 2}}]}
    )
    as_json = from_file(write(tmp_path, text, "recipe.json"))
    short = "model: x\ndata: d.jsonl\nstages: [steps]\n"
    overridden = from_file(write(tmp_path, short, "o.yaml"), ["model=m", "use.sizes={}", "stages.steps.steps=2"])
    code = from_code("m", "d.jsonl", [Both()], [Steps(steps=2)])
    assert yaml == as_json == overridden == code


def test_a_recipe_survives_being_written_and_read(tmp_path):
    recipe = from_file(write(tmp_path, YAML))
    assert from_mapping(recipe.to_mapping()) == recipe


def test_numbers_in_scientific_notation_are_numbers(tmp_path):
    assert from_file(write(tmp_path, YAML.replace("2.5e-1", "1e-4"))).use[0].options == {"alpha": 1e-4}


def test_each_value_knows_where_it_came_from(tmp_path):
    recipe = from_file(write(tmp_path, YAML), ["stages.0.steps.steps=5", "use.new.x=1"])
    assert recipe.origins["model"] == "file"
    assert recipe.origins["stages.0.steps.steps"] == "override"
    assert recipe.origins["use.new.x"] == "override"
    assert recipe.origins["use.steps_helper.alpha"] == "file"


def test_every_problem_is_told_at_once_with_its_key_and_the_nearest_name():
    wrong = {
        "modle": "m",
        "data": [{"path": "x", "limt": 3}, 7],
        "use": ["a"],
        "stages": [{"a": 1, "b": 2}, {"sft": 3}],
        "seed": "x",
        "output": 5,
    }
    with pytest.raises(RecipeError) as caught:
        from_mapping(wrong)
    found = messages(caught.value)
    assert "did you mean 'model'" in found["modle"]
    assert "is missing" in found["model"]
    assert "did you mean 'limit'" in found["data.limt"]
    assert "is no data source" in found["data.1"]
    assert "not a mapping of plugins" in found["use"]
    assert "is not one stage" in found["stages.0"]
    assert "not a mapping of options" in found["stages.1.sft"]
    assert "not a whole number" in found["seed"]
    assert "not text" in found["output"]
    assert str(caught.value).startswith("9 problems in the recipe")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("model: [", "mend the YAML"),
        ("model: a\nmodel: b\nstages: [s]", "key 'model' is given twice"),
        ("model: !!python/object/apply:os.system ['true']", "could not determine a constructor"),
        ("", "the recipe is empty"),
        ("- a", "is a list, not a mapping"),
        ("model: {[a]: 1}", "line 1: found unhashable key; mend the YAML"),
        ("model: a\nuse: &a {lora: *a}", "line 2: found unconstructable recursive node"),
        ("model: '\x07'", "special characters are not allowed"),
        ("model: 2024-99-99", "month must be in 1..12; mend the YAML"),
        ("model: " + "[" * 3000, "is nested too deeply; mend the YAML"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused(tmp_path, text, said):
    with pytest.raises(RecipeError, match=said):
        from_file(write(tmp_path, text))


def test_a_malformed_json_recipe_names_the_line(tmp_path):
    with pytest.raises(RecipeError, match=r"r.json, line 2"):
        from_file(write(tmp_path, '{"model": "m",\n oops}', "r.json"))


def test_json_that_is_nested_too_deeply_is_refused(tmp_path):
    with pytest.raises(RecipeError, match="is nested too deeply; mend the JSON"):
        from_file(write(tmp_path, "[" * 100_000, "r.json"))


def test_a_mapping_takes_in_another_and_what_it_says_itself_goes_before(tmp_path):
    text = "model: m\nstages: [s]\ndata: [&a {path: a, limit: 1, split: test}, {<<: *a, limit: 2, path: b}]\n"
    first, second = from_file(write(tmp_path, text)).data
    assert (first.limit, second.path, second.limit, second.split) == (1, "b", 2, "test")


@pytest.mark.parametrize(
    ("source", "where", "said"),
    [
        ({"path": "a", "lim it": 3}, "data.lim it", "did you mean 'limit'"),
        ({"path": "a", "": 3}, "data.", "is not an option"),
        ({"path": "a", "columns": {"my text": 3}}, "data.columns.my text", "valid string"),
        ({"path": "a", "limit": True}, "data.limit", "valid integer"),
        ({"path": "a", "weight": float("inf")}, "data.weight", "finite"),
        ({"path": "a", "name": 5}, "data.name", "valid tuple"),
        ({"train": [{"text": "a"}], "test": [{"text": "b"}]}, "data.0", "several data sets (train, test); give one"),
    ],
)
def test_an_option_of_a_source_that_cannot_be_is_named_as_it_was_written(source, where, said):
    with pytest.raises(RecipeError) as caught:
        from_mapping({"model": "m", "stages": ["s"], "data": source})
    assert said in messages(caught.value)[where]


@pytest.mark.parametrize("name", [5, [5], [["a"]]])
def test_a_name_that_is_none_is_refused_where_a_collection_is_named(tmp_path, name):
    path = write(tmp_path, "a: a.jsonl\n5: b.jsonl\n", "datasets.yaml")
    with pytest.raises(RecipeError, match=r"data\.name.* valid string"):
        from_mapping({"model": "m", "stages": ["s"], "data": {"path": str(path), "name": name}})


def test_a_path_too_long_for_a_file_system_is_left_to_who_opens_it(tmp_path):
    (source,) = from_file(write(tmp_path, f"model: m\nstages: [s]\ndata: {'a' * 5000}\n")).data
    assert source.path == "a" * 5000


def test_a_key_twice_in_json_is_refused(tmp_path):
    with pytest.raises(RecipeError, match="'model' is given twice"):
        from_file(write(tmp_path, '{"model": "m", "model": "n"}', "r.json"))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(RecipeError, match="no such recipe file"):
        from_file(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("use.lora", "has no key and `=`"),
        ("stages.4.x=1", "there is no item 4"),
        ("stages.dpo.y=1", "names none of the items"),
        ("model.x=1", "which has no keys"),
        ("use.a.b=[", "write it as key.path=value"),
        ("use.a.b={[a]: 1}", "found unhashable key"),
        ("use.a.b=" + "[" * 3000, "recursion"),
    ],
)
def test_a_malformed_override_says_how_to_write_one(tmp_path, override, said):
    with pytest.raises(RecipeError, match=said):
        from_file(write(tmp_path, YAML), [override])


def test_the_only_source_and_a_stage_by_name_can_be_overridden(tmp_path):
    recipe = from_file(write(tmp_path, YAML), ["data.limit=7", "stages.steps.data=other.jsonl", "data.format=text"])
    assert (recipe.data[0].limit, recipe.data[0].format) == (7, "text")
    assert recipe.stages[0].data is not None
    assert recipe.stages[0].data[0].path == "other.jsonl"


def test_paths_beside_the_recipe_are_found_from_anywhere(tmp_path):
    (tmp_path / "rows.jsonl").write_text("{}")
    assert from_file(write(tmp_path, YAML)).data[0].path == str(tmp_path / "rows.jsonl")


def test_rows_and_the_same_plugin_twice_in_python(world):
    from fake_world import Both

    assert from_code("m", [{"text": "a"}]).data[0].rows == ({"text": "a"},)
    with pytest.raises(RecipeError, match=r"use\.sizes: is given twice"):
        from_code("m", "d", [Both(), Both()])


def test_the_schema_accepts_what_the_reader_accepts_and_no_more(world):
    import jsonschema

    schema = json_schema()
    good = {"model": "m", "data": "d", "use": {"sizes": None}, "stages": [{"steps": {"steps": 2, "data": "e"}}]}
    jsonschema.validate(good, schema)
    for wrong in (
        {"stages": []},
        {**good, "nonsense": 1},
        {**good, "use": {"lroa": {}}},
        {**good, "stages": [{"steps": {"steps": 0}}]},
        {**good, "stages": [{"steps": {"stpes": 1}}]},
    ):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, schema)
