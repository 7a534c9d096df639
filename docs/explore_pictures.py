"""Draw the pictures of explore.md: ``python docs/explore_pictures.py``. Needs the packages of `make test-browser`."""

from __future__ import annotations

import io
import shutil
import threading
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

from pliant.app.explore import networks
from pliant.app.explore.pictures import Gallery
from pliant.app.explore.server import Server

FOLDER = Path(__file__).parent / "pictures"
SIZE = {"width": 960, "height": 800}
READY = "document.getElementById('stage').dataset.ready && !asking && !drawing && sheet"
DETECTOR, LEAST = "mdconv-c3-c5-mdpool", "0.8"  # every box of that score is a true one in the first scene


def settled(page: Page) -> None:
    """Wait until what was asked for is drawn; Playwright's own way to wait needs eval, which the page forbids."""
    page.wait_for_timeout(300)
    while not page.evaluate(f"Boolean({READY})"):
        page.wait_for_timeout(50)


def save(page: Page, name: str) -> None:
    """Write what the page shows with 256 colours."""
    settled(page)
    shot = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    path = FOLDER / f"{name}.png"
    shot.quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{path}: {shot.width}×{shot.height}, {path.stat().st_size / 1024:.0f} KiB")


def main() -> None:
    server = Server(networks.bundled(), Gallery())
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with sync_playwright() as playwright:
        path = shutil.which("chromium") or shutil.which("google-chrome")
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport=SIZE, device_scale_factor=1.5)
        page.goto(server.address)
        settled(page)
        box = page.locator("#stage").bounding_box()
        assert box is not None
        # The page says where the pointer is.
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2, steps=4)
        save(page, "explore")
        page.select_option("#model", DETECTOR)
        settled(page)
        page.get_by_text("Detections", exact=True).click()
        page.locator("#least").fill(LEAST)
        page.evaluate("scrollTo(0, 0)")
        save(page, "explore-detections")
        browser.close()
    server.shutdown()


if __name__ == "__main__":
    main()
