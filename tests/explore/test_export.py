from __future__ import annotations

import base64
import hashlib
import json
import re
from pathlib import Path

import pytest

from pliant.app import main
from pliant.app.explore import export
from pliant.app.explore.networks import Network
from pliant.app.explore.page import whole
from pliant.app.explore.pictures import Gallery


def test_export_is_one_small_page_that_asks_nobody(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "page.html"
    assert main(["explore", "--export", str(path)]) == 0
    assert capsys.readouterr().out.startswith(f"pliant explore: {path}, 1.")
    assert [p.name for p in tmp_path.iterdir()] == ["page.html"]
    data = path.read_bytes()
    assert 1_000_000 < len(data) < 2_000_000
    page = data.decode()
    frozen = json.loads(re.search(r'id="frozen">(.*?)</script>', page, re.DOTALL)[1])  # type: ignore[index]
    models, pictures = ({entry["id"] for entry in frozen["catalog"][part]} for part in ("models", "pictures"))
    assert {entry["model"] for entry in frozen["looks"]} == models
    assert {entry["picture"] for entry in frozen["looks"]} == pictures
    assert (
        len({(e["model"], e["picture"], e["scale"], e["angle"]) for e in frozen["looks"]}) == len(frozen["looks"]) > 9
    )
    outside = page.replace(json.dumps(frozen, ensure_ascii=False), "")
    assert re.findall(r'\s(?:src|href)="(?!data:|#)[^"]*"', outside) == []
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1]  # type: ignore[index]
    assert "connect-src" not in policy and "default-src 'none'" in policy
    for tag in ("style", "script"):
        text = re.search(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)[1]  # type: ignore[index]
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy


def test_names_cannot_end_the_script() -> None:
    page = whole({"catalog": {"models": [{"label": "</script><script>alert(1)</script>"}]}, "looks": []})
    assert page.count("<script") == 2 and page.count("</script>") == 2
    data = re.search(r'id="frozen">(.*?)</script>', page, re.DOTALL)[1]  # type: ignore[index]
    assert json.loads(data)["catalog"]["models"][0]["label"].startswith("</script>")


def test_what_does_not_fit_is_said(bundled: dict[str, Network]) -> None:
    networks = [bundled["mdconv-c3-c5-mdpool"], bundled["deform-v1-3"]]
    answers, left_out = export.frozen(networks, Gallery().all(), most=300_000)
    assert {entry["model"] for entry in answers["looks"]} == {"deform-v1-3"}
    assert [entry["id"] for entry in answers["catalog"]["models"]] == ["deform-v1-3"]
    assert left_out == ["Clothes in a scene: one answer alone is too large"]
    assert len(whole(answers).encode()) < 300_000
    with pytest.raises(ValueError, match=r"larger than 0\.05 MB"):
        export.frozen(networks, Gallery().all(), most=50_000)
