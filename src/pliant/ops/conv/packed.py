"""A weight packed once for many calls, as inference runtimes keep theirs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad

from pliant import _native

_native.library.define("deform_conv2d_pack(Tensor weight, int groups) -> Tensor")
_native.library.define(
    "deform_conv2d_packed(Tensor input, Tensor offset, Tensor weight, Tensor? bias, int[] stride, SymInt[] padding, "
    "int[] dilation, Tensor? mask, bool clamp, Tensor packed) -> Tensor"
)


class PackedWeight:
    """The weight of a deformable convolution in the order in which the CPU's product reads it.

    It belongs to this process: another instruction level packs otherwise. A weight that has changed is packed anew at
    the next call; a change through ``weight.data`` that leaves its version and its memory as they were goes unnoticed.

    Args:
        weight: (O, C/groups, Kh, Kw), on the CPU.
        groups: convolution groups.
    """

    def __init__(self, weight: Tensor, groups: int) -> None:
        if weight.is_inference():
            raise ValueError(
                "prepack: a weight made under torch.inference_mode() has no version, so its changes would go unnoticed"
            )
        self.groups = groups
        self._pack(weight)

    def _pack(self, weight: Tensor) -> None:
        self.weight, self.version, self.memory = weight, weight._version, weight.data_ptr()
        self.panels: Tensor = torch.ops.pliant.deform_conv2d_pack(weight.detach(), self.groups)

    def serves(self, weight: Tensor, *others: Tensor | None) -> bool:
        """Return whether a call with these tensors may use the packed weight: plain inference on the CPU.

        A weight that has changed is packed anew.
        """
        plain = (
            not torch.is_grad_enabled()
            and not torch.compiler.is_compiling()
            and torch._C._get_tracing_state() is None
            and torch._C._len_torch_dispatch_stack() == 0
            and forward_ad._current_level < 0
            and not torch._C._are_functorch_transforms_active()
            and not torch.is_autocast_enabled("cpu")
            and all(t is None or (type(t) in (Tensor, torch.nn.Parameter) and t.is_cpu) for t in (weight, *others))
        )
        if not plain:
            return False
        if weight is not self.weight or weight._version != self.version or weight.data_ptr() != self.memory:
            self._pack(weight)
        return self.panels.numel() > 0

    def convolve(
        self,
        input: Tensor,
        offset: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        mask: Tensor | None,
        boundary: str,
    ) -> Tensor:
        """Return :func:`pliant.ops.deform_conv2d` of tensors that fit each other and that `serves` agreed to."""
        clamp = boundary == "clamp"
        output: Tensor = torch.ops.pliant.deform_conv2d_packed(
            input, offset, weight, bias, stride, padding, dilation, mask, clamp, self.panels
        )
        return output
