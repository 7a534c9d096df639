"""patch() on an installed transformers: small networks of its families, with random weights, on its code and on ours.

`make install` brings transformers where there is Python 3.11, which it needs; without it these tests are skipped.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pliant.nn import MSDeformAttn, parameter_groups
from pliant.show.attention import attention

transformers = pytest.importorskip("transformers", reason="needs transformers 5.23")

from pliant.interop import transformers as ours  # noqa: E402 - after the skip

RESNET = {"embedding_size": 16, "hidden_sizes": [16, 24, 32, 40], "depths": [1, 1, 1, 1], "layer_type": "basic"}
STAGES = {"out_features": ["stage2", "stage3", "stage4"]}
SWIN = {"embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 4, 4], "window_size": 4, "image_size": 64}
BERT = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 50}
# Layers and heads of encoders and decoders, under the names that most configurations share.
SMALL = {
    "d_model": 32, "encoder_layers": 1, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "num_queries": 9,
}  # fmt: skip
RT = {
    **SMALL, "encoder_hidden_dim": 32, "encoder_in_channels": [24, 32, 40], "decoder_in_channels": [32, 32, 32],
    "num_denoising": 0,
}  # fmt: skip


def _resnet() -> Any:
    return transformers.RTDetrResNetConfig(**RESNET, **STAGES)


def _swin(**stages: Any) -> Any:
    return transformers.SwinConfig(**SWIN, **stages)


def deformable_detr(**more: Any) -> nn.Module:
    config = transformers.DeformableDetrConfig(backbone_config=_resnet(), num_feature_levels=4, **SMALL, **more)
    return transformers.DeformableDetrForObjectDetection(config)


def two_stages() -> nn.Module:
    return deformable_detr(two_stage=True, with_box_refine=True, two_stage_num_proposals=9)


def rt_detr() -> nn.Module:
    return transformers.RTDetrForObjectDetection(transformers.RTDetrConfig(backbone_config=_resnet(), **RT))


def rt_detr_v2(**more: Any) -> nn.Module:
    config = transformers.RTDetrV2Config(backbone_config=_resnet(), **RT, **more)
    return transformers.RTDetrV2ForObjectDetection(config)


def discrete() -> nn.Module:
    return rt_detr_v2(decoder_method="discrete")


def d_fine(**more: Any) -> nn.Module:
    config = transformers.DFineConfig(backbone_config=_resnet(), **RT, decoder_n_points=[3, 6, 3], **more)
    return transformers.DFineForObjectDetection(config)


def deimv2() -> nn.Module:
    config = transformers.Deimv2Config(backbone_config=_resnet(), **RT, decoder_n_points=[3, 6, 3])
    return transformers.Deimv2ForObjectDetection(config)


def _one_level(backbone: Any, kind: str, **more: Any) -> nn.Module:
    heads = {"decoder_self_attention_heads": 4, "decoder_cross_attention_heads": 4, "group_detr": 2}
    names = {key: value for key, value in SMALL.items() if key in ("d_model", "num_queries", "decoder_layers")}
    config = getattr(transformers, f"{kind}Config")(backbone_config=backbone, **heads, **names, **more)
    return getattr(transformers, f"{kind}ForObjectDetection")(config)


def lw_detr() -> nn.Module:
    backbone = transformers.LwDetrViTConfig(
        hidden_size=32, num_hidden_layers=4, num_attention_heads=2, image_size=64, pretrain_image_size=64,
        patch_size=8, window_block_indices=[0, 2], num_windows=4, num_windows_side=2, out_indices=[2, 4],
    )  # fmt: skip
    return _one_level(backbone, "LwDetr", projector_scale_factors=[0.5, 2.0])


def rf_detr() -> nn.Module:
    backbone = transformers.RfDetrDinov2Config(
        hidden_size=32, num_hidden_layers=4, num_attention_heads=2, image_size=64, patch_size=8, num_windows=2,
        out_indices=[2, 4],
    )  # fmt: skip
    return _one_level(backbone, "RfDetr")


def _grounding(kind: str) -> nn.Module:
    config = getattr(transformers, f"{kind}Config")(
        backbone_config=_swin(out_indices=[2, 3, 4]), text_config=transformers.BertConfig(**BERT), **SMALL
    )
    return getattr(transformers, f"{kind}ForObjectDetection")(config)


def grounding_dino() -> nn.Module:
    return _grounding("GroundingDino")


def mm_grounding_dino() -> nn.Module:
    return _grounding("MMGroundingDino")


def mask2former() -> nn.Module:
    config = transformers.Mask2FormerConfig(
        backbone_config=_swin(out_indices=[1, 2, 3, 4]), feature_size=32, mask_feature_size=32, hidden_dim=32,
        encoder_feedforward_dim=32, encoder_layers=2, decoder_layers=2, num_attention_heads=4,
        dim_feedforward=32, num_queries=9,
    )  # fmt: skip
    return transformers.Mask2FormerForUniversalSegmentation(config)


FAMILIES: dict[str, Callable[[], nn.Module]] = {
    function.__name__: function
    for function in (
        deformable_detr, two_stages, rt_detr, rt_detr_v2, discrete, d_fine, deimv2, lw_detr, rf_detr, grounding_dino,
        mm_grounding_dino, mask2former,
    )
}  # fmt: skip


@pytest.fixture(autouse=True)
def _unpatched() -> Iterator[None]:
    yield
    ours.unpatch()


def _inputs(family: str) -> dict[str, Tensor]:
    inputs = {"pixel_values": torch.randn(2, 3, 64, 64)}
    if family in ("deformable_detr", "two_stages"):
        inputs["pixel_mask"] = torch.ones(2, 64, 64, dtype=torch.long)
        inputs["pixel_mask"][1, :, 40:] = 0
    if "grounding" in family:
        inputs["input_ids"] = torch.randint(0, 50, (2, 5))
        inputs["attention_mask"] = torch.ones(2, 5, dtype=torch.long)
    return inputs


def _tensors(output: Any) -> dict[str, Tensor]:
    return {key: value for key, value in output.items() if isinstance(value, Tensor) and value.is_floating_point()}


def _run(net: nn.Module, inputs: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the outputs and the gradients of the parameters."""
    net.zero_grad()
    outputs = _tensors(net(**inputs))
    torch.stack([value.where(value.isfinite(), 0).square().mean() for value in outputs.values()]).sum().backward()
    gradients = {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}
    return {key: value.detach() for key, value in outputs.items()}, gradients


@pytest.mark.parametrize("family", FAMILIES)
def test_networks(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    net = FAMILIES[family]().eval()
    for name, parameter in net.named_parameters():
        if "sampling_offsets.weight" in name or "attention_weights.weight" in name:
            nn.init.normal_(parameter, std=0.3)
    inputs = _inputs(family)
    calls: list[int] = []
    operator = ours.ms_deform_attn
    monkeypatch.setattr(ours, "ms_deform_attn", lambda *args, **more: calls.append(1) or operator(*args, **more))
    with torch.no_grad():
        outputs = _tensors(net(**inputs))
        ours.patch()
        found = _tensors(net(**inputs))
    for name, expected in outputs.items():
        _close(name, found[name], expected)
    # Gradients of whole networks in float32 differ by rounding alone.
    net, inputs = net.double(), {key: t.double() if t.is_floating_point() else t for key, t in inputs.items()}
    calls.clear()
    found, derived = _run(net, inputs)
    assert calls
    ours.unpatch()
    calls.clear()
    outputs, gradients = _run(net, inputs)
    assert not calls
    assert found.keys() == outputs.keys()
    for name, expected in outputs.items():
        _close(name, found[name], expected)
    # Discrete samples have no gradient in their locations: None there, zeros here.
    for name in derived.keys() | gradients.keys():
        _close(name, derived[name], gradients.get(name, torch.zeros_like(derived[name])))


def _close(name: str, found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5, msg=lambda text: f"{name}: {text}")


def test_models_made_while_patched_survive_unpatching() -> None:
    ours.patch()
    torch.manual_seed(0)
    net = d_fine().eval()
    inputs = _inputs("d_fine")
    expected, _ = _run(net, inputs)
    ours.unpatch()
    assert all("pliant" not in module.ms_deformable_attn_core.__module__ for module in net.modules()
               if hasattr(module, "ms_deformable_attn_core"))  # fmt: skip
    found, _ = _run(net, inputs)
    torch.testing.assert_close(found["logits"], expected["logits"], rtol=1e-5, atol=1e-5)


def test_patch_returns_the_families_and_may_be_repeated() -> None:
    from transformers.models.deformable_detr import modeling_deformable_detr as module

    theirs = module.MultiScaleDeformableAttention.forward
    families = ours.patch()
    assert len(families) == 15 and {"d_fine", "mask2former", "rf_detr", "pp_doclayout_v4"} <= set(families)
    assert ours.patch() == families
    assert module.MultiScaleDeformableAttention.forward is not theirs
    ours.unpatch()
    assert module.MultiScaleDeformableAttention.forward is theirs


def test_unknown_definitions_are_refused_before_anything_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.models.d_fine import modeling_d_fine
    from transformers.models.rt_detr_v2 import modeling_rt_detr_v2 as last

    def multi_scale_deformable_attention_v2(value: Tensor, locations: Tensor) -> Tensor:
        return value

    monkeypatch.setattr(last, "multi_scale_deformable_attention_v2", multi_scale_deformable_attention_v2)
    theirs = modeling_d_fine.multi_scale_deformable_attention_v2
    sentence = "transformers [0-9.]+ defines multi_scale_deformable_attention_v2 of rt_detr_v2 in a way"
    with pytest.raises(ValueError, match=sentence):
        ours.patch()
    assert modeling_d_fine.multi_scale_deformable_attention_v2 is theirs


def _layer(family: str, name: str, config: Any) -> tuple[nn.Module, Any]:
    """Return a layer of transformers, and ours with its parameters."""
    module = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    torch.manual_seed(0)
    theirs = getattr(module, name)(**config).double()
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.3)
    layer = MSDeformAttn(32, levels=2, heads=4, points=3).double()
    layer.load_state_dict(theirs.state_dict())
    return theirs, layer


@pytest.mark.parametrize("valid", [True, False])
def test_masks_of_both_polarities(valid: bool) -> None:
    shapes = [(4, 5), (2, 3)]
    if valid:
        given = {"config": transformers.DeformableDetrConfig(d_model=32, num_feature_levels=2), "num_heads": 4}
        theirs, layer = _layer(
            "deformable_detr", "DeformableDetrMultiscaleDeformableAttention", {**given, "n_points": 3}
        )
    else:
        given = {"embed_dim": 32, "num_heads": 4, "n_levels": 2, "n_points": 3}
        theirs, layer = _layer("mask2former", "Mask2FormerPixelDecoderEncoderMultiscaleDeformableAttention", given)
    query, value = torch.randn(2, 7, 32).double(), torch.randn(2, 26, 32).double()
    references = torch.rand(2, 7, 2, 2).double()
    padding = torch.rand(2, 26) < 0.4
    arguments = {
        "hidden_states": query, "encoder_hidden_states": value, "reference_points": references,
        "attention_mask": ~padding if valid else padding, "level_start_index": torch.tensor([0, 20]),
    }  # fmt: skip
    arguments |= (
        {"spatial_shapes": torch.tensor(shapes), "spatial_shapes_list": shapes}
        if valid
        else {"spatial_shapes_list": shapes}
    )
    before = theirs(**arguments)[0]
    ours.patch()
    after = theirs(**arguments)[0]
    torch.testing.assert_close(after, before, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(layer(query, references, value, shapes, None, padding), before, rtol=1e-12, atol=1e-12)


def _draw(seed: int) -> tuple[list[tuple[int, int]], list[int], Tensor, Tensor, Tensor]:
    """Return levels, points per level, value, locations (N, Q, M, ΣP, 2) and weights of random sizes."""
    draw = torch.Generator().manual_seed(seed)

    def number(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=draw))

    shapes = [(number(1, 9), number(1, 9)) for _ in range(number(1, 4))]
    N, M, D, Q = number(1, 3), number(1, 4), number(1, 9), number(1, 12)
    points = [number(1, 5) for _ in shapes]
    options = {"generator": draw, "dtype": torch.float64}
    value = torch.randn(N, sum(H * W for H, W in shapes), M, D, **options)
    locations = torch.rand(N, Q, M, sum(points), 2, **options) * 1.6 - 0.3
    return shapes, points, value, locations, torch.randn(N, Q, M, sum(points), **options)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("form", ["uniform", "function", "default", "discrete"])
def test_random_shapes_agree_with_their_python(seed: int, form: str) -> None:
    from transformers.models.deformable_detr.modeling_deformable_detr import MultiScaleDeformableAttention
    from transformers.models.mask2former.modeling_mask2former import multi_scale_deformable_attention
    from transformers.models.rt_detr_v2.modeling_rt_detr_v2 import multi_scale_deformable_attention_v2

    shapes, points, *drawn = _draw(seed)
    if form in ("uniform", "function"):
        P, L = points[0], len(shapes)
        chosen = torch.arange(P * L) % sum(points)
        drawn = [drawn[0], drawn[1][:, :, :, chosen].unflatten(3, (L, P)), drawn[2][..., chosen].unflatten(3, (L, P))]
    given = [t.requires_grad_() for t in drawn]
    if form == "uniform":
        both: tuple[Callable[..., Tensor], ...] = (
            MultiScaleDeformableAttention(),
            ours.KNOWN["MultiScaleDeformableAttention"][0],
        )
        levels = (torch.tensor(shapes), shapes, torch.tensor([0] * len(shapes)))
        expected = both[0](given[0], *levels, *given[1:], 64)
        found = both[1](both[0], given[0], *levels, *given[1:], 64)
    elif form == "function":
        arguments = given[0], torch.tensor(shapes), *given[1:]
        expected = multi_scale_deformable_attention(*arguments)
        found = ours.KNOWN["multi_scale_deformable_attention"][0](*arguments)
    else:
        arguments = given[0], shapes, *given[1:], points, form
        expected = multi_scale_deformable_attention_v2(*arguments)
        found = ours.KNOWN["multi_scale_deformable_attention_v2"][0](*arguments)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    grad = torch.randn_like(expected)
    theirs, derived = (
        torch.autograd.grad(output, given, grad, allow_unused=True, materialize_grads=True)
        for output in (expected, found)
    )
    for one, other in zip(derived, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_where_queries_of_a_patched_network_look() -> None:
    torch.manual_seed(0)
    net, image = two_stages().eval(), torch.randn(3, 64, 96)
    assert attention(net, image, _looked) == {}
    ours.patch()
    found = attention(net, image, _looked)
    assert list(found) == [
        *(f"model.encoder.layers.{i}.self_attn.attn" for i in range(1)),
        *(f"model.decoder.layers.{i}.encoder_attn.attn" for i in range(2)),
    ]
    pixels = sum(H * W for H, W in found["model.encoder.layers.0.self_attn.attn"].levels)
    for one, queries in zip(found.values(), (pixels, 9, 9), strict=True):
        assert one.locations.shape == (queries, 4, 16, 2) and one.points == (4,) * 4
        torch.testing.assert_close(one.weights.sum(2), torch.ones(queries, 4, dtype=torch.float64))


def _looked(net: nn.Module, image: Tensor) -> Any:
    return net(pixel_values=image)


def test_its_offsets_and_points_of_reference_learn_slower() -> None:
    net = deformable_detr()
    rates = {id(p): group["lr"] for group in parameter_groups(net, 1.0) for p in group["params"]}
    slow = {name.split(".")[-2] for name, p in net.named_parameters() if rates.get(id(p)) == 0.1}
    assert slow == {"sampling_offsets", "reference_points"}
