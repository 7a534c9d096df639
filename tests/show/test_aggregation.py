"""DCNv3 and DCNv4 in recordings: where they sample, from the image's pixels, through maps laid out in one dimension."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pliant.nn import DCNv3, DCNv4, OffsetHistory, OffsetStatistics, deformable
from pliant.ops import dcnv3
from pliant.show import figures
from pliant.show.influence import At, locations, receptive_field
from pliant.show.recording import record
from pliant.show.view import view

H, W = 9, 12


class Stage(nn.Module):
    """A strided stem, and layers on maps with channels last (DCNv3) or in a sequence (DCNv4), as in the networks."""

    def __init__(self, kind: type[DCNv3] | type[DCNv4], count: int = 1, **options: Any) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 2, padding=1)
        self.norm = nn.LayerNorm(16)
        self.layers = nn.ModuleList(kind(16, groups=2, **options) for _ in range(count))

    def forward(self, image: Tensor) -> Tensor:
        x = self.stem(image)
        size = x.shape[2:]
        x = x.permute(0, 2, 3, 1) if isinstance(self.layers[0], DCNv3) else x.flatten(2).transpose(1, 2)
        for layer in self.layers:
            more = self.norm(x)
            x = x + (layer(more) if isinstance(layer, DCNv3) else layer(more, shape=tuple(size)))
        return x


def _net(kind: type, *args: Any, **options: Any) -> Stage:
    """Return a stage whose layers move their samples."""
    torch.manual_seed(0)
    net = Stage(kind, *args, **options).eval()
    for layer in net.layers:
        for name in ("offset", "mask", "offset_mask"):
            if hasattr(layer, name):
                nn.init.normal_(getattr(layer, name).weight, std=0.2)
                nn.init.normal_(getattr(layer, name).bias)
    return net


def _sampled(layer: DCNv3 | DCNv4, position: tuple[int, int], input: Tensor) -> tuple[Tensor, Tensor]:
    """Return (y, x) of the samples (G·K, 2) of one position, and their masks, by the formula in plain Python."""
    if isinstance(layer, DCNv3):
        offset, mask = layer.predict(input)
        offset, mask = offset[0].unflatten(-1, (2, -1, 2)), mask[0].unflatten(-1, (2, -1))
    else:
        packed = layer.predict(input.flatten(1, 2), tuple(input.shape[1:3]))[0]
        K = layer.samples
        packed = packed[..., : 2 * 3 * K].unflatten(-1, (2, 3 * K))
        offset, mask = packed[..., : 2 * K].unflatten(-1, (K, 2)), packed[..., 2 * K :]
    (Kh, Kw), (ph, pw), (dh, dw), s = layer.kernel_size, layer.padding, layer.dilation, layer.offset_scale
    ch, cw = dh * (Kh - 1) // 2, dw * (Kw - 1) // 2
    places, masks = [], []
    for g in range(2):
        k = 0
        for i in range(Kw):
            for j in range(Kh):
                if layer.remove_center and (j, i) == (Kh // 2, Kw // 2):
                    continue
                dx, dy = offset[(*position, g, k)].tolist()
                y = position[0] - ph + ch + s * (j * dh - ch + dy)
                x = position[1] - pw + cw + s * (i * dw - cw + dx)
                places.append((y, x))
                masks.append(float(mask[(*position, g, k)]))
                k += 1
    return torch.tensor(places), torch.tensor(masks)


SHAPES: list[dict[str, Any]] = [
    {},
    {"kernel_size": (3, 5), "padding": (1, 2), "offset_scale": 0.7},
    {"remove_center": True, "dilation": (2, 1), "padding": (2, 1)},
]


@pytest.mark.parametrize("kind", [DCNv3, DCNv4])
@pytest.mark.parametrize("options", SHAPES, ids=["usual", "scaled", "no centre"])
def test_samples_are_those_of_the_formula(kind: type, options: dict[str, Any]) -> None:
    net = _net(kind, **options)
    image = torch.randn(3, 2 * H, 2 * W)
    recording = record(net, image)
    assert list(recording.deformable()) == ["layers.0"]
    step = recording.deformable()["layers.0"]
    layer = net.layers[0]
    assert step.above == step.below == (H, W) and step.groups == 2 and step.kernel == layer.kernel_size
    with torch.no_grad():
        input = net.norm(net.stem(image[None]).permute(0, 2, 3, 1))
        for position in ((0, 0), (4, 7), (H - 1, W - 1)):
            places, masks = _sampled(layer, position, input)
            here = (slice(None), *position)
            found, count = step.positions.unflatten(1, step.above)[here].float(), step.mask[here]
            kept = count != 0
            # The same samples in another order: rows of taps first.
            mine, theirs = masks.abs().argsort(), count[kept].argsort()
            torch.testing.assert_close(count[kept][theirs], masks.abs()[mine])
            torch.testing.assert_close(found[kept][theirs], places[mine], atol=1e-4, rtol=1e-4)
            trace = recording.trace(position, "layers.0", depth=1)
            wanted = ((found > -1) & (found < torch.tensor([H, W]))).all(1) & kept
            assert trace.inside.tolist() == wanted.tolist()


@pytest.mark.parametrize("kind", [DCNv3, DCNv4])
def test_what_is_traced_is_what_the_layer_reads(kind: type) -> None:
    """The support of a position and the gradient of its features agree on the pixels that count."""
    net = _net(kind, 2)
    image = torch.randn(3, 2 * H, 2 * W)
    recording = record(net, image)
    map_ = recording.node("layers.1")
    assert map_.size == (H, W)
    support = recording.support((4, 6), "layers.1")
    field = receptive_field(net, image, At("layers.1", (4, 6), map=map_))
    assert support.shape == field.shape and (support > 0).sum() > 100
    # Offsets of the layer above depend on pixels that are not sampled: only the way from samples to pixels is certain.
    assert (field[support > 0] > 0).all()


def test_the_answer_of_a_layer_is_its_samples() -> None:
    """With ones as a map the layer returns the weights of the samples that lie inside."""
    x = torch.ones(1, H, W, 2)
    torch.manual_seed(1)
    offset, mask = 3 * torch.randn(1, H, W, 2 * 9 * 2), torch.rand(1, H, W, 2 * 9)

    class Op(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            return dcnv3(F.max_pool2d(image, 1).permute(0, 2, 3, 1), offset, mask, 3, padding=1, groups=2)

    recording = record(Op(), x.permute(0, 3, 1, 2)[0])
    total = recording.support((5, 5), "")
    assert total.sum() == pytest.approx(float(Op()(x.permute(0, 3, 1, 2))[0, 5, 5].mean()), rel=1e-5)


@pytest.mark.parametrize("kind", [DCNv3, DCNv4])
def test_effective_locations_follow_the_rows_of_taps(kind: type) -> None:
    net = _net(kind)
    image = torch.randn(3, 2 * H, 2 * W)
    recording = record(net, image)
    found = locations(net, image, At("layers.0", (4, 6), map=recording.node("layers.0")))["layers.0"]
    step = recording.deformable()["layers.0"]
    assert found.gradient.shape == (18, H, W, 2)
    assert recording.samples("layers.0").shape == (18, H, W, 2)
    # Only the position itself asks for its samples, and each counts as much as its mask lets it.
    assert (found.strength[:, 4, 6] > 0).all()
    elsewhere = found.strength.copy()
    elsewhere[:, 4, 6] = 0
    assert elsewhere.max() == 0
    assert step.mask is not None


def test_effective_locations_by_differences() -> None:
    """Moving one tap's offset of one position changes the response as its gradient says."""
    net = _net(DCNv3).double()
    image = torch.randn(3, 2 * H, 2 * W, dtype=torch.float64)
    node = At("layers.0", (4, 6), map=record(net, image).node("layers.0"))
    gradient = locations(net, image, node)["layers.0"].gradient
    layer, moved = net.layers[0], 1e-6
    for tap, (k, g) in {1: (3, 0), 5: (7, 0), 9 + 6: (2, 1)}.items():  # row j, column i: k = 3·i + j
        for axis in (0, 1):

            def push(branch: nn.Module, inputs: Any, output: Tensor, at: tuple[int, ...] = (g, k, 1 - axis)) -> Tensor:
                changed = output.clone().unflatten(-1, (2, 9, 2))
                changed[(0, 4, 6, *at)] += moved
                return changed.flatten(-3)

            with torch.no_grad():
                before = node(net, image[None]).norm()
                handle = layer.offset.register_forward_hook(push)
                after = node(net, image[None]).norm()
                handle.remove()
            assert float((after - before) / moved) == pytest.approx(gradient[tap, 4, 6, axis], rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("kind", [DCNv3, DCNv4])
def test_statistics_and_histograms(kind: type) -> None:
    net = _net(kind, offset_scale=2.0).train()
    layer = net.layers[0]
    nn.init.zeros_((layer.offset if kind is DCNv3 else layer.offset_mask).weight)
    with torch.no_grad():
        (layer.offset if kind is DCNv3 else layer.offset_mask).bias.fill_(1.5)
    with OffsetStatistics(net) as statistics, OffsetHistory(net) as history:
        net(torch.randn(2, 3, 2 * H, 2 * W))
    (report,) = statistics.report().values()
    # Offsets of 1.5 in both directions at scale 2: all samples move by 3 pixels down and to the right.
    assert report["mean"] == report["max"] == 3.0
    rows = sum(-1 < y - 0 + 2 * (t - 1) + 3 < H for y in range(H) for t in range(3)) / (3 * H)
    columns = sum(-1 < x - 0 + 2 * (t - 1) + 3 < W for x in range(W) for t in range(3)) / (3 * W)
    assert report["outside"] == pytest.approx(1 - rows * columns)
    assert history.records[0]["mean"] == pytest.approx(3 * 2**0.5)
    assert [name for name, _ in deformable.deformable_layers(net)] == ["layers.0"]


@pytest.mark.parametrize("kind", [DCNv3, DCNv4])
def test_every_figure_of_a_network(kind: type) -> None:
    pytest.importorskip("matplotlib")
    net = _net(kind, 2)
    look = view(net, torch.rand(3, 2 * H, 2 * W))
    assert look.layer == "layers.1"
    made, notes = figures.figures(look, evaluations=4)
    names = [figure.name for figure in made]
    assert {"picture", "taps", "sampling", "support", "offsets", "masks", "dilation"} <= {
        n.split("-")[0] for n in names
    }
    assert not any("deformable convolution" in note for note in notes)


def test_a_sequence_that_is_no_map_is_named() -> None:
    """What sorts or cuts a sequence loses rows and columns, and says so."""

    class Cut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 4, 3, padding=1)

        def forward(self, image: Tensor) -> Tensor:
            return self.stem(image).flatten(2)[:, :, 3:]

    recording = record(Cut(), torch.randn(3, 6, 8))
    assert "rows and columns are laid out in one dimension" in recording.stop()
