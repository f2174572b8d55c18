"""Collections: data sets by name, from a file of our own or from LLaMA-Factory's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tunekit.errors import RecipeError
from tunekit.recipe.collections import is_collection, open_collection
from tunekit.recipe.model import SourceOptions

CHAT_TAGS = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
OUR_CHAT_TAGS = {"role": "role", "content": "content", "user": "user", "assistant": "assistant"}


def _info(folder: Path, **entries: Any) -> Path:
    path = folder / "dataset_info.json"
    path.write_text(json.dumps(entries), encoding="utf-8")
    return path


def _one(folder: Path, entry: Any, **options: Any) -> dict[str, Any]:
    (source,) = open_collection(_info(folder, data=entry), ["data"], options, "data")
    SourceOptions.model_validate(source)
    return source


def _refused(folder: Path, entry: Any) -> str:
    with pytest.raises(RecipeError) as raised:
        open_collection(_info(folder, data=entry), ["data"], {}, "data")
    return str(raised.value).replace(str(folder), "FOLDER")


# LLaMA-Factory's file


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({"file_name": "a.json"}, {"format": "alpaca"}),
        (
            {
                "file_name": "a.json",
                "formatting": "sharegpt",
                "columns": {"messages": "conversations", "tools": "tools"},
            },
            {"format": "sharegpt", "columns": {"conversations": "conversations", "tools": "tools"}},
        ),
        (
            {
                "file_name": "a.json",
                "ranking": True,
                "formatting": "sharegpt",
                "columns": {"messages": "conversations", "chosen": "chosen", "rejected": "rejected"},
            },
            {
                "format": "preference",
                "columns": {"conversations": "conversations", "chosen": "chosen", "rejected": "rejected"},
            },
        ),
        (
            {
                "file_name": "a.json",
                "formatting": "sharegpt",
                "columns": {"messages": "messages", "kto_tag": "label"},
                "tags": CHAT_TAGS,
            },
            {"format": "labelled", "columns": {"conversations": "messages", "label": "label"}, "tags": OUR_CHAT_TAGS},
        ),
        (
            {"file_name": "a.json", "columns": {"prompt": "q", "query": "i", "response": "a", "history": "h"}},
            {"format": "alpaca", "columns": {"instruction": "q", "input": "i", "output": "a", "history": "h"}},
        ),
        (
            {"file_name": "a.json", "ranking": True, "columns": {"prompt": "q", "chosen": "c", "rejected": "r"}},
            {"format": "preference", "columns": {"instruction": "q", "chosen": "c", "rejected": "r"}},
        ),
        (
            {"file_name": "a.json", "columns": {"prompt": "q", "response": "a", "kto_tag": "good", "system": "s"}},
            {"format": "labelled", "columns": {"instruction": "q", "output": "a", "label": "good", "system": "s"}},
        ),
        ({"file_name": "a.txt", "columns": {"prompt": "body"}}, {"format": "text", "columns": {"text": "body"}}),
        (
            {
                "file_name": "a.json",
                "formatting": "openai",
                "columns": {"messages": "turns"},
                "tags": {"observation_tag": "tool", "function_tag": "call", "system_tag": "sys"},
            },
            {
                "format": "openai",
                "columns": {"messages": "turns"},
                "tags": {"observation": "tool", "function": "call", "system": "sys"},
            },
        ),
    ],
)
def test_a_description_becomes_format_columns_and_tags(
    tmp_path: Path, entry: dict[str, Any], expected: dict[str, Any]
) -> None:
    assert _one(tmp_path, entry) == {"path": str(tmp_path / entry["file_name"]), **expected}


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({"hf_hub_url": "owner/name", "ms_hub_url": "other/name"}, {"path": "owner/name"}),
        ({"hf_hub_url": "name"}, {"path": "hf://datasets/name"}),
        (
            {"hf_hub_url": "owner/name", "subset": "en", "split": "train_sft", "folder": "python", "file_name": "a"},
            {"path": "owner/name", "subset": "en", "split": "train_sft", "folder": "python"},
        ),
        ({"cloud_file_name": "s3://bucket/a.jsonl", "num_samples": 5}, {"path": "s3://bucket/a.jsonl", "limit": 5}),
        ({"ms_hub_url": "owner/name", "file_name": "{folder}/a.json"}, {"path": "{folder}/a.json"}),
        (
            {"hf_hub_url": "owner/name", "ms_hub_url": None, "columns": {"system": None, "response": "output"}},
            {"path": "owner/name", "columns": {"output": "output"}},
        ),
    ],
)
def test_a_description_tells_where_the_data_lies(
    tmp_path: Path, entry: dict[str, Any], expected: dict[str, Any]
) -> None:
    def here(values: dict[str, Any]) -> dict[str, Any]:
        return {
            key: value.replace("{folder}", str(tmp_path)) if isinstance(value, str) else value
            for key, value in values.items()
        }

    assert _one(tmp_path, here(entry)) == {"format": "alpaca", **here(expected)}


def test_images_lie_beside_the_description_and_those_of_a_hub_do_not(tmp_path: Path) -> None:
    shape = {"formatting": "sharegpt", "columns": {"messages": "messages", "images": "images"}, "tags": CHAT_TAGS}
    here = _one(tmp_path, {"file_name": "sub/a.json", **shape})
    assert (here["folder"], here["columns"]["images"]) == (str(tmp_path), "images")
    assert "folder" not in _one(tmp_path, {"hf_hub_url": "owner/name", **shape})


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (
            {"filename": "a.json"},
            "FOLDER/dataset_info.json, data.filename: is no key of LLaMA-Factory's; did you mean 'file_name'?",
        ),
        (
            {"file_name": "a.json", "columns": {"promt": "q"}},
            "data.columns.promt: is no key of LLaMA-Factory's; did you mean 'prompt'?",
        ),
        (
            {"file_name": "a.json", "tags": {"user": "q"}},
            "data.tags.user: is no key of LLaMA-Factory's; did you mean 'user_tag'?",
        ),
        ({"file_name": "a.json", "ranking": "yes"}, "data.ranking: is 'yes', expected true or false"),
        (
            {"file_name": "a.json", "formatting": "chatml"},
            "data.formatting: is 'chatml', expected one of alpaca, sharegpt, openai",
        ),
        ({"file_name": "a.json", "num_samples": 0}, "data.num_samples: is 0, expected a number of 1 or more"),
        ({"file_name": "a.json", "columns": ["prompt"]}, "data.columns: is ['prompt'], not a mapping"),
        ({"file_name": "a.json", "columns": {"prompt": 1}}, "data.columns.prompt: is 1, expected text"),
        ({"file_name": 3}, "data.file_name: is 3, expected text"),
        ("a.json", "data: is 'a.json', not a data set"),
        ({}, "names no place where its data lies; add `file_name` or `hf_hub_url`"),
        ({"ms_hub_url": "a/b"}, "data.ms_hub_url: is the only place it names, and this hub is not read"),
        ({"om_hub_url": "a/b"}, "data.om_hub_url: is the only place it names, and this hub is not read"),
        ({"script_url": "folder"}, "data.script_url: is the only place it names, and loading scripts run code"),
        ({"file_name": "a.json", "subset": "en"}, "data.subset: belongs to a data set on the Hugging Face hub"),
        ({"file_name": "a.json", "folder": "en"}, "data.folder: belongs to a data set on the Hugging Face hub"),
        (
            {"file_name": "a.json", "columns": {"videos": "v", "response": "a"}},
            "data.columns.videos: videos are not read",
        ),
        (
            {"file_name": "a.json", "columns": {"audios": "v", "response": "a"}},
            "data.columns.audios: audios are not read",
        ),
        (
            {"file_name": "a.json", "columns": {"chosen": "v", "response": "a"}},
            "data.columns.chosen: belongs to preferences; set `ranking`",
        ),
        (
            {"file_name": "a.json", "columns": {"messages": "v", "response": "a"}},
            "data.columns.messages: means nothing where the formatting is alpaca",
        ),
        (
            {"file_name": "a.json", "columns": {"prompt": "q", "system": "s"}},
            "data.columns.system: goes with a `response`, and none is named",
        ),
        (
            {"file_name": "a.json", "ranking": True, "columns": {"kto_tag": "label"}},
            "has both `ranking` and a `kto_tag`",
        ),
        ({"file_name": "a.json", "tags": CHAT_TAGS}, "data.tags: name what is inside turns"),
    ],
)
def test_what_cannot_be_read_as_it_says_is_refused_with_its_reason(tmp_path: Path, entry: Any, message: str) -> None:
    assert message in _refused(tmp_path, entry)


def test_all_problems_of_all_names_are_said_at_once(tmp_path: Path) -> None:
    path = _info(tmp_path, first={"file": "a.json"}, second={"file_name": 1}, third={"file_name": "a.json"})
    with pytest.raises(RecipeError) as raised:
        open_collection(path, ["first", "second", "third", "fourth"], {}, "data.0")
    assert [problem.where.rpartition(", ")[2] for problem in raised.value.problems] == [
        "first.file",
        "second.file_name",
        "data.0.name",
    ]


# Names, options, and a file of our own


def test_names_come_in_the_order_asked_for_with_the_options_of_the_recipe_over_them(tmp_path: Path) -> None:
    path = _info(tmp_path, one={"file_name": "1.json", "num_samples": 9}, two={"file_name": "2.json"})
    sources = open_collection(path, ["two", "one"], {"limit": 3, "bad_rows": "drop"}, "data")
    assert [(Path(source["path"]).name, source["limit"], source["bad_rows"]) for source in sources] == [
        ("2.json", 3, "drop"),
        ("1.json", 3, "drop"),
    ]


def test_an_unknown_name_suggests_the_nearest_and_tells_what_is_there(tmp_path: Path) -> None:
    path = _info(tmp_path, identity={"file_name": "a.json"}, alpaca_en_demo={"file_name": "b.json"})
    with pytest.raises(
        RecipeError, match=r"data\.1\.name: .* has no data set 'identiy'; did you mean 'identity'\? there"
    ):
        open_collection(path, ["identiy"], {}, "data.1")


def test_a_collection_without_a_name_tells_which_there_are(tmp_path: Path) -> None:
    with pytest.raises(
        RecipeError, match=r"data: .* is a collection of data sets; name some with `name:`; there are a, b"
    ):
        open_collection(_info(tmp_path, a={"file_name": "a.json"}, b={}), [], {}, "data")


@pytest.mark.parametrize("name", ["datasets.yaml", "datasets.yml", "datasets.json", "mine.yaml"])
def test_a_collection_of_our_own_holds_options_of_sources(tmp_path: Path, name: str) -> None:
    (tmp_path / "pictures").mkdir()
    text = """{
      "alpaca": {"path": "data/alpaca.json", "columns": {"instruction": "question"}, "limit": 5},
      "hub": {"path": "owner/name", "subset": "en", "folder": "python"},
      "far": {"path": "s3://bucket/a.jsonl", "folder": "pictures"},
      "short": "rows.jsonl"
    }"""
    (tmp_path / "data").mkdir()
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert open_collection(tmp_path / name, ["alpaca", "hub", "far", "short"], {}, "data") == [
        {"path": str(tmp_path / "data/alpaca.json"), "columns": {"instruction": "question"}, "limit": 5},
        {"path": "owner/name", "subset": "en", "folder": "python"},
        {"path": "s3://bucket/a.jsonl", "folder": str(tmp_path / "pictures")},
        {"path": str(tmp_path / "rows.jsonl")},
    ]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "datasets.yaml",
            "a: {path: a.json, formt: alpaca}",
            "datasets.yaml, a.formt: is not an option; did you mean 'format'?",
        ),
        ("datasets.yaml", "a: {format: alpaca}", "datasets.yaml, a.path: is missing; name a file"),
        ("datasets.yaml", "a: {path: 3}", "datasets.yaml, a.path: is not text"),
        ("datasets.yaml", "a: 3", "datasets.yaml, a: is 3, not a data set"),
        ("datasets.yaml", "- a", "is a list, expected a mapping of names to data sets"),
        ("datasets.yaml", "a: {\n", "datasets.yaml, line 2: "),
        ("datasets.yaml", "a: 1\na: 2", "key 'a' is given twice"),
        ("dataset_info.json", '{"a": 1,\n "b" 2}', "dataset_info.json, line 2: Expecting ':' delimiter"),
        ("dataset_info.json", '{"a": 1, "a": 2}', "dataset_info.json: key 'a' is given twice"),
        ("dataset_info.json", b"\xff", "cannot be read: "),
        ("datasets.yaml", b"a: \x00", "datasets.yaml: "),
        ("missing.yaml", None, "missing.yaml: cannot be read: No such file or directory"),
    ],
)
def test_a_broken_collection_is_named(tmp_path: Path, name: str, text: str | bytes | None, message: str) -> None:
    if text is not None:
        (tmp_path / name).write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(RecipeError) as raised:
        open_collection(tmp_path / name, ["a"], {}, "data")
    assert message in str(raised.value)


# What is a collection


@pytest.mark.parametrize("name", ["dataset_info.json", "datasets.yaml", "datasets.yml", "datasets.json"])
def test_a_collection_is_known_by_its_name_and_a_folder_by_what_it_holds(tmp_path: Path, name: str) -> None:
    assert not is_collection(tmp_path)
    key = "file_name" if name == "dataset_info.json" else "path"
    (tmp_path / name).write_text(f'{{"a": {{"{key}": "a.json"}}}}', encoding="utf-8")
    assert is_collection(tmp_path)
    assert is_collection(tmp_path / name)
    assert not is_collection(tmp_path / "other.json")
    (source,) = open_collection(tmp_path, ["a"], {}, "data")
    assert source["path"] == str(tmp_path / "a.json")


def test_a_folder_with_two_collections_is_refused(tmp_path: Path) -> None:
    _info(tmp_path, a={"file_name": "a.json"})
    (tmp_path / "datasets.yaml").write_text("a: a.json", encoding="utf-8")
    with pytest.raises(RecipeError, match=r"holds datasets\.yaml and dataset_info\.json; name one of them"):
        open_collection(tmp_path, ["a"], {}, "data")


@pytest.mark.parametrize("beside", ["state.json", "data-00000-of-00001.arrow"])
def test_what_datasets_writes_beside_its_arrow_files_is_no_collection(tmp_path: Path, beside: str) -> None:
    (tmp_path / beside).write_bytes(b"{}")
    assert not is_collection(_info(tmp_path, citation="", features={}))
    assert not is_collection(tmp_path)
