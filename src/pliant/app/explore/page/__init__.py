"""The files of the page, and the page as a single file."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
SCRIPTS = ("trace.js", "draw.js", "ask.js", "controls.js", "stage.js", "page.js")  # each uses those before it
CONTENT_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
}


def read(name: str) -> str:
    """Return one of the files of the page."""
    return (FOLDER / name).read_text(encoding="utf-8")


def whole(frozen: dict[str, Any]) -> str:
    """Return the page as one file without requests: style, scripts and answers are in it.

    Args:
        frozen: the catalogue, and all answers that the page can show.
    """
    style, script = read("style.css"), "\n".join(read(name) for name in SCRIPTS)
    # Inside a script element, "</script" would end it, and "<!--" would change where it ends.
    data = json.dumps(frozen, allow_nan=False, ensure_ascii=False).replace("<", "\\u003c")
    policy = (
        f"default-src 'none'; script-src '{_digest(script)}'; style-src '{_digest(style)}'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )
    page, charset = read("index.html"), '<meta charset="utf-8">'
    parts = {
        charset: f'{charset}\n<meta http-equiv="Content-Security-Policy" content="{policy}">',
        '<link rel="stylesheet" href="style.css">': f"<style>{style}</style>",
        "".join(f'<script src="{name}" defer></script>\n' for name in SCRIPTS): "",
        "</body>": f'<script type="application/json" id="frozen">{data}</script>\n<script>{script}</script>\n</body>',
    }
    for old, new in parts.items():
        if page.count(old) != 1:
            raise RuntimeError(f"index.html must hold {old!r} once")
        page = page.replace(old, new)
    return page


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
