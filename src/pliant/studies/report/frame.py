"""The frame that all reports share: one paragraph, pictures, contents, curves and tables, and what belongs to them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pliant.studies.report import page
from pliant.studies.report.figures import Figure, save
from pliant.studies.report.results import Results

R = TypeVar("R", bound=Results)
# Said once: all that a single seed leaves out below.
SINGLE = "All runs have one seed, so there are no intervals and nothing is decided."


@dataclass(frozen=True)
class Section:
    """A part of a report: its title and its HTML; a part without HTML is left out."""

    title: str
    html: Sequence[str]


@dataclass(frozen=True)
class Content:
    """What a study puts into the frame.

    Args:
        title: the question in one line.
        quick: what a profile that is not the full one shows, and what it does not.
        lead: what came out, in one paragraph.
        pictures: the most telling ones, as HTML.
        sections: curves and tables of the main part.
        question: paragraphs.
        protocol: sentences; profile and seeds are named before them.
        details: what follows the main part.
    """

    title: str
    quick: str
    lead: str
    pictures: Sequence[str]
    sections: Sequence[Section]
    question: Sequence[str]
    protocol: Sequence[str]
    details: Sequence[Section]


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
    sections = [*content.sections, Section("The question", [*map(page.paragraph, content.question)])]
    sections += [Section("The protocol", [page.bullets([_runs(results), *content.protocol])])]
    missing = [f"Not run, and left out everywhere: {', '.join(results.missing)}."] if results.missing else []
    missing += results.notes
    sections += [Section("What is missing", [page.bullets(missing)] if missing else []), *content.details]
    sections = [section for section in sections if any(section.html)]

    quick = results.profile != "full"
    single = SINGLE if len(results.seeds) == 1 else ""
    lead = " ".join(text for text in (content.quick if quick else "", single, content.lead) if text)
    body = [page.heading(content.title, 1), page.paragraph(lead, "quick" if quick else "")]
    if results.missing:
        body.append(page.paragraph("The study is incomplete: what is missing is named below.", "quick"))
    body += [*content.pictures, page.contents([section.title for section in sections])]
    for section in sections:
        body += [page.heading(section.title), *section.html]
    return [*body, page.footer(results.study, results.folder, results.settings)]


def _runs(results: Results) -> str:
    seeds = f" Seeds: {', '.join(map(str, results.seeds))}." if len(results.seeds) > 1 else ""
    return f"Profile: {results.profile}.{seeds} {page.count(len(results.runs), 'finished run')}."
