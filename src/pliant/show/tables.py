"""Tables of measured values as HTML."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape


@dataclass(frozen=True)
class Cell:
    """Text of a cell; `best` makes it bold, `note` follows it, small and pale, `kind` is a CSS class of the page."""

    text: str
    best: bool = False
    note: str = ""
    kind: str = ""


def table(head: Sequence[str], rows: Sequence[Sequence[Cell | str]], caption: str = "") -> str:
    """Write a table whose first column names the rows; all text is escaped.

    Args:
        head: one heading per column.
        rows: the cells of each row, one per heading; a row of one cell is a heading for the rows below it.
        caption: a sentence above the table.

    Returns:
        A `<div class="scroll">` with the table, so that on a narrow page the table scrolls, not the page.

    Raises:
        ValueError: the number of cells in a row is neither that of the headings nor 1.

    >>> "<td><b>1</b></td>" in table(["net", "score"], [["plain", Cell("1", best=True)]])
    True
    """
    parts = ['<div class="scroll" tabindex="0"><table>']
    if caption:
        parts.append(f"<caption><span>{escape(caption)}</span></caption>")
    parts.append("<thead><tr>" + "".join(f'<th scope="col">{escape(h)}</th>' for h in head) + "</tr></thead><tbody>")
    for row in rows:
        if len(row) == 1:
            text = row[0].text if isinstance(row[0], Cell) else row[0]
            parts.append(f'<tr class="group"><th colspan="{len(head)}"><span>{escape(text)}</span></th></tr>')
            continue
        if len(row) != len(head):
            raise ValueError(f"table: a row must have one cell for each of the {len(head)} headings, got {len(row)}")
        first, *rest = (cell if isinstance(cell, Cell) else Cell(cell) for cell in row)
        parts.append(f'<tr><th scope="row"{_kind(first)}>{_inner(first)}</th>')
        parts += [f"<td{_kind(cell)}>{_inner(cell)}</td>" for cell in rest]
        parts.append("</tr>")
    return "".join(parts) + "</tbody></table></div>"


def _kind(cell: Cell) -> str:
    return f' class="{escape(cell.kind, quote=True)}"' if cell.kind else ""


def _inner(cell: Cell) -> str:
    text = escape(cell.text)
    note = f" <small>{escape(cell.note)}</small>" if cell.note else ""
    return (f"<b>{text}</b>" if cell.best else text) + note
