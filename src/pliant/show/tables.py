"""Tables of measured values as HTML."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape


@dataclass(frozen=True)
class Cell:
    """Text of a cell; `best` is set in bold, `note` is small and pale behind it, `kind` is a class of the page."""

    text: str
    best: bool = False
    note: str = ""
    kind: str = ""


def table(head: Sequence[str], rows: Sequence[Sequence[Cell | str]], caption: str = "") -> str:
    """Write a table whose first column names the rows; all text is escaped.

    Args:
        head: one heading for each column.
        rows: cells of each row, as many as headings; a row of one cell is a heading of the rows below it.
        caption: a sentence above the table.

    Returns:
        A `<div class="scroll">` with the table, so that a narrow page scrolls the table and not itself.

    Raises:
        ValueError: a row has another number of cells.

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
            raise ValueError(f"table: a row must have {len(head)} cells as the head has, got {len(row)}")
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
