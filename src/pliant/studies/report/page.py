"""The page around a report: one HTML file with its style and figures inside, light and dark."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from pliant._files import replacing

# Okabe and Ito's palette, lighter on the dark page.
_STYLE = """
:root { color-scheme: light dark; --ground:#ffffff; --ink:#1c1f23; --faint:#5d6670; --rule:#e2e5e9; --panel:#f5f6f8;
  --shade:rgba(0,114,178,.09); --ink-line:#30353b; --blue:#0072b2; --orange:#d07c00; --green:#00875f;
  --purple:#b04a8b; --grey:#7d8590; --good:#00694a; --bad:#b34700; --mark:#fff3d6; }
@media (prefers-color-scheme: dark) { :root { --ground:#15181c; --ink:#e6e8eb; --faint:#9aa4af; --rule:#31373e;
  --panel:#1e2227; --shade:rgba(86,180,233,.13); --ink-line:#d5d9de; --blue:#56b4e9; --orange:#f0a830;
  --green:#2fc596; --purple:#e39bc4; --grey:#98a1ab; --good:#45d1a4; --bad:#ff9a5c; --mark:#3a3118; } }
* { box-sizing:border-box; }
body { margin:0; background:var(--ground); color:var(--ink); font:16px/1.55 system-ui,-apple-system,"Segoe UI",
  Roboto,"Noto Sans","DejaVu Sans",sans-serif; }
main { max-width:1240px; margin:0 auto; padding:28px 20px 60px; }
h1 { font-size:1.9rem; line-height:1.2; margin:0 0 .4em; } h2 { font-size:1.3rem; margin:2.4em 0 .5em; }
h3 { font-size:1.03rem; margin:1.6em 0 .4em; } p, li { max-width:78ch; } li { margin:.25em 0; }
nav { border:1px solid var(--rule); border-radius:6px; padding:.6em 1em; margin:1.4em 0; }
nav ul { columns:3 260px; column-gap:2em; margin:.2em 0; padding-left:1.2em; } nav a { color:var(--blue); }
.quick { background:var(--mark); border-left:4px solid var(--orange); padding:.7em 1em; margin:1em 0; max-width:none; }
.scroll { overflow-x:auto; margin:.8em 0 1.2em; }
table { border-collapse:collapse; font-size:.88rem; font-variant-numeric:tabular-nums; white-space:nowrap; }
caption { text-align:left; color:var(--faint); padding:0 0 .5em; white-space:normal; }
caption span { display:block; position:sticky; left:0; max-width:min(78ch, calc(100vw - 40px)); }
th, td { padding:.24em .5em; text-align:right; border-bottom:1px solid var(--rule); font-weight:400; }
thead th { font-weight:600; vertical-align:bottom; white-space:normal; border-bottom:2px solid var(--faint); }
th[scope=row], thead th:first-child, tr.group th { text-align:left; position:sticky; left:0; background:var(--ground); }
tr.group th { color:var(--faint); font-weight:600; padding-top:.9em; } tr.group span { position:sticky; left:.75em; }
td small { color:var(--faint); } td b { font-weight:700; }
td.stack small { display:block; } td.name { white-space:normal; color:var(--faint); font-size:.82rem; }
td.win, td.win b { color:var(--good); } td.lose, td.lose b { color:var(--bad); }
.charts { margin-bottom:1.6em; display:grid;
  grid-template-columns:repeat(auto-fit,minmax(min(100%,370px),1fr)); gap:14px 22px; }
.chart { width:100%; height:auto; display:block; }
.legend { display:flex; flex-wrap:wrap; gap:.3em 1.2em; padding:.7em 0; margin:.2em 0 .8em; font-size:.9rem;
  border-top:1px solid var(--rule); border-bottom:1px solid var(--rule); }
.legend label { display:inline-flex; align-items:center; gap:.4em; cursor:pointer; }
.legend svg { width:34px; height:12px; } .legend input { margin:0; accent-color:var(--blue); }
figure { margin:1em 0 1.6em; } figure .paper { background:#fff; border:1px solid var(--rule); border-radius:6px;
  padding:8px; overflow-x:auto; }
figure img { display:block; width:100%; min-width:560px; height:auto; }
figcaption { color:var(--faint); font-size:.9rem; margin-top:.5em; max-width:88ch; }
details { margin:.8em 0; } summary { cursor:pointer; } .missing { color:var(--faint); }
footer { margin-top:3em; padding-top:1em; border-top:1px solid var(--rule); color:var(--faint); font-size:.88rem;
  overflow-wrap:anywhere; }
@media (max-width:480px) { main { padding:18px 14px 40px; } h1 { font-size:1.5rem; } th, td { padding:.3em .55em; }
  th[scope=row] { white-space:normal; min-width:7.5em; } }
"""


def page(title: str, body: Sequence[str], hide: Sequence[str] = ()) -> str:
    """Return a whole HTML document; `hide` are classes that a checkbox with the same id (``#show-…``) switches off."""
    switches = "".join(f"body:has(#show-{name}:not(:checked)) .curve-{name}{{display:none}}\n" for name in hide)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8"/>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}{switches}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(body)
        + "\n</main>\n</body>\n</html>\n"
    )


def write(text: str, path: Path) -> Path:
    """Write a document and return its path; a failure leaves what was there before."""
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")
    return path


def marked(text: str) -> str:
    """Return text as HTML, with code where it stands between backticks.

    >>> marked("`pliant show` < 3")
    '<code>pliant show</code> &lt; 3'
    """
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))


def heading(text: str, level: int = 2) -> str:
    return f'<h{level} id="{anchor(text)}">{escape(text)}</h{level}>'


def anchor(text: str) -> str:
    """Return the id of a heading."""
    return re.sub(r"\W+", "-", text.lower()).strip("-")


def contents(titles: Sequence[str]) -> str:
    """Return a list of links to headings."""
    items = "".join(f'<li><a href="#{anchor(title)}">{escape(title)}</a></li>' for title in titles)
    return f'<nav aria-label="Contents"><ul>{items}</ul></nav>'


def paragraph(text: str, kind: str = "") -> str:
    return f'<p class="{kind}">{marked(text)}</p>' if kind else f"<p>{marked(text)}</p>"


def bullets(texts: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{marked(text)}</li>" for text in texts) + "</ul>"


def picture(data: bytes, alternative: str, caption: str, width: int | None = None) -> str:
    """Return a PNG as a figure on white paper, inside the page, no wider than `width` pixels."""
    code = base64.b64encode(data).decode("ascii")
    # A figure that fits a narrow page shrinks with it; a wider one scrolls.
    style = "" if width is None else f'style="max-width:{width}px;min-width:{560 if width > 720 else 0}px" '
    return (
        f'<figure><div class="paper" tabindex="0"><img {style}alt="{escape(alternative, quote=True)}" '
        f'src="data:image/png;base64,{code}"/></div><figcaption>{marked(caption)}</figcaption></figure>'
    )


def legend(entries: Mapping[str, tuple[str, str, str, float]], *, switches: bool = True) -> str:
    """Return the legend of the curves, name → (label, colour, dashes, width), with a box to switch each on and off."""
    parts = ['<div class="legend">']
    for name, (label, color, dash, width) in entries.items():
        dashes = f' stroke-dasharray="{dash}"' if dash else ""
        box = f'<input type="checkbox" id="show-{escape(name, quote=True)}" checked="checked"/>' if switches else ""
        parts.append(
            f'<label>{box}<svg viewBox="0 0 34 12" aria-hidden="true"><path d="M1 6H33" stroke-width="{width}" '
            f'style="stroke:{color}"{dashes}/></svg>{escape(label)}</label>'
        )
    return "".join(parts) + "</div>"


def details(summary: str, content: str) -> str:
    return f"<details><summary>{escape(summary)}</summary>{content}</details>"


def footer(study: str, folder: Path, settings: Mapping[str, Any]) -> str:
    """Return what made the page, on which machine and when."""
    machine, versions = settings.get("machine", {}), settings.get("versions", {})
    parts = [", ".join(f"{k} {v}" for k, v in versions.items()), ", ".join(f"{k} {v}" for k, v in machine.items())]
    parts.append(f"started {settings['started']}" if settings.get("started") else "")
    text = "; ".join(part for part in parts if part) or "The machine is not known."
    return "<footer>" + paragraph(f"Made by `pliant study {study}` from {folder.name}/: {text}.") + "</footer>"


def count(n: int, what: str) -> str:
    return f"{n} {what}{'s' * (n != 1)}"
