"""What a user sees of the data: every row accounted for, every token with its weight."""

from __future__ import annotations

import json

import pytest
from looking_helpers import LOOKING, LOOKING_PLUGINS, printed

import tunekit as tk
from tunekit.data.lengths import Lengths
from tunekit.data.tables import compact, places_table
from tunekit.errors import DataError, PlanError
from tunekit.record import Record
from tunekit.values import Account, Places


@pytest.fixture
def look(world):
    """Make the report of rows, with any options of the stage."""
    world("fake-looking", LOOKING_PLUGINS, LOOKING)

    def make(*texts, stages=None, limit=None, stage=None, data=None, **options):
        rows = data or [{"text": text} for text in texts]
        stages = stages or [{"teach": options}]
        return pipeline_of(rows, stages).data(stage, limit)

    return make


def pipeline_of(rows, stages):
    return tk.Pipeline("m", rows, use={"letters": {}, "transformers": {"fail": True}}, stages=stages)


def test_every_row_read_is_kept_left_out_or_dropped(look):
    report = look("a>b", "no answer", "", "a>longer than eight", "c>d", data=None, drop=True)
    (data,) = report.stages
    (source,) = data.account.sources.values()
    left_out = sum(places.count for places in source.left_out.values())
    assert (source.rows, source.kept, left_out, source.dropped.count) == (5, 2, 2, 1)
    line = next(line for line in printed(report, 120).splitlines() if "rows given in Python" in line)
    assert line.split()[-7:] == ["5", "2", "2", "1", "0", "0", "0"]


def test_no_weight_is_loaded(look):
    assert look("a>b").ok  # loading the model fails in this pipeline


def test_bad_rows_are_shown_with_their_places_and_what_to_do_and_stop_a_run(look):
    report = look("a>b", "one", "two", "", "c>d")
    assert not report.ok
    text = printed(report, 120)
    assert "left out: no answer" in text
    assert "→ write one after >" in text
    assert "row 2, 3" in text
    assert "a run would stop: 3 of 5 rows cannot be used" in text
    assert [problem.where for problem in report.problems][:3] == [
        f"data (rows given in Python), row {n}" for n in (2, 3, 4)
    ]
    with pytest.raises(DataError, match="no answer"):
        pipeline_of([{"text": "one"}], [{"teach": {}}]).run("nowhere")


def test_what_to_do_about_one_of_many_rows_names_that_row():
    account = Account()
    for row, length in ((3, 70), (5, 90)):
        account.leave_out("a.json", f"a.json, row {row}", "is too long", f"choose {length}")
        account.leave_out("a.json", f"a.json, row {row}", "is empty", "fill it in")
    text = printed(places_table(account, account.problems), 120)
    assert "→ a.json, row 3: choose 70" in text
    assert "→ fill it in" in text


def test_bad_rows_that_the_recipe_drops_are_counted_and_stop_nothing(look, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a>b"}\n{"text": "one"}\n')
    report = look(data={"path": str(path), "bad_rows": "drop"})
    assert report.ok
    assert "a run would start, on 1 of 2 rows" in printed(report)
    assert "left out: no answer" in printed(report)


def test_data_that_leaves_nothing_to_train_on_stops_a_run(look, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "one"}\n')
    report = look(data={"path": str(path), "bad_rows": "drop"})
    assert "every row was left out: no answer" in printed(report, 200)


def test_a_limit_looks_at_the_first_rows_of_each_source(look):
    report = look("a>b", "c>d", "bad", limit=2)
    assert report.ok
    assert report.stages[0].account.rows == 2
    assert "the first 2 rows of each source" in printed(report)


def test_streamed_data_is_looked_at_up_to_a_limit(look, monkeypatch, tmp_path):
    monkeypatch.setattr("tunekit.data.stage_data.STREAMED_ROWS", 2)
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a>b"}\n' * 5)
    report = look(data={"sources": [str(path)], "streaming": True})
    assert report.stages[0].account.rows == 2
    assert "the data is streamed" in printed(report)
    assert look(data={"sources": [str(path)], "streaming": True}, limit=4).stages[0].account.rows == 4


def test_a_stage_is_chosen_by_name_or_number(look):
    stages = [{"teach": {}}, {"steps": {}}]
    assert [data.name for data in look("a>b", stages=stages).stages] == ["teach", "steps"]
    for wanted in ("steps", 1, "1"):
        assert [data.name for data in look("a>b", stages=stages, stage=wanted).stages] == ["steps"]
    with pytest.raises(PlanError, match=r"'sft' is no stage of this recipe; its stages are teach \(0\)"):
        look("a>b", stage="sft")


def test_data_that_no_format_knows_is_a_problem_of_its_stage_alone(look):
    report = look("a>b", stages=[{"teach": {}}, {"steps": {"data": [{"nonsense": 1}]}}])
    good, bad = report.stages
    assert (good.ok, bad.ok, report.ok) == (True, False, False)
    assert "which no format knows" in printed(report, 200)


def test_a_plugin_that_loses_a_row_unseen_is_found_out(look):
    assert "2 rows are said to be kept, but the sequences lead back to 1" in printed(look("a>b", "c>d", loses=2), 200)
    assert "lead back" not in printed(look("a>b", "c>d"), 200)


def test_figures_are_those_of_the_tokens(look):
    figures = look("a>b", "ab>cdefghij", "abc>de").stages[0].figures
    assert (figures.sequences, figures.tokens, figures.supervised, figures.tokens_cut) == (3, 3 + 8 + 6, 1 + 5 + 2, 3)
    assert figures.lengths.to_mapping() == {"shortest": 3, "median": 6, "90%": 11, "99%": 11, "longest": 11}
    assert figures.lengths.beyond == 1
    assert figures.padding == pytest.approx(1 - 17 / (8 + 8 + 6))  # batches of two: 3 and 8, then 6
    assert figures.packing == pytest.approx(17 / 24)  # 3 | 8 | 6: none fits beside the one before


def test_the_lengths_are_drawn_as_png(look, tmp_path):
    look("a>b", "ab>cdefghij", stages=[{"teach": {}}, {"steps": {}}]).draw_lengths(tmp_path / "new" / "lengths.png")
    assert (tmp_path / "new" / "lengths.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["lengths.png"]


def test_places_are_told_in_few_words():
    assert compact(Places(2, ["a.json, row 3", "a.json, row 7"])) == "a.json, row 3, 7"
    assert compact(Places(3, ["a.json, row 3", "b.json, row 7"])) == "a.json, row 3; b.json, row 7 and 1 more"
    assert compact(Places(40, [f"a, row {n}" for n in range(40)])).endswith("8, 9 and 30 more")
    assert compact(Places(1, ["somewhere"])) == "somewhere"


def test_the_report_is_plain_data_for_scripts(look):
    mapping = json.loads(json.dumps(look("a>b", "one").to_mapping()))
    (stage,) = mapping["stages"]
    assert (mapping["ok"], stage["stage"], stage["rows"], stage["kept"]) == (False, "teach", 2, 1)
    assert stage["tokens"]["lengths"] == {"3": 1}
    assert stage["problems"][0]["remedy"] == "write one after >"


def test_the_report_escapes_what_users_wrote(look, tmp_path):
    path = tmp_path / "[red]<b>.jsonl"
    path.write_text('{"text": "a>b"}\n')
    report = look(data=str(path))
    assert "[red]<b>.jsonl" in printed(report, 200)
    assert "[red]&lt;b&gt;.jsonl" in report._repr_html_()
    assert "<b>" not in report._repr_html_()


def test_the_first_examples_are_shown_of_each_stage(look):
    report = look("a>b", "c>d", "e>f", stages=[{"teach": {}}, {"steps": {}}])
    assert [(item.stage, item.where[-5:]) for item in report.show(2).items] == [
        ("teach", "row 1"), ("teach", "row 2"), ("steps", "row 1"), ("steps", "row 2"),
    ]  # fmt: skip
    assert {item.stage for item in report.show(1, stage="steps").items} == {"steps"}


def test_examples_of_one_source_are_shown(look, tmp_path):
    for name in ("first", "second"):
        (tmp_path / f"{name}.jsonl").write_text('{"text": "a>b"}\n' * 3)
    report = look(data=[str(tmp_path / "first.jsonl"), str(tmp_path / "second.jsonl")])
    found = report.show(2, source="second.jsonl")
    assert [item.where.rpartition("/")[2] for item in found.items] == ["second.jsonl, row 1", "second.jsonl, row 2"]
    with pytest.raises(PlanError, match=r"'third' is no source of teach"):
        report.show(source="third")


def test_one_row_is_shown_by_its_number_or_said_why_not(look):
    report = look("a>b", "one", "c>d")
    assert [item.where[-5:] for item in report.show(row=3).items] == ["row 3"]
    assert "row 2 is not trained on: no answer" in printed(report.show(row=2), 200)
    assert "there is no row 9: 3 were read" in printed(report.show(row=9), 200)
    assert "row 2 is not trained on" in report.show(row=2)._repr_html_()


def test_without_colour_brackets_hold_what_is_supervised(look):
    text = printed(look("ab>cd~").show(1), no_color=True)
    assert "a│b│>⟦c│d│~⟧" in text
    assert "6 tokens, 3 supervised (50%)" in text


def test_supervised_tokens_are_coloured_by_weight_and_others_dim(look):
    text = printed(look("a>b", "half>c").show(2), force_terminal=True, color_system="truecolor")
    full, half = (f"\x1b[38;2;16;16;16;48;2;{colour}m" for colour in ("110;205;140", "169;222;165"))
    assert f"{full}b" in text
    assert f"{full} weight 1 " in text
    assert f"{half} weight 0.5 " in text
    assert "\x1b[2ma" in text


def test_sixteen_colours_tell_weights_and_borders_too(look):
    text = printed(look("a>bc", "half>d").show(2), force_terminal=True, color_system="standard")
    for letter, code in (("b", "30;42"), ("c", "4;30;102"), ("d", "4;30;103")):
        assert f"\x1b[{code}m{letter}" in text


def test_in_a_notebook_a_token_tells_its_id_and_weight(look):
    html = look("half>c").show(1)._repr_html_()
    assert "title='token 6: id 99, weight 0.5'" in html
    assert "title='token 1: id 104, weight 0'" in html
    assert html.count("background: rgba(46,160,67") == 2  # the legend and the one supervised token


def test_a_pair_is_shown_once_where_it_is_the_same_and_tells_what_differs(look):
    text = printed(look("a>bc|bdef").show(1), 120, no_color=True)
    assert "margin 0.25, the first 3 tokens are shared, then 1 chosen and 3 rejected tokens differ" in text
    assert "chosen: 4 tokens" in text
    assert "rejected: 6 tokens" in text
    assert "… the same 3 tokens as above, 1 of them supervised …" in text
    assert "⟦d│e│f⟧" in text
    assert "chosen and rejected are the same" in printed(look("a>b|b").show(1), no_color=True)


def test_a_label_is_told(look):
    report = look("+a>b", "-a>b", "a>b")
    assert [item.facts for item in report.show(3).items] == [("labelled good",), ("labelled bad",), ()]


def test_a_run_shows_the_account_of_its_data(world, tmp_path):
    world("fake-looking", LOOKING_PLUGINS, LOOKING)
    rows = [{"text": text} for text in ("a>b", "ab>cdefghij")]
    run = tk.Pipeline("m", rows, use=["letters"], stages=[{"teach": {}}]).run(tmp_path / "run")
    text = printed(run.data, 120)
    assert "cut: longer than the limit" in text
    assert "1 of 2 are longer than the limit of 8 (50.0%)" in text
    assert "6 tokens, 54.5%" in text  # 1 of 3 and 5 of 8 are supervised
    assert "cut: longer" in run.data._repr_html_()
    assert run.data["teach"].kept == 2
    assert run.data.to_mapping() == json.loads((tmp_path / "run" / "data.json").read_text())


def test_the_record_of_any_data_is_small_and_still_adds_up(tmp_path):
    account = Account()
    source = account.source("a")
    for number in range(5000):
        source.rows += 1
        account.leave_out("a", f"a, row {number}", f"reason {number % 300}", optional=True)
    source.lengths.update(range(20_000))
    record = Record(tmp_path)
    record.data("sft", account)
    kept = record.accounts["sft"].sources["a"]
    assert (tmp_path / "data.json").stat().st_size < 200_000
    assert kept.kept == source.kept == 0
    assert sum(places.count for places in kept.left_out.values()) == 5000
    assert len(kept.left_out["other reasons"].where) == 100
    assert kept.lengths.total() == 20_000
    assert Lengths(kept.lengths).quantile(0.5) == pytest.approx(10_000, rel=0.005)


def test_many_reasons_are_one_line_in_the_table(look):
    account = Account()
    for number in range(300):
        account.source("a").rows += 1
        account.leave_out("a", f"a, row {number}", f"reason {number}", optional=True)
    table = places_table(account)
    assert len(table.rows) == 21
    assert table.rows[-1][:2] == ("left out: other reasons", "280")


def test_what_is_shown_has_a_short_name_in_a_console(look):
    report = look("a>b", "one")
    assert repr(report) == "DataReport(teach: 1 of 2 rows, not ok)"
    assert repr(report.stages[0]).startswith("StageData(teach: a run would stop: 1 of 2 rows cannot be used")
    assert repr(report.show(1)) == "Shown(data (rows given in Python), row 1)"


def test_stages_of_one_name_are_both_drawn_and_shown(look, tmp_path):
    report = look("a>b", stages=[{"teach": {}}, {"teach": {}}])
    report.draw_lengths(tmp_path / "two.png")
    assert (tmp_path / "two.png").stat().st_size > 0
    assert len(report.show(1, stage="teach").items) == 2
    assert len(report.show(1, stage=1).items) == 1


def test_what_is_raised_is_told_beside_the_rows_that_were_read(look, world):
    code = LOOKING.replace(
        "if each.row == self.config.loses:",
        'if each.text == "x": raise DataError([Problem("here", "boom")])\n        if False:',
    )
    code = code.replace("class Nothing", "from tunekit.errors import DataError, Problem\nclass Nothing", 1)
    world("fake-raising", {"raises": "fake_raising:Teach"}, code)
    report = look("one", "x", stages=[{"raises": {}}])
    assert [str(problem) for problem in report.problems][:2] == [
        "here: boom",
        "data (rows given in Python), row 1: no answer; write one after >",
    ]
    assert "a run would stop: here: boom" in printed(report, 200)
    assert "left out: no answer" in printed(report, 200)
