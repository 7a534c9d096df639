from __future__ import annotations

import http.client
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pliant import app
from pliant.app import main
from pliant.app.explore import server as module
from pliant.app.explore.page import SCRIPTS
from pliant.app.explore.server import Server


def ask(
    server: Server, method: str, path: str, body: bytes | None = None, timeout: float = 60, **headers: str
) -> tuple[int, http.client.HTTPMessage, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=timeout)
    try:
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        response = connection.getresponse()
        return response.status, response.headers, response.read()
    finally:
        connection.close()


def ask_as_written(server: Server, method_and_path: str, *headers: str) -> str:
    """Send what http.client refuses to send; return the whole answer."""
    lines = (f"{method_and_path} HTTP/1.1", f"Host: 127.0.0.1:{server.server_port}", *headers, "")
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=30) as connection:
        connection.sendall("".join(f"{line}\r\n" for line in lines).encode())
        return b"".join(iter(lambda: connection.recv(65536), b"")).decode()


def sentence(body: bytes) -> str:
    (text,) = json.loads(body).values()
    assert isinstance(text, str) and "\n" not in text
    return text


def png(size: tuple[int, int] = (70, 50)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (200, 30, 30)).save(buffer, format="PNG")
    return buffer.getvalue()


def test_page_and_its_parts_come_with_a_strict_policy(server: Server) -> None:
    for path in ("/", "/style.css", *(f"/{name}" for name in SCRIPTS)):
        status, headers, body = ask(server, "GET", path)
        assert status == 200 and len(body) == int(headers["Content-Length"]) > 500
        policy = headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
        assert headers["X-Content-Type-Options"] == "nosniff"
        # Nothing in it names another host; that of SVG's namespace would be the only honest reason.
        assert re.findall(rb"(?:https?:)?//[a-z0-9.-]+\.[a-z]{2,}", body) == []
    page = ask(server, "GET", "/")[2].decode()
    assert not re.search(r"\son[a-z]+=|\sstyle=|<script>", page)


def test_head_is_a_get_without_its_body(server: Server) -> None:
    status, headers, body = ask(server, "HEAD", "/")
    assert (status, body) == (200, b"") and int(headers["Content-Length"]) > 500


@pytest.mark.parametrize(
    "path", ["/../server.py", "/%2e%2e/server.py", "/__init__.py", "/page", "//etc/passwd", "/x.js"]
)
def test_nothing_else_is_served(server: Server, path: str) -> None:
    status, _, body = ask(server, "GET", path)
    assert status == 404 and "There is no" in sentence(body)


def test_catalogue_lists_models_and_pictures(server: Server) -> None:
    found = json.loads(ask(server, "GET", "/api/catalog")[2])
    assert [m["id"] for m in found["models"]] == list(server.networks)
    assert {p["kind"] for p in found["pictures"]} >= {"object", "scene"}
    assert all(p["thumbnail"].startswith("data:image/png;base64,") for p in found["pictures"])


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example:80", "", "localhost"])
def test_other_names_are_refused(server: Server, host: str) -> None:
    status, _, body = ask(server, "GET", "/api/catalog", Host=host)
    assert status == 403 and server.address in sentence(body)


def test_own_names_are_not(server: Server) -> None:
    for name in ("127.0.0.1", "localhost", "LOCALHOST"):
        assert ask(server, "GET", "/api/catalog", Host=f"{name}:{server.server_port}")[0] == 200


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "https://127.0.0.1"])
def test_pages_of_other_sites_are_refused(server: Server, origin: str) -> None:
    before = len(server.gallery.all())
    status, _, body = ask(server, "POST", "/api/pictures?name=a.png", png(), Origin=origin)
    assert status == 403 and "its own page only" in sentence(body)
    assert len(server.gallery.all()) == before


def test_picture_is_sent_and_looked_at(server: Server) -> None:
    origin = server.address.rstrip("/")
    status, _, body = ask(server, "POST", "/api/pictures?name=my%20cat%26dog.png", png(), Origin=origin)
    entry = json.loads(body)
    assert status == 200 and entry["label"] == "my cat&dog.png" and entry["kind"] == "yours"
    for model in server.networks:
        status, _, body = ask(server, "GET", f"/api/look?model={model}&picture={entry['id']}&scale=1.5&angle=-30")
        answer = json.loads(body)
        assert status == 200 and any(step["deformable"] for step in answer["steps"])
        assert (answer["detection"] is not None) == server.networks[model].detects


def test_broken_files_get_a_sentence_and_the_server_goes_on(server: Server) -> None:
    for data in (b"not a picture", png((400, 400))[:150], b""):
        status, _, body = ask(server, "POST", "/api/pictures?name=a.png", data)
        assert status == 415 and sentence(body).endswith(".")
    assert ask(server, "POST", "/api/pictures?name=a.png", png())[0] == 200


def test_size_is_limited_before_anything_is_read(server: Server) -> None:
    for length, status, text in (
        (str(21 << 20), 413, "at most 20 MB are accepted"),
        ("-1", 411, "must state the size"),
        ("many", 411, "must state the size"),
        ("9" * 5000, 413, "at most 20 MB are accepted"),
    ):
        answer = ask_as_written(server, "POST /api/pictures", f"Content-Length: {length}")
        assert answer.startswith(f"HTTP/1.1 {status} ") and text in answer


@pytest.mark.parametrize(
    ("query", "status", "text"),
    [
        ("model=none&picture=object-9", 404, "no such model"),
        ("model=deform-v2-3&picture=none", 404, "choose it again"),
        ("model=deform-v2-3&picture=object-9&scale=0", 400, "scale must be a number from 0.25 to 4"),
        ("model=deform-v2-3&picture=object-9&scale=nan", 400, "scale must be a number"),
        ("model=deform-v2-3&picture=object-9&angle=1e9", 400, "angle must be a number from -180 to 180"),
        ("", 404, "no such model"),
    ],
)
def test_wrong_wishes_get_a_sentence(server: Server, query: str, status: int, text: str) -> None:
    found, _, body = ask(server, "GET", f"/api/look?{query}")
    assert found == status and text in sentence(body)


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_what_is_no_address_gets_a_sentence(server: Server, method: str) -> None:
    answer = ask_as_written(server, f"{method} http://[::1/api")
    assert answer.startswith("HTTP/1.1 400 ") and "no address" in answer


def test_mistakes_of_ours_get_a_sentence(
    server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*args: Any) -> None:
        raise KeyError("a bug")

    monkeypatch.setattr(module, "look", broken)
    status, _, body = ask(server, "GET", "/api/look?model=deform-v2-3&picture=object-9")
    assert status == 500 and "KeyError" in sentence(body)
    assert "KeyError" in capsys.readouterr().err
    monkeypatch.setattr(app, "_traced", True)  # what --traceback sets
    assert ask(server, "GET", "/api/look?model=deform-v2-3&picture=object-9")[0] == 500
    assert ", in broken\n" in capsys.readouterr().err
    assert ask(server, "GET", "/")[0] == 200


def test_requests_do_not_wait_for_each_other(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go_on, real = threading.Event(), threading.Event(), module.look
    slow: list[int] = []

    def look(network: Any, picture: Any, scale: float, angle: float) -> dict[str, Any]:
        if angle == 17:
            begun.set()
            assert go_on.wait(60)
        return real(network, picture, scale, angle)

    monkeypatch.setattr(module, "look", look)
    query = "/api/look?model=deform-v2-3&picture=object-9"
    thread = threading.Thread(target=lambda: slow.append(ask(server, "GET", f"{query}&angle=17")[0]))
    thread.start()
    try:
        assert begun.wait(60)
        assert ask(server, "GET", query)[0] == 200
        assert ask(server, "POST", "/api/pictures?name=a.png", png())[0] == 200
        assert slow == []
    finally:
        go_on.set()
        thread.join()
    assert slow == [200]


def test_looks_at_the_same_time_do_not_see_each_other(server: Server) -> None:
    def get(angle: int) -> Any:
        return json.loads(ask(server, "GET", f"/api/look?model=mdconv-c3-c5-mdpool&picture=scene-1&angle={angle}")[2])

    angles = (0, 30, 60)
    alone = [get(angle) for angle in angles]
    together: dict[int, Any] = {}
    threads = [threading.Thread(target=lambda a=a: together.update({a: get(a)})) for a in angles]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [together[angle] for angle in angles] == alone


def test_ctrl_c_is_a_clean_end() -> None:
    command = [
        sys.executable,
        "-c",
        # Where the tests themselves run in the background, a child would inherit that SIGINT is ignored.
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from pliant.app import main; sys.exit(main())",
        "explore",
        "--port",
        "0",
    ]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        port = int(re.search(r"http://127\.0\.0\.1:(\d+)/", line)[1])  # type: ignore[index]
        # A connection that is open and says nothing must not hold it.
        with socket.create_connection(("127.0.0.1", port), timeout=30):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            connection.request("GET", "/")
            assert connection.getresponse().read().startswith(b"<!doctype html>")
            connection.close()
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)
    assert (process.returncode, out.strip(), err) == (0, "pliant explore: ended", "")


def test_taken_port_and_missing_files_get_a_sentence(
    server: Server, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for words, text in (
        (["--port", str(server.server_port)], "choose one with --port"),
        (["--port", "70000"], "--port must be from 0 to 65535"),
        ([str(tmp_path / "none.pt")], "No such file"),
        (["--picture", str(tmp_path / "none.png")], "No such file"),
    ):
        assert main(["explore", *words]) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.startswith("pliant explore: ") and text in err and err.count("\n") == 1
