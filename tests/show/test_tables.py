"""Tables: escaped, and as wide as their head."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

from pliant.show.tables import Cell, table


def test_rows_groups_and_escapes():
    text = table(["a<b", "c"], [["group & co"], ["x", Cell("1", best=True, note="± 2", kind="win")]], "cap")
    root = ET.fromstring(text)
    assert [h.text for h in root.iter("th")] == ["a<b", "c", None, "x"]
    assert next(root.iter("span")).text == "cap"
    (cell,) = root.iter("td")
    assert (cell.get("class"), cell.find("b").text, cell.find("small").text) == ("win", "1", "± 2")
    assert 'colspan="2"' in text


def test_rows_must_fit():
    with pytest.raises(ValueError, match="must have one cell for each of the 3 headings, got 2"):
        table(["a", "b", "c"], [["x", "1"]])
