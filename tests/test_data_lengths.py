"""Lengths counted, binned, drawn; what padding and packing make of them."""

from __future__ import annotations

import sys
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from looking_helpers import printed

from tunekit.data.histogram import Histogram
from tunekit.data.lengths import Lengths, packing_share, padding_share
from tunekit.data.picture import draw_lengths
from tunekit.errors import TunekitError


def test_padding_counts_every_sequence_of_an_item():
    assert padding_share([(4, 2), (4, 4)], 1) == pytest.approx(1 - 14 / 16)
    assert padding_share([], 4) == 0


def test_packing_opens_a_row_where_the_next_does_not_fit():
    assert packing_share([5, 5, 5, 5], 10) == 1
    assert packing_share([6, 6, 4], 10) == pytest.approx(16 / 20)
    assert packing_share([99], 10) == 1


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 100_000), min_size=1), st.integers(1, 50_000), st.integers(4, 48))
def test_bins_touch_and_hold_every_sequence_and_end_at_the_limit(lengths, limit, most):
    bins = Lengths(Counter(lengths), limit).bins(most)
    assert sum(each.count for each in bins) == len(lengths)
    assert all(before.last + 1 == after.first for before, after in pairwise(bins))
    for each in bins:
        assert each.count == sum(1 for length in lengths if each.first <= length <= each.last)
        assert each.beyond == (each.first > limit)
        assert each.beyond or each.last <= limit or each is bins[-1]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 10_000), min_size=1), st.floats(0, 1))
def test_a_quantile_is_the_nearest_rank(lengths, share):
    found = Lengths(Counter(lengths)).quantile(share)
    at_most = sum(1 for length in lengths if length <= found)
    below = sum(1 for length in lengths if length < found)
    assert found in lengths
    assert at_most >= share * len(lengths)
    assert below == 0 or below < share * len(lengths)


@pytest.mark.parametrize("width", [40, 80, 120])
def test_the_histogram_fits_the_terminal_and_marks_the_limit(width):
    lines = printed(Histogram(Lengths({10: 5, 200: 1, 5000: 3}, 1024)), width).splitlines()
    assert all(len(line.rstrip()) <= width for line in lines)
    (marker,) = [number for number, line in enumerate(lines) if "limit of" in line or "longer than" in line][:1]
    assert lines[marker - 1].split()[:3] == ["513", "to", "1,024"]


def test_the_histogram_of_a_notebook_says_the_same():
    html = Histogram(Lengths({10: 5, 5000: 3}, 1024))._repr_html_()
    assert "3 of 8 are longer than the limit of 1,024 (37.5%)" in html
    assert html.count("<tr>") == len(Lengths({10: 5, 5000: 3}, 1024).bins())


@pytest.mark.parametrize("counts", [{}, {7: 1}, {1: 100, 2: 3, 90_000: 1}])
def test_a_picture_is_drawn_of_any_lengths(counts, tmp_path):
    assert draw_lengths([("sft", Lengths(counts, 1024))], tmp_path / "a.png").exists()


def test_without_matplotlib_the_picture_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)  # importing it fails
    with pytest.raises(TunekitError, match="pip install matplotlib"):
        draw_lengths([("sft", Lengths({1: 1}))], tmp_path / "a.png")
