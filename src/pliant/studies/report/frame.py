"""The frame that all reports share: what came out, the question, the protocol, what is missing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pliant.studies.report import page
from pliant.studies.report.figures import Figure, save
from pliant.studies.report.results import Results

R = TypeVar("R", bound=Results)


@dataclass(frozen=True)
class Content:
    """What a study puts into the frame.

    Args:
        title: the question in one line.
        quick: what a profile that is not the full one shows, and what it does not.
        findings: what came out, as HTML.
        question: paragraphs.
        protocol: sentences; profile and seeds are named before them.
        sections: tables, curves and figures, as HTML.
    """

    title: str
    quick: str
    findings: Sequence[str]
    question: Sequence[str]
    protocol: Sequence[str]
    sections: Sequence[str]


def write(results: R, draw: Callable[[R], Sequence[Figure]], content: Callable[[R, Sequence[Figure]], Content]) -> Path:
    """Write report.html, and the figures as files to pictures/, into the folder of the results; return its path.

    The page is one self-contained file: style, charts and figures are inside it, nothing is fetched. Contestants,
    weights and settings that the folder lacks are left out and named.

    Args:
        results: of the study.
        draw: returns the figures, and adds a sentence to the results' notes for each one left out.
        content: returns what the study puts into the frame.

    Raises:
        OSError: it cannot be written; a report that was there before stays.
    """
    figures = draw(results)
    save(figures, results.folder / "pictures")
    body = _body(results, content(results, figures))
    text = page.page(f"pliant: the {results.study} study", body, hide=results.contestants)
    return page.write(text, results.folder / "report.html")


def _body(results: Results, content: Content) -> list[str]:
    body = [page.heading(content.title, 1)]
    if results.profile != "full":
        body.append(page.paragraph(content.quick, "quick"))
    if results.missing:
        body.append(page.paragraph("The study is incomplete: what is missing is named below.", "quick"))
    body += [page.heading("What came out"), *content.findings]
    body += [page.heading("The question"), *map(page.paragraph, content.question)]
    seeds = ", ".join(map(str, results.seeds))
    runs = f"Profile: {results.profile}. Seeds: {seeds}; {len(results.runs)} finished runs."
    body += [page.heading("The protocol"), page.bullets([runs, *content.protocol])]
    if results.missing or results.notes:
        missing = [f"Not run, and left out everywhere: {', '.join(results.missing)}."] if results.missing else []
        body += [page.heading("What is missing", 3), page.bullets(missing + results.notes)]
    return [*body, *content.sections, page.footer(results.study, results.folder, results.settings)]
