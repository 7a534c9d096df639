"""The server of the explorer: for this machine only, one page, no state except the images that users sent."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import SplitResult, parse_qsl, urlsplit

from pliant.app import trace
from pliant.app.explore.look import look
from pliant.app.explore.networks import Network
from pliant.app.explore.page import CONTENT_TYPES, SCRIPTS, read
from pliant.app.explore.pictures import ANGLES, MOST_BYTES, SCALES, BadPicture, Gallery, Picture

HOST = "127.0.0.1"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
WAIT = 30  # seconds after which a silent connection is closed


class Refused(Exception):
    """A request that is answered with an error status and a sentence."""

    def __init__(self, status: HTTPStatus, sentence: str) -> None:
        super().__init__(sentence)
        self.status, self.sentence = status, sentence


class Server(ThreadingHTTPServer):
    """Serve the page; every request has its own thread.

    Args:
        networks: to choose from.
        gallery: of images.
        port: 0 takes any free port.

    Raises:
        OSError: the port is taken.
    """

    daemon_threads = True  # Ctrl-C does not wait for slow requests
    allow_reuse_address = True

    def __init__(self, networks: Sequence[Network], gallery: Gallery, port: int = 0) -> None:
        self.networks = {network.id: network for network in networks}
        self.gallery = gallery
        super().__init__((HOST, port), Handler)
        # Another site's name may resolve to this machine (DNS rebinding), but browsers then send that name as Host.
        self.names = {f"{name}:{self.server_port}" for name in (HOST, "localhost")}

    @property
    def address(self) -> str:
        """Return the page's address."""
        return f"http://{HOST}:{self.server_port}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print an error in one line; a closed connection is not an error."""
        error = sys.exc_info()[1]
        if error is not None and not isinstance(error, ConnectionError | TimeoutError):
            trace(error)
            print(f"pliant explore: {type(error).__name__}: {error}", file=sys.stderr)


class Handler(BaseHTTPRequestHandler):
    """Answer one connection."""

    server: Server
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "pliant", ""
    timeout = WAIT

    def do_GET(self) -> None:
        self._answer(self._get)

    def do_HEAD(self) -> None:
        self._answer(self._get)

    def do_POST(self) -> None:
        self._answer(self._post)

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing for successful requests, which come with every movement of a slider."""

    def _answer(self, respond: Any) -> None:
        try:
            self._from_here()
            content_type, body = respond()
            self._send(HTTPStatus.OK, content_type, body)
        except Refused as refused:
            self._fail(refused.status, refused.sentence)
        except (ConnectionError, TimeoutError):
            raise
        except Exception as error:
            trace(error)
            print(f"pliant explore: {self.path}: {type(error).__name__}: {error}", file=sys.stderr)
            self._fail(HTTPStatus.INTERNAL_SERVER_ERROR, f"This failed: {type(error).__name__}: {error}")

    def _from_here(self) -> None:
        """Refuse requests that the page of another site may have sent."""
        if self.headers.get("Host", "").lower() not in self.server.names:
            raise Refused(HTTPStatus.FORBIDDEN, f"This server answers as {self.server.address} only.")
        origin = self.headers.get("Origin")
        if origin is not None and origin.removeprefix("http://").lower() not in self.server.names:
            raise Refused(HTTPStatus.FORBIDDEN, "This server answers to its own page only.")

    def _get(self) -> tuple[str, bytes]:
        address = _address(self.path)
        if address.path == "/api/catalog":
            return "application/json", _json(catalog(list(self.server.networks.values()), self.server.gallery.all()))
        if address.path == "/api/look":
            return "application/json", _json(self._look(dict(parse_qsl(address.query))))
        name = "index.html" if address.path == "/" else address.path[1:]
        suffix = name[name.rfind(".") :]
        # Only names of this list are read: no path comes from a request.
        if suffix not in CONTENT_TYPES or name not in ("index.html", "style.css", *SCRIPTS):
            raise Refused(HTTPStatus.NOT_FOUND, f"There is no {address.path} here.")
        return CONTENT_TYPES[suffix], read(name).encode()

    def _look(self, asked: dict[str, str]) -> dict[str, Any]:
        network = self.server.networks.get(asked.get("model", ""))
        if network is None:
            raise Refused(HTTPStatus.NOT_FOUND, "There is no such model.")
        try:
            picture = self.server.gallery.find(asked.get("picture", ""))
        except LookupError as error:
            raise Refused(HTTPStatus.NOT_FOUND, str(error.args[0])) from error
        scale = _number(asked, "scale", 1.0, *SCALES)
        angle = _number(asked, "angle", 0.0, *ANGLES)
        return look(network, picture, scale, angle)

    def _post(self) -> tuple[str, bytes]:
        address = _address(self.path)
        if address.path != "/api/pictures":
            raise Refused(HTTPStatus.NOT_FOUND, f"Nothing can be sent to {address.path}.")
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit()):
            raise Refused(HTTPStatus.LENGTH_REQUIRED, "The request must state the size of the file (Content-Length).")
        # Python refuses to convert thousands of digits.
        if len(length) > 20 or int(length) > MOST_BYTES:
            raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"Files of at most {MOST_BYTES >> 20} MB are accepted.")
        data = self.rfile.read(int(length))
        if len(data) < int(length):
            raise ConnectionError("the file ended too early")
        name = dict(parse_qsl(address.query)).get("name", "picture")
        try:
            picture = self.server.gallery.add(data, name)
        except BadPicture as error:
            raise Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, str(error)) from error
        return "application/json", _json(picture.entry())

    def _fail(self, status: HTTPStatus, sentence: str) -> None:
        # An unread body would be taken for the next request.
        self.close_connection = True
        self._send(status, "application/json", _json({"error": sentence}))

    def _send(self, status: HTTPStatus, content_type: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Security-Policy", POLICY)
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("Cross-Origin-Resource-Policy", "same-origin")
        self.send_header("Cache-Control", "no-store")
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def catalog(networks: Sequence[Network], pictures: Sequence[Picture]) -> dict[str, Any]:
    """Return the models and images to choose from."""
    return {
        "models": [{"id": n.id, "label": n.label, "about": n.about, "detects": n.detects} for n in networks],
        "pictures": [picture.entry() for picture in pictures],
    }


def _address(path: str) -> SplitResult:
    try:
        return urlsplit(path)
    except ValueError as error:
        raise Refused(HTTPStatus.BAD_REQUEST, f"This is no address: {error}.") from error


def _number(asked: dict[str, str], name: str, usual: float, least: float, most: float) -> float:
    try:
        value = float(asked.get(name, usual))
    except ValueError:
        value = math.nan
    if not least <= value <= most:
        raise Refused(HTTPStatus.BAD_REQUEST, f"{name} must be a number from {least:g} to {most:g}.")
    return value


def _json(value: Any) -> bytes:
    return json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
