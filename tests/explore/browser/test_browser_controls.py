"""Every control of the page does what it says, by mouse and by keys."""

from __future__ import annotations

from typing import Any

import numpy as np

from pliant.app.explore.server import Server

DETECTOR = "mdconv-c3-c5-mdpool"


def test_points_follow_the_pointer_until_they_are_held(page: Any) -> None:
    mouse = page.page.mouse
    mouse.move(*page.over(20, 40))
    page.said("row 10, column 5")
    first = page.drawn()
    mouse.move(*page.over(50, 12))
    page.said("row 3, column 12")
    assert page.drawn() != first
    mouse.down()
    mouse.up()
    page.said("held")
    mouse.move(*page.over(20, 40))
    page.page.wait_for_timeout(200)
    page.said("row 3, column 12")
    mouse.down()
    mouse.up()
    page.said("row 10, column 5")
    assert "held" not in page.page.text_content("#said")


def test_every_switch_of_the_sampling_points_draws_something(page: Any) -> None:
    tab = page.page
    for id in ("level-1", "level-2", "level-3", "modulation", "regular", "field"):
        for _ in ("off", "on"):
            assert page.changes(lambda id=id: tab.locator(f"#{id}").click()), id
    assert page.changes(lambda: tab.get_by_label("features.conv4", exact=True).check())
    page.said("conv4, row")
    assert tab.locator("#levels label").all_inner_texts() == [
        "features.conv4\n9 paths", "… through features.conv3\n81 paths", "… through features.conv2\n729 paths"
    ]  # fmt: skip
    tab.locator("#level-3").uncheck()
    page.settled()
    assert tab.evaluate("state.found.map(f => f.count)") == [9, 81]
    assert not tab.locator("#groups-field").is_visible() and not tab.locator("#mode").is_visible()


def test_a_slow_receptive_field_waits_until_the_pointer_rests(page: Any) -> None:
    tab = page.page
    tab.check("#field")
    page.settled()
    page.until("fields.key.startsWith('5,136,')")  # conv5, row 8 of 16, column 8
    # What should wait 150 ms waits for us.
    tab.evaluate(
        "(() => { const later = setTimeout; window.resting = []; fields.cost = 1e9;"
        "window.setTimeout = (f, ms) => (ms === 150 ? resting.push(f) : later(f, ms)); })()"
    )
    tab.mouse.move(*page.over(20, 40))
    page.until("state.output && state.output.q === 165")
    without = page.drawn()
    assert not tab.evaluate("fields.key").startswith("5,165,")
    tab.evaluate("resting.pop()()")
    page.until("fields.key.startsWith('5,165,')")
    assert page.drawn() != without
    assert tab.evaluate("fields.cost") < 1e9


def test_offset_groups_can_be_left_out(page: Any, server: Server) -> None:
    page.model(next(i for i in server.networks if i.endswith("best.pt")))
    assert page.page.locator("#units label").all_inner_texts() == [
        f"backbone.layer{stage}.{block}.conv2" for stage in (4, 3) for block in (1, 0)
    ]
    assert page.page.evaluate("state.found.map(f => f.count)") == [18, 324, 5832]
    assert page.changes(lambda: page.page.locator("#groups input").first.uncheck())
    assert page.page.evaluate("state.found.map(f => f.count)") == [9, 81, 729]
    assert page.page.locator("#levels small").all_inner_texts() == ["9 paths", "81 paths", "729 paths"]
    page.page.locator("#groups input").last.uncheck()
    page.settled()
    page.said("no paths")


def test_pose_is_asked_of_the_network(page: Any) -> None:
    tab = page.page
    page.answered(lambda: tab.fill("#scale", "0.5"))
    page.answered(lambda: tab.fill("#angle", "-45"))
    assert (tab.text_content("#scale-said"), tab.text_content("#angle-said")) == ("1.41 ×", "-45°")
    last = [url for url in page.asked if "/api/look" in url][-1]
    assert "scale=1.414" in last and "angle=-45" in last
    turned = tab.evaluate("state.look.picture")
    page.answered(lambda: tab.click("#upright"))
    assert tab.evaluate("state.look.picture") != turned
    assert (tab.text_content("#scale-said"), tab.text_content("#angle-said")) == ("1.00 ×", "0°")
    assert tab.locator(".answer").count() == 3


def test_of_many_wishes_the_last_counts(page: Any) -> None:
    before = len(page.asked)
    page.page.evaluate(
        "for (let a = 5; a <= 150; a += 5) { const s = document.getElementById('angle'); s.value = a;"
        "s.dispatchEvent(new Event('input')); }"
    )
    page.until("state.angle === 150 && !asking")
    asked = [url for url in page.asked[before:] if "/api/look" in url]
    assert len(asked) == 2 and asked[-1].endswith("angle=150")


def test_keys_alone_are_enough(page: Any) -> None:
    tab = page.page
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.className") == "skip"
    reached = set()
    for _ in range(40):
        tab.keyboard.press("Tab")
        reached.add(tab.evaluate("document.activeElement.id || document.activeElement.name"))
        # Whoever has the focus shows it: an outline of his own, or of his label or picture.
        outlined = (
            "[e, e.nextElementSibling, e.parentElement].some(x => x && getComputedStyle(x).outlineStyle !== 'none')"
        )
        assert tab.evaluate(f"(e => e === document.body || {outlined})(document.activeElement)")
    controls = {
        "model",
        "file",
        "picture",
        "stage",
        "scale",
        "angle",
        "upright",
        "unit",
        "level-1",
        "level-2",
        "level-3",
    }
    assert reached >= controls | {
        "modulation",
        "regular",
        "field",
        "radius",
        "bias",
        "alpha",
        "beta",
        "channel",
        "usual",
    }
    tab.focus("#stage")
    tab.keyboard.press("ArrowRight")
    page.said("row 8, column 9")
    tab.keyboard.press("Shift+ArrowUp")
    page.said("row 4, column 9: 9, 81, 729 paths, held")
    for _ in range(9):
        tab.keyboard.press("ArrowUp")
    page.said("row 0, column 9")
    tab.keyboard.press("Escape")
    page.until("!state.held")
    tab.keyboard.press("Enter")
    page.until("state.held")


def test_every_control_has_a_name(page: Any) -> None:
    page.model(DETECTOR)
    unnamed = page.page.evaluate(
        "[...document.querySelectorAll('input, select, button, canvas')].filter(e => !(e.ariaLabel"
        " || e.textContent.trim() || [...(e.labels || [])].some(l => l.textContent.trim()))).map(e => e.outerHTML)"
    )
    assert unnamed == []


def test_detections_boxes_rois_and_bins(page: Any) -> None:
    tab = page.page
    page.model(DETECTOR)
    assert page.changes(lambda: tab.check("#mode-objects"))
    assert not tab.locator("#points-controls").is_visible()
    for id in ("boxes", "rois", "bins", "weights"):
        for _ in ("off", "on"):
            assert page.changes(lambda id=id: tab.click(f"#{id}")), id
    objects = tab.evaluate("state.look.detection.objects")
    many = [o for o in objects if o["score"] >= 0.5]
    texts = tab.locator("#objects button").all_inner_texts()
    assert texts == [f"{o['label']}\n{o['score']:.2f}" for o in many] and len(many) > 2
    # The smallest box under the pointer is chosen.
    x1, y1, x2, y2 = many[2]["box"]
    tab.mouse.move(*page.over((x1 + x2) / 2, (y1 + y2) / 2))
    chosen = tab.evaluate("state.chosen")
    x, y = (x1 + x2) / 2, (y1 + y2) / 2
    around = [i for i, o in enumerate(many) if o["box"][0] < x < o["box"][2] and o["box"][1] < y < o["box"][3]]
    assert chosen == min(around, key=lambda i: np.prod(np.subtract(many[i]["box"][2:], many[i]["box"][:2])))
    tab.focus("#stage")
    tab.keyboard.press("ArrowRight")
    assert tab.evaluate("state.chosen") == (chosen + 1) % len(many)
    assert page.changes(lambda: tab.locator("#objects button").nth(0).click())
    assert tab.locator("#objects button[aria-pressed=true]").count() == 1
    page.said(f"{many[0]['label']}, score")
    tab.fill("#least", "0.95")
    assert tab.locator("#objects button").count() == sum(o["score"] >= 0.95 for o in objects)
    # A classifier has none of it.
    page.model("deform-v1-3")
    assert not tab.locator("#mode").is_visible() and tab.locator("#points-controls").is_visible()
    assert tab.locator("#modulation").is_disabled()
