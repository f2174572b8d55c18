"""Numbers and tables as people read them."""

from __future__ import annotations

import pytest

from tunekit.display import Section, count, html, size


@pytest.mark.parametrize(("number", "text"), [(134_515_008, "135M"), (2_442_240, "2.44M"), (980, "980"), (7e9, "7B")])
def test_counts_are_short(number, text):
    assert count(number) == text


@pytest.mark.parametrize(("number", "text"), [(1.25 * 2**30, "1.25 GiB"), (269_060_552, "257 MiB"), (12, "12 B")])
def test_sizes_are_in_binary_units(number, text):
    assert size(number) == text


def test_html_escapes_what_users_wrote():
    assert "&lt;script&gt;" in html([Section("t", (), (("<script>", "a"),))])
