"""Weights that are packed once for inference, instead of in every call."""

from __future__ import annotations

from torch import nn

from pliant.ops.conv.modules import DeformConv2d


def prepack(model: nn.Module) -> int:
    """Keep the weights of every :class:`DeformConv2d` packed between calls, for inference on the CPU.

    The layers use them in evaluation mode under ``torch.no_grad()`` or ``torch.inference_mode()``; elsewhere
    (gradients, autocast, ``torch.compile``, GPUs) they compute as before. Results are the same bit for bit. Parameters
    and the state dict stay untouched, and copies and saved models hold no packed weights. A weight that is changed
    (``load_state_dict``, ``copy_``, ``to``) is packed anew at the next call; a change through ``weight.data`` goes
    unnoticed until :func:`prepack` is called again. Packed weights take as much memory as the weights.

    Args:
        model: any module, in evaluation mode.

    Returns:
        How many layers hold packed weights: 0 where the products read the weights themselves (float64, depthwise,
        processors without AVX2).

    Raises:
        ValueError: a layer is in training mode, or its weight was made under ``torch.inference_mode()``.

    >>> import torch
    >>> layer = DeformConv2d(16, 16, 3, padding=1, dtype=torch.float64).eval()
    >>> prepack(layer)
    0
    """
    layers = _layers(model)
    for layer in layers:
        if layer.training:
            raise ValueError(
                "prepack: the model must be in evaluation mode (model.eval()), where weights do not change"
            )
    return sum(layer.prepack() for layer in layers)


def unprepack(model: nn.Module) -> None:
    """Drop the packed weights that :func:`prepack` made.

    Args:
        model: any module.

    >>> unprepack(DeformConv2d(4, 4, 1))
    """
    for layer in _layers(model):
        layer.unprepack()


def _layers(model: nn.Module) -> list[DeformConv2d]:
    return [module for module in model.modules() if isinstance(module, DeformConv2d)]
