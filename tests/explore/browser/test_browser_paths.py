"""The page follows paths by itself: they are those of the library."""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from pliant.app.explore.look import look
from pliant.app.explore.networks import Network
from pliant.app.explore.server import Server
from pliant.ops import lrn
from pliant.show.paths import Step, follow, spread


def received(network: Network, server: Server, picture: str) -> list[Step]:
    """Return the steps that the page gets; that they are those of the network is a test of `look`."""
    steps = []
    for entry in look(network, server.gallery.find(picture))["steps"]:
        T, (Ho, Wo) = len(entry["regular"]), entry["above"]
        offset = mask = None
        if entry["deformable"]:
            offset = unpacked(entry["moves"]).view(T, Ho, Wo, 2).permute(0, 3, 1, 2)
            mask = unpacked(entry["weights"]).view(T, Ho, Wo) / entry["weight"]
        steps.append(
            Step(
                torch.tensor(entry["regular"], dtype=torch.float64),
                torch.tensor(entry["stride"]),
                entry["below"],
                (Ho, Wo),
                entry["splits"],
                entry["weight"],
                offset,
                mask,
                entry["boundary"],
                entry["groups"],
            )
        )
    return steps


def unpacked(entry: dict[str, Any]) -> torch.Tensor:
    whole = np.frombuffer(base64.b64decode(entry["int16"]), "<i2")
    return torch.from_numpy(whole.astype(np.float64)) * entry["factor"]


def without_groups(step: Step, group: int) -> Step:
    """Return a step of one of its offset groups alone; each sample counts as it does beside the others."""
    if step.groups == 1:
        return step
    part = slice(group * len(step.regular) // step.groups, (group + 1) * len(step.regular) // step.groups)
    assert step.offset is not None
    mask = None if step.mask is None else step.mask[part]
    return replace(step, regular=step.regular[part], offset=step.offset[part], mask=mask, groups=1)


VARIANTS: dict[str, tuple[str, Callable[[Step], Step]]] = {
    "all": ("{}", lambda step: step),
    "unmodulated": ("{modulation: false}", lambda step: replace(step, mask=None)),
    "regular": ("{offsets: false}", lambda step: replace(step, mask=None, offset=None)),
    "second group": ("{groups: new Set([1])}", lambda step: without_groups(step, 1)),
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("model", ["deform-v2-3", "mdconv-c3-c5-mdpool", "grouped"])
def test_paths_of_the_page_are_those_of_the_library(page: Any, server: Server, model: str, variant: str) -> None:
    options, change = VARIANTS[variant]
    id = next(i for i in server.networks if i.endswith("best.pt")) if model == "grouped" else model
    page.model(id)
    picture = page.page.evaluate("state.picture.id")
    steps = [change(step) for step in received(server.networks[id], server, picture)]
    Ho, Wo = steps[-1].above
    for position in ((Ho // 2, Wo // 2), (0, Wo - 1)):
        q = position[0] * Wo + position[1]
        for depth in (1, 2) if model == "grouped" else (1, 2, 3):
            found = page.page.evaluate(
                f"(() => {{ const f = trace(state.look.steps, state.look.steps.length - 1, {q}, {depth}, {options});"
                "return [[...f.points], [...f.weights]]; })()"
            )
            expected = follow(steps, position, depth, [""] * len(steps))
            np.testing.assert_allclose(np.reshape(found[0], (-1, 2)), expected.points, rtol=0, atol=1e-6)
            np.testing.assert_allclose(found[1], expected.weights, rtol=0, atol=1e-9)
        found = page.page.evaluate(
            f"[...support(state.look.steps, state.look.steps.length - 1, {q}, {options})]",
        )
        total = spread(steps, position)
        np.testing.assert_allclose(np.reshape(found, total.shape), total, rtol=0, atol=1e-9)


def test_inhibition_is_that_of_the_library(page: Any) -> None:
    tab = page.page
    for radius, bias, alpha, beta in ((5, 1.0, 1.0, 0.5), (0, 0.1, 2.0, 1.0), (2, 4.0, 0.05, 0.75), (8, 1.0, 0.0, 1.5)):
        for id, value in (("radius", radius), ("bias", bias), ("alpha", alpha), ("beta", beta)):
            tab.fill(f"#{id}", str(value))
        page.settled()
        x, y = tab.evaluate("[[...state.inhibition.x], [...state.inhibition.y]]")
        expected = lrn(torch.tensor(x, dtype=torch.float64), radius, bias, alpha, beta)
        np.testing.assert_allclose(y, expected, rtol=1e-12)
        assert max(x) > 0
    bars = tab.evaluate("document.getElementById('bars').toDataURL()")
    tab.click("#usual")
    page.settled()
    assert tab.evaluate("document.getElementById('bars').toDataURL()") != bars
    assert [tab.input_value(f"#{id}") for id in ("radius", "bias", "alpha", "beta")] == ["5", "1", "1", "0.5"]
    tab.fill("#channel", "3")
    page.until("document.getElementById('lrn-said').textContent.startsWith('Channel 3 here')")
