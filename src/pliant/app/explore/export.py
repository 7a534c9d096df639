"""A frozen copy of the page: answers to a choice of models, pictures and poses, in one file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from pliant.app.explore.look import look
from pliant.app.explore.networks import Network
from pliant.app.explore.page import whole
from pliant.app.explore.pictures import Picture
from pliant.app.explore.server import catalog

MOST_BYTES = 2_000_000
# Upright first; then what shows most about a network, a little of each before more of any.
POSES = ((1.0, 0), (1.0, 45), (0.6, 0), (1.5, 0), (1.0, -45), (1.0, 90), (1.5, 45), (0.6, 45), (1.0, -90))


def frozen(networks: Sequence[Network], pictures: Sequence[Picture], most: int = MOST_BYTES) -> dict[str, Any]:
    """Return the catalogue, and as many answers as fit a page of fewer than `most` bytes.

    Raises:
        ValueError: not even the first one fits.
    """
    looks: list[dict[str, Any]] = []
    shown = list(pictures)
    size = len(whole({"catalog": catalog(networks, shown), "looks": []}).encode())
    for network, picture, (scale, angle) in _wishes(networks, pictures):
        answer = look(network, picture, scale, angle)
        entry = {"model": network.id, "picture": picture.id, "scale": scale, "angle": angle, "look": answer}
        more = len(json.dumps(entry, ensure_ascii=False).encode()) + 2
        if size + more >= most:
            break
        size += more
        looks.append(entry)
    if not looks:
        raise ValueError(f"--export: one answer alone makes the page larger than {most / 1e6:g} MB")
    there = {entry["model"] for entry in looks}, {entry["picture"] for entry in looks}
    kept = [n for n in networks if n.id in there[0]], [p for p in shown if p.id in there[1]]
    return {"catalog": catalog(*kept), "looks": looks}


def _wishes(
    networks: Sequence[Network], pictures: Sequence[Picture]
) -> Iterator[tuple[Network, Picture, tuple[float, int]]]:
    """Return what to show, the most wanted first: every network once, then poses, then more pictures."""
    suited = {n.id: [p for p in pictures if p.kind == "yours" or (p.kind == "scene") == n.detects] for n in networks}
    for rank in range(max(map(len, suited.values()))):
        for pose in POSES:
            for network in networks:
                # Poses of the answers of detectors are large: theirs are more scenes instead.
                if rank < len(suited[network.id]) and (pose == POSES[0] or not network.detects):
                    yield network, suited[network.id][rank], pose
