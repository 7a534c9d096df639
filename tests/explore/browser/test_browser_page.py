"""The page with pictures of people, on all screens, and on its own."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pliant.app import main
from pliant.app.explore.server import Server

DETECTOR = "mdconv-c3-c5-mdpool"


def png(colour: tuple[int, int, int] = (180, 40, 40)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (90, 60), colour).save(buffer, format="PNG")
    return buffer.getvalue()


def test_own_pictures_are_opened_and_dropped(page: Any) -> None:
    tab = page.page
    count = tab.locator(".thumb").count()

    def give(data: bytes, name: str) -> None:
        tab.set_input_files("#file", {"name": name, "mimeType": "image/png", "buffer": data})

    page.answered(lambda: give(png(), "mine.png"))
    assert tab.locator(".thumb").count() == count + 1
    assert tab.locator(".thumb input:checked").get_attribute("aria-label") == "mine.png"
    give(b"not a picture", "broken.png")
    tab.wait_for_selector("#trouble:not([hidden])")
    assert "not an image in one of the formats" in tab.text_content("#trouble")
    page.complaints[:] = [text for text in page.complaints if "415" not in text]  # Chromium's line of a refused request
    # Dropping, as a browser does it.
    drop = """bytes => {
        const data = new DataTransfer();
        data.items.add(new File([new Uint8Array(bytes)], "dropped.png", { type: "image/png" }));
        const options = { dataTransfer: data, cancelable: true };
        for (const type of ["dragenter", "drop"]) dispatchEvent(new DragEvent(type, options));
    }"""
    page.answered(lambda: tab.evaluate(drop, [*png((10, 90, 20))]))
    assert not tab.locator("#trouble").is_visible() and not tab.locator("#drop").is_visible()
    assert tab.locator(".thumb input:checked").get_attribute("aria-label") == "dropped.png"
    # It is there for the other networks too.
    page.model(DETECTOR)
    assert (tab.evaluate("state.look.width"), tab.evaluate("state.look.height")) == (128, 85)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
def test_page_is_readable(opener: Callable[..., Any], server: Server, width: int, scheme: str) -> None:
    opened = opener(server.address, width, scheme)
    tab = opened.page
    for model in ("deform-v2-3", DETECTOR):
        opened.model(model)
        if model == DETECTOR:
            tab.check("#mode-objects")
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        outside = tab.evaluate(
            "[...document.querySelectorAll('main *')].filter(e => e.checkVisibility() && e.clientWidth"
            " && e.getBoundingClientRect().right > innerWidth + 0.5).map(e => e.outerHTML)"
        )
        assert outside == []
    stage = tab.locator("#stage").bounding_box()
    assert stage["width"] >= (500 if width == 1280 else 360)
    if width == 1280:
        assert stage["y"] + stage["height"] < 900
    # However far one scrolls, the picture, which stays in view, covers nothing else.
    for far in (200, 400, 4000):
        tab.evaluate(f"scrollTo(0, {far})")
        assert tab.evaluate("document.querySelector('#keys').getBoundingClientRect().bottom") <= tab.evaluate(
            "document.querySelector('.inhibition').getBoundingClientRect().top"
        )
    tab.evaluate("scrollTo(0, 0)")
    rows = tab.evaluate(
        "['--paper', '--ink', '--quiet', '--accent', '--on'].map(n => getComputedStyle(document.documentElement)"
        ".getPropertyValue(n).trim())"
    )
    paper, ink, quiet, accent, on = map(luminance, rows)
    assert (paper > 0.8) == (scheme == "light")
    for one, other, least in ((paper, ink, 12), (paper, quiet, 4.5), (paper, accent, 4.5), (on, accent, 4.5)):
        assert (max(one, other) + 0.05) / (min(one, other) + 0.05) >= least
    opened.close()


def test_light_and_dark_change_while_it_is_open(page: Any) -> None:
    light = page.drawn()
    page.page.emulate_media(color_scheme="dark")
    page.until("colours.dark")
    dark = page.drawn()
    assert dark != light
    page.page.emulate_media(color_scheme="light")
    page.until("!colours.dark")
    assert page.drawn() != dark


def luminance(colour: str) -> float:
    """Return the relative luminance of "#rrggbb" as WCAG defines it."""
    values = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def test_drawing_is_as_sharp_as_its_place_is_wide(page: Any) -> None:
    for width in (1280, 700, 420):
        page.page.set_viewport_size({"width": width, "height": 900})
        for id in ("stage", "bars", "before", "after"):
            page.until(
                f"(e => e.width === Math.round(e.clientWidth * devicePixelRatio))(document.getElementById('{id}'))"
            )


def test_touch_sets_the_place_and_holds_it(opener: Callable[..., Any], server: Server) -> None:
    opened = opener(server.address, 400, has_touch=True)
    opened.page.locator("#stage").scroll_into_view_if_needed()
    opened.page.touchscreen.tap(*opened.over(50, 12))
    opened.said("row 3, column 12: 9, 81, 729 paths, held")
    opened.page.touchscreen.tap(*opened.over(20, 40))
    opened.said("row 10, column 5: 9, 81, 729 paths, held")
    opened.close()


def test_lost_server_gets_a_sentence(page: Any) -> None:
    page.page.route("**/api/look*", lambda route: route.abort())
    page.page.fill("#angle", "35")
    page.page.wait_for_selector("#trouble:not([hidden])")
    assert page.page.text_content("#trouble") == "The server does not answer. Is pliant explore still running?"
    page.page.unroute("**/api/look*")
    page.answered(lambda: page.page.fill("#angle", "40"))
    assert not page.page.locator("#trouble").is_visible()
    page.complaints[:] = [text for text in page.complaints if "ERR_FAILED" not in text]


def test_frozen_copy_works_without_anybody(opener: Callable[..., Any], server: Server, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    assert main(["explore", "--export", str(path)]) == 0
    opened = opener(path.as_uri(), offline=True)
    tab = opened.page
    assert {url for url in opened.asked if not url.startswith(("data:", "blob:"))} == {path.as_uri()}
    live = opener(server.address)
    points = "[...state.found[2].points]"
    np.testing.assert_allclose(tab.evaluate(points), live.page.evaluate(points))
    live.close()
    tab.mouse.move(*opened.over(20, 40))
    opened.said("row 10, column 5")
    opened.answered(lambda: tab.fill("#angle", "40"))
    assert tab.text_content("#angle-said") == "45°"  # the nearest that it holds
    assert opened.changes(lambda: opened.answered(lambda: tab.locator(".thumb input").nth(1).check()))
    assert not tab.locator("#upload").is_visible() and "frozen copy" in tab.text_content("#foot")
    opened.model(DETECTOR)
    tab.check("#mode-objects")
    assert tab.locator("#objects button").count() > 2
    opened.close()
