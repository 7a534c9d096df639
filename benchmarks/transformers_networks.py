"""Measure whole networks of an installed transformers, with its own attention and with ours, in one process.

    python benchmarks/transformers_networks.py [--threads 1] [--repeats 5]

Networks have their default sizes and random weights; images are 640×640. Times of both alternate, and the table has
their medians' ratios. Needs transformers (docs/interop/transformers.md).
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import transformers
from torch import nn

from pliant.interop.transformers import patch, unpatch

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "Deformable DETR": lambda: transformers.DeformableDetrForObjectDetection(
        transformers.DeformableDetrConfig(backbone_config=transformers.ResNetConfig(out_indices=[2, 3, 4]))
    ),
    "RT-DETR": lambda: transformers.RTDetrForObjectDetection(transformers.RTDetrConfig()),
    "RT-DETRv2": lambda: transformers.RTDetrV2ForObjectDetection(transformers.RTDetrV2Config()),
    "D-FINE": lambda: transformers.DFineForObjectDetection(transformers.DFineConfig()),
    "Mask2Former": lambda: transformers.Mask2FormerForUniversalSegmentation(transformers.Mask2FormerConfig()),
}


def _once(net: nn.Module, image: torch.Tensor, backward: bool) -> float:
    start = time.perf_counter()
    with torch.set_grad_enabled(backward):
        output = net(pixel_values=image)
        if backward:
            output[0].sum().backward()
    return time.perf_counter() - start


def ratio(net: nn.Module, image: torch.Tensor, backward: bool, repeats: int) -> float:
    """Return transformers' time relative to ours, medians of alternating runs."""
    times: dict[bool, list[float]] = {False: [], True: []}
    for turn in range(repeats + 1):
        for ours in (False, True):
            (patch if ours else unpatch)()
            seconds = _once(net, image, backward)
            if turn:  # the first run warms up
                times[ours].append(seconds)
    unpatch()
    return statistics.median(times[False]) / statistics.median(times[True])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--size", type=int, default=640)
    parser.add_argument("--only", nargs="*", default=list(NETWORKS), choices=list(NETWORKS))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    image = torch.randn(1, 3, arguments.size, arguments.size)
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, threads {arguments.threads}")
    print("| network | forward | forward and backward |\n|---|---|---|")
    for name in arguments.only:
        net = NETWORKS[name]().eval()
        both = [ratio(net, image, backward, arguments.repeats) for backward in (False, True)]
        print(f"| {name} | {both[0]:.2f}× | {both[1]:.2f}× |", flush=True)


if __name__ == "__main__":
    main()
