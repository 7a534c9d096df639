"""A frozen copy of the page: one file with the answers for some models, images and poses."""

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
# (scale, angle), most wanted first.
POSES = ((1.0, 0), (1.0, 45), (0.6, 0), (1.5, 0), (1.0, -45), (1.0, 90), (1.5, 45), (0.6, 45), (1.0, -90))


def frozen(
    networks: Sequence[Network], pictures: Sequence[Picture], most: int = MOST_BYTES
) -> tuple[dict[str, Any], list[str]]:
    """Return the catalogue with as many answers as fit into a page of fewer than `most` bytes, and what is left out.

    Answers of a network are added until one does not fit.

    Raises:
        ValueError: not even one answer fits.
    """
    looks: list[dict[str, Any]] = []
    size = len(whole({"catalog": catalog(networks, pictures), "looks": []}).encode())
    full: set[str] = set()
    for network, picture, (scale, angle) in _wishes(networks, pictures):
        if network.id in full:
            continue
        answer = look(network, picture, scale, angle)
        entry = {"model": network.id, "picture": picture.id, "scale": scale, "angle": angle, "look": answer}
        more = len(json.dumps(entry, ensure_ascii=False).encode()) + 2
        if size + more >= most:
            full.add(network.id)
            continue
        size += more
        looks.append(entry)
    if not looks:
        raise ValueError(f"--export: one answer alone makes the page larger than {most / 1e6:g} MB")
    models, shown = {entry["model"] for entry in looks}, {entry["picture"] for entry in looks}
    kept = catalog([n for n in networks if n.id in models], [p for p in pictures if p.id in shown])
    left = [f"{n.label}: one answer alone is too large" for n in networks if n.id not in models]
    return {"catalog": kept, "looks": looks}, left


def _wishes(
    networks: Sequence[Network], pictures: Sequence[Picture]
) -> Iterator[tuple[Network, Picture, tuple[float, int]]]:
    """Yield what to show, most wanted first: every network once, then poses, then more images."""
    suited = {n.id: [p for p in pictures if p.kind == "yours" or (p.kind == "scene") == n.detects] for n in networks}
    for rank in range(max(map(len, suited.values()))):
        for pose in POSES:
            for network in networks:
                # Answers of detectors are large: they get more scenes instead of more poses.
                if rank < len(suited[network.id]) and (pose == POSES[0] or not network.detects):
                    yield network, suited[network.id][rank], pose
