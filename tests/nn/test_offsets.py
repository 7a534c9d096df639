"""Learning rates of offset branches, and statistics of the offsets while training."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import warnings
import weakref

import pytest
import torch
from torch import Tensor, nn

from pliant.nn import (
    DeformConv2d,
    DeformPSRoIPool,
    DeformRoIPool,
    MSDeformAttn,
    OffsetHistory,
    OffsetStatistics,
    parameter_groups,
)


def _model() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        DeformConv2d(4, 4, 3, padding=1, version=1),
        nn.ReLU(),
        DeformConv2d(4, 4, 3, padding=1, version=2),
    )


def _ids(group: dict[str, list[Tensor]]) -> set[int]:
    return {id(p) for p in group["params"]}


def test_each_layers_own_multiplier() -> None:
    model = _model()
    fast, slow = parameter_groups(model, 0.2)
    assert fast["lr"] == 0.2
    assert slow["lr"] == pytest.approx(0.02)
    # Version 1 learns its offsets at the full rate, so it joins the rest.
    assert _ids(slow) == {id(p) for p in model[3].conv_offset.parameters()}
    assert _ids(fast) | _ids(slow) == {id(p) for p in model.parameters()}


def test_a_number_overrides_all() -> None:
    model = _model()
    _, slow = parameter_groups(model, 0.2, 0.5)
    assert slow["lr"] == 0.1
    branches = {id(p) for layer in (model[1], model[3]) for p in layer.conv_offset.parameters()}
    assert _ids(slow) == branches
    (one,) = parameter_groups(model, 0.2, 1.0)
    assert len(one["params"]) == len(list(model.parameters()))


def test_a_layer_may_set_its_own() -> None:
    model = _model()
    model[1].offset_lr_mult = 0.01
    assert [group["lr"] for group in parameter_groups(model, 1.0)] == [1.0, 0.01, 0.1]


def test_branches_of_fully_connected_layers() -> None:
    class RoIPool(nn.Module):
        offset_lr_mult, branches = 0.01, ("offset_fc", "mask_fc", "none")

        def __init__(self) -> None:
            super().__init__()
            self.offset_fc = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
            self.mask_fc = nn.Linear(4, 1)
            self.none, self.other = None, nn.Linear(4, 1)

    rest, branch = parameter_groups(RoIPool(), 1.0)
    assert branch["lr"] == 0.01
    assert (len(rest["params"]), len(branch["params"])) == (2, 6)


class _Foreign(nn.Module):
    """An attention of another library, in a network with learned points of reference: only names tell."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.ModuleDict({"sampling_offsets": nn.Linear(4, 8)}) for _ in range(2))
        self.own, self.reference_points, self.other = MSDeformAttn(8, 1, 2, 1), nn.Linear(4, 2), nn.Linear(4, 4)


def test_points_of_reference_and_foreign_attention_are_known_by_name() -> None:
    model = _Foreign()
    slow = [*model.layers.parameters(), *model.reference_points.parameters(), *model.own.sampling_offsets.parameters()]
    rest, groups = parameter_groups(model, 2.0)
    assert (rest["lr"], groups["lr"]) == (2.0, 0.2) and _ids(groups) == {id(p) for p in slow}
    assert len(rest["params"]) + len(slow) == len(list(model.parameters()))
    assert [group["lr"] for group in parameter_groups(model, 2.0, 0.25)] == [2.0, 0.5]
    # A layer's own rate comes before its name.
    model.own.offset_lr_mult = 1.0
    assert _ids(parameter_groups(model, 2.0)[1]) == {id(p) for p in slow[:-2]}


def test_shared_parameters_are_listed_once() -> None:
    model = _model()
    model[1].version, model[1].conv_offset = 2, model[3].conv_offset
    model.append(model[0])
    groups = parameter_groups(model, 1.0)
    listed = [id(p) for group in groups for p in group["params"]]
    assert sorted(listed) == sorted({id(p) for p in model.parameters()})
    # Version 1 would give the branch 1.0, version 2 gives it 0.1: the smaller one holds.
    assert _ids(groups[1]) == {id(p) for p in model[3].conv_offset.parameters()}
    torch.optim.SGD(groups)


def test_frozen_parameters_are_left_out() -> None:
    model = _model()
    model[0].requires_grad_(False)
    model[3].conv_offset.weight.requires_grad_(False)
    listed = [p for group in parameter_groups(model, 1.0) for p in group["params"]]
    assert all(p.requires_grad for p in listed)
    assert len(listed) == len(list(model.parameters())) - 3
    assert parameter_groups(model.requires_grad_(False), 1.0) == []


def test_a_plain_model_is_one_group() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1))
    (group,) = parameter_groups(model, 0.1, weight_decay=1e-4, momentum=None)
    assert set(group) == {"params", "lr", "weight_decay"}
    assert group["params"] == list(model.parameters())


def test_the_optimizer_takes_them() -> None:
    optimizer = torch.optim.SGD(parameter_groups(_model(), 0.1, weight_decay=1e-4), lr=5.0, momentum=0.9)
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, pytest.approx(0.01)]
    assert all(group["weight_decay"] == 1e-4 and group["momentum"] == 0.9 for group in optimizer.param_groups)


def test_negative_rates_are_an_error() -> None:
    for lr, mult in ((-1.0, None), (1.0, -0.1)):
        with pytest.raises(ValueError, match=r"^parameter_groups: lr and offset_lr_mult must not be negative, got"):
            parameter_groups(_model(), lr, mult)


# Statistics.


def _constant(layer: DeformConv2d, dy: float, dx: float) -> DeformConv2d:
    """Make a layer predict the same offset everywhere."""
    K = layer.kernel_size[0] * layer.kernel_size[1]
    with torch.no_grad():
        offset = layer.conv_offset.bias[: 2 * layer.offset_groups * K]
        offset[0::2], offset[1::2] = dy, dx
    return layer


@pytest.mark.parametrize("version", [1, 2])
def test_the_numbers_are_right(version: int) -> None:
    layer = _constant(DeformConv2d(4, 2, 1, version=version, offset_groups=2), 3.0, -1.0)
    # The masks behind the offsets are not offsets.
    if version == 2:
        with torch.no_grad():
            layer.conv_offset.bias[4:] = 1000.0
    with OffsetStatistics(nn.Sequential(layer)) as statistics:
        layer(torch.randn(2, 4, 10, 8))
    # Of 10×8 samples, three rows and one column are outside.
    report = statistics.report()
    assert list(report) == ["0"]
    assert report["0"] == {
        "mean": 2.0,
        "max": 3.0,
        "outside": pytest.approx(1 - 7 * 7 / 80),
        "nonfinite": 0,
        "measured": 1,
    }


def test_outside_agrees_with_the_operator() -> None:
    # A sample that counts reads ones, one that does not reads nothing: count them through the layer itself. Offsets
    # are whole numbers, so that a sample reads one pixel.
    torch.manual_seed(0)
    for options in (
        {"kernel_size": (3, 2), "stride": (2, 1), "padding": (1, 2), "dilation": (1, 2)},
        {"kernel_size": (2, 4), "padding": "same"},
        {"kernel_size": 3, "padding": 1, "boundary": "clamp"},
    ):
        layer = DeformConv2d(1, 1, bias=False, version=1, **options)
        nn.init.ones_(layer.weight)
        branch = layer.conv_offset
        branch.register_forward_hook(lambda module, inputs, output: 3 * torch.randn_like(output).round())
        with OffsetStatistics(layer) as statistics:
            counted = layer(torch.ones(2, 1, 9, 7)).sum()
        (report,) = statistics.report().values()
        K = layer.kernel_size[0] * layer.kernel_size[1]
        samples = 2 * K * layer(torch.ones(1, 1, 9, 7)).numel()
        assert 0.1 < report["outside"] < 0.9
        assert report["outside"] == pytest.approx(1 - counted.item() / samples, abs=1e-6)


def test_only_training_is_measured_and_not_every_forward() -> None:
    layer = DeformConv2d(2, 2, 3, padding=1)
    x = torch.randn(1, 2, 6, 6)
    statistics = OffsetStatistics(layer, every=3)
    assert statistics.report() == {}
    layer.eval()(x)
    assert statistics.report() == {}
    layer.train()
    for _ in range(7):
        layer(x)
    assert statistics.report()[""]["measured"] == 3
    statistics.reset()
    assert statistics.report() == {}
    statistics.remove()
    for _ in range(4):
        layer(x)
    assert statistics.report() == {}
    assert not layer.conv_offset._forward_hooks


def test_warns_once_per_layer() -> None:
    model = nn.Sequential(_constant(DeformConv2d(2, 2, 3, padding=1), 60, 60), DeformConv2d(2, 2, 3, padding=1))
    x = torch.randn(1, 2, 60, 60)
    with OffsetStatistics(model, every=1):
        with pytest.warns(RuntimeWarning) as caught:
            model(x)
        for _ in range(3):
            model(x)  # a second warning would be an error
        assert len(caught) == 1
        assert str(caught[0].message) == (
            "offsets of layer '0' explode: mean |offset| is 60.0 pixels on a map of 60×60 (threshold 50). Lower "
            "offset_lr_mult, clip gradients, or normalise what goes into the layer"
        )
        _constant(model[1], -70, 0)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model(x)  # a mean of 35 is below 50
        _constant(model[1], -170, 0)
        with pytest.warns(RuntimeWarning, match="layer '1' explode: mean .* is 85.0"):
            model(x)


def test_the_threshold_is_the_larger_side_on_small_maps_or_a_number() -> None:
    layer = _constant(DeformConv2d(2, 2, 3, padding=1), 9, 9)
    x = torch.randn(1, 2, 6, 8)
    with OffsetStatistics(layer), pytest.warns(RuntimeWarning, match=r"threshold 8\)"):
        layer(x)
    with OffsetStatistics(layer, threshold=20):
        layer(x)
    with OffsetStatistics(layer, threshold=9):
        layer(x)  # 9 does not exceed 9


def test_nan_and_infinity_are_counted_and_warned_about() -> None:
    layer = DeformConv2d(1, 1, 1, version=1)
    x = torch.ones(1, 1, 10, 10)
    with torch.no_grad():
        layer.conv_offset.weight[0] = 1.0
    x[0, 0, 0, 0], x[0, 0, 0, 1] = torch.nan, torch.inf
    with (
        OffsetStatistics(layer) as statistics,
        pytest.warns(RuntimeWarning, match=r"2.0% of the offsets are NaN or inf"),
    ):
        layer(x)
    report = statistics.report()[""]
    assert report["nonfinite"] == 0.02
    # 98 finite dy of 1 and 98 dx of 0, and the dx of 0·NaN and 0·∞ are NaN too.
    assert report["mean"] == 0.5
    assert report["outside"] == pytest.approx(0.10)


def test_keeps_nothing_alive() -> None:
    model = _model()
    statistics = OffsetStatistics(model)
    seen: list[weakref.ref[Tensor]] = []
    handle = model[1].conv_offset.register_forward_hook(lambda m, i, output: seen.append(weakref.ref(output)))
    loss = model(torch.randn(1, 3, 8, 8)).sum()
    loss.backward()
    handle.remove()
    gone = weakref.ref(model[1])
    del loss, model, handle
    gc.collect()
    assert seen[0]() is None
    assert gone() is None
    assert set(statistics.report()) == {"1", "3"}


def test_does_not_change_the_training() -> None:
    torch.manual_seed(0)
    model = _model()
    other = copy.deepcopy(model)
    x = torch.randn(2, 3, 8, 8)
    with OffsetStatistics(model, every=1):
        model(x).square().sum().backward()
    other(x).square().sum().backward()
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)


def test_copies_of_a_watched_model() -> None:
    model = _model()
    x = torch.randn(1, 3, 8, 8)
    with OffsetStatistics(model, every=1) as statistics, OffsetHistory(model, every=1) as history:
        model(x)
        size = len(pickle.dumps(model))
        for _ in range(9):
            model(x)
        # What was seen is not part of the network.
        assert len(pickle.dumps(model)) == size
        saved = io.BytesIO()
        torch.save(model, saved)
        saved.seek(0)
        copies = (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(saved, weights_only=False))
        for copied in copies:
            assert torch.equal(copied(x), model(x))
            assert copied[1].conv_offset(x.new_zeros(1, 4, 8, 8)).shape == (1, 18, 8, 8)
        # A copy is not watched.
        assert statistics.report()["1"]["measured"] == 13
        assert len(history.records) == 26
        again = pickle.loads(pickle.dumps((statistics, history)))
    assert again[0].report() == statistics.report() and again[1].records == history.records


def test_low_precision_autocast_and_empty_batches() -> None:
    layer = _constant(DeformConv2d(2, 2, 3, padding=1), 0.5, 0.5)
    with OffsetStatistics(layer, every=1) as statistics:
        with torch.autocast("cpu", torch.bfloat16):
            layer(torch.randn(1, 2, 6, 6))
        layer(torch.randn(0, 2, 6, 6))
    assert statistics.report()[""]["measured"] == 1
    assert statistics.report()[""]["mean"] == 0.5
    low = _constant(DeformConv2d(2, 2, 3, padding=1, dtype=torch.bfloat16), 300, 300)
    with OffsetStatistics(low, threshold=1000) as statistics:
        low(torch.randn(8, 2, 30, 30, dtype=torch.bfloat16))
    assert statistics.report()[""]["mean"] == 300


def test_a_compiled_model_is_left_whole() -> None:
    torch._dynamo.reset()
    model = _model()
    with OffsetStatistics(model) as statistics:
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        compiled(torch.randn(1, 3, 8, 8)).sum().backward()
    assert statistics.report() == {}


def test_a_model_without_deformable_layers() -> None:
    with OffsetStatistics(nn.Conv2d(1, 1, 1)) as statistics:
        pass
    assert statistics.report() == {}


ROIS = torch.tensor([[0.0, 1, 1, 6, 6], [0, 2, 3, 9, 8]])


@pytest.mark.parametrize(
    "options",
    [{}, {"version": 2, "hidden": (4,)}, {"version": 2, "hidden": (4,), "separate_mask_trunk": True}],
    ids=["version 1", "version 2", "two trunks"],
)
def test_roi_layers_are_measured_in_extents_of_the_roi(options: dict[str, object]) -> None:
    layer = DeformRoIPool((2, 4), 3, gamma=0.5, **options)
    x = torch.randn(1, 3, 10, 10)
    with torch.no_grad():
        # Half of 1.2 widths to the right, of 0.4 heights up: of four columns the last two leave the RoI, of two rows
        # neither does. Masks are not offsets.
        bias = layer.offset_fc[-1].bias
        bias[:8], bias[8:16], bias[16:] = 1.2, -0.4, 1000.0
    with OffsetStatistics(nn.ModuleDict({"head": layer})) as statistics:
        layer(x, ROIS)
    report = statistics.report()["head"]
    assert report == {
        "mean": pytest.approx(0.4),
        "max": pytest.approx(0.6),
        "outside": 0.5,
        "nonfinite": 0,
        "measured": 1,
    }


def test_position_sensitive_layers_are_measured_on_their_maps() -> None:
    layer = DeformPSRoIPool(2, 3, classes=2, trans_std=0.5)
    with torch.no_grad():
        # Of the second class, x: the right one of two columns leaves the RoI.
        layer.conv_offset.bias[8:12] = 0.8
    with OffsetStatistics(layer) as statistics:
        layer(torch.randn(1, 8, 10, 10), torch.randn(1, 3, 10, 10), ROIS)
    assert statistics.report()[""] == {
        "mean": pytest.approx(0.1),
        "max": pytest.approx(0.4),
        "outside": 0.25,
        "nonfinite": 0,
        "measured": 1,
    }


def test_roi_layers_that_explode_are_warned_about() -> None:
    layer = DeformRoIPool(2, 3)
    x = torch.randn(1, 3, 10, 10)
    with torch.no_grad():
        layer.offset_fc[0].bias.fill_(12.0)
    with (
        OffsetStatistics(layer),
        pytest.warns(RuntimeWarning, match=r"1\.2 extents of the RoI \(threshold 1\)\. Lower"),
    ):
        layer(x, ROIS)
    with OffsetStatistics(layer, roi_threshold=1.5) as statistics:
        layer(x, ROIS)
        layer(x, ROIS[:0])
    assert statistics.report()[""]["measured"] == 1
    with torch.no_grad():
        layer.offset_fc[0].bias[1] = torch.nan
    with (
        OffsetStatistics(layer, roi_threshold=1.5),
        pytest.warns(RuntimeWarning, match=r"25\.0% of the offsets are NaN"),
    ):
        layer(x, ROIS)


def test_bad_settings() -> None:
    with pytest.raises(ValueError, match=r"^OffsetStatistics: every must be at least 1, got 0$"):
        OffsetStatistics(_model(), every=0)
    with pytest.raises(ValueError, match=r"^OffsetStatistics: threshold must be positive, got 0$"):
        OffsetStatistics(_model(), threshold=0)
    with pytest.raises(ValueError, match=r"^OffsetStatistics: roi_threshold must be positive, got 0$"):
        OffsetStatistics(_model(), roi_threshold=0)
