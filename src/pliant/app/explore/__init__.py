"""``pliant explore``: a page, served on this machine, on which the sampling points follow the pointer."""

from __future__ import annotations

import argparse
import warnings
import webbrowser
from pathlib import Path

from PIL import Image

from pliant._files import apart, replacing
from pliant.app.explore import networks
from pliant.app.explore.networks import Network
from pliant.app.explore.pictures import Gallery, Picture, read
from pliant.app.explore.server import Server

PORT = 8377


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what ``pliant explore`` takes."""
    parser.add_argument(
        "checkpoints", type=Path, nargs="*", metavar="MODEL",
        help="best.pt or last.pt of a run, weights of a study, or the name of a network of the package to begin with; "
        "the networks of the package are there anyway",
    )  # fmt: skip
    parser.add_argument(
        "--picture", type=Path, action="append", default=[], metavar="FILE", help="an image to start with; repeatable"
    )
    parser.add_argument("--port", type=int, default=PORT, help=f"default: {PORT}; 0 takes any free port")
    parser.add_argument("--open", action="store_true", help="open the page in a browser")
    parser.add_argument("--export", type=Path, metavar="FILE", help="write a frozen copy of the page instead")


def run(args: argparse.Namespace) -> int:
    """Serve the page until Ctrl-C, or write a copy of it; return the exit status."""
    if not 0 <= args.port < 65536:
        raise ValueError(f"--port must be from 0 to 65535, got {args.port}")
    # Pillow warns of suspiciously large images; here they are refused.
    warnings.simplefilter("error", Image.DecompressionBombWarning)
    chosen = _chosen(args.checkpoints)
    first = [Picture(f"file-{i}", path.name, "yours", read(path)) for i, path in enumerate(args.picture, 1)]
    gallery = Gallery(first)
    if args.export is not None:
        apart([args.export], [*args.checkpoints, *args.picture])
        return _export(args.export, chosen, gallery)
    try:
        server = Server(chosen, gallery, args.port)
    except OSError as error:
        raise OSError(f"port {args.port} cannot be used ({error.strerror}); choose one with --port") from error
    with server:
        print(f"pliant explore: {server.address}  (Ctrl-C ends it)", flush=True)
        if args.open:
            webbrowser.open(server.address)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print("\npliant explore: ended")
    return 0


def _chosen(given: list[Path]) -> list[Network]:
    """Return the networks of the page, those that are asked for first."""
    ours = {network.id: network for network in networks.bundled()}
    asked = [ours.pop(str(path)) if str(path) in ours and not path.exists() else networks.read(path) for path in given]
    return [*asked, *ours.values()]


def _export(path: Path, chosen: list[Network], gallery: Gallery) -> int:
    """Write a frozen copy to `path`, whole or not at all."""
    from pliant.app.explore.export import frozen
    from pliant.app.explore.page import whole

    answers, left_out = frozen(chosen, gallery.all())
    page = whole(answers).encode()
    with replacing(path) as part:
        part.write_bytes(page)
    for line in left_out:
        print(f"left out  {line}")
    print(f"pliant explore: {path}, {len(page) / 1e6:.2f} MB")
    return 0
