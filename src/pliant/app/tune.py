"""``pliant tune``: find faster block sizes of deformable convolution's GPU kernels on this device, and keep them."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pliant import _native
from pliant.ops import _tuned
from pliant.testing import DEFORM_CONV_SPEED, TOLERANCE, DeformConvCase, error

CASES = {case.name: case for case in DEFORM_CONV_SPEED}
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32, "tf32": torch.float32}
KERNELS = ("forward", "samples", "weight")
# The smallest share of time whose saving counts: less cannot be told from noise.
WORTH = 0.03


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--cases", default=",".join(CASES), metavar="S1,S2,…", help="cases of the benchmarks (default: all)"
    )
    parser.add_argument(
        "--input", metavar="N,C,H,W", help="tune this input shape instead, with --outputs, --kernel, --groups, …"
    )
    parser.add_argument("--outputs", type=int, metavar="O", help="output channels of --input (default: C)")
    parser.add_argument("--kernel", type=int, default=3, metavar="K", help="kernel size of --input (default: 3)")
    parser.add_argument("--groups", type=int, default=1, metavar="g", help="convolution groups of --input")
    parser.add_argument("--offset-groups", type=int, default=1, metavar="G", help="offset groups of --input")
    parser.add_argument(
        "--batch", default="1,16", metavar="1,16", help="batch sizes, as multiples of the case's own (default: 1,16)"
    )
    parser.add_argument("--dtypes", default="bfloat16", metavar=",".join(DTYPES), help="default: bfloat16")
    parser.add_argument("--minutes", type=float, default=10.0, help="start no kernel after this time (default: 10)")
    parser.add_argument("--device", default=None, help="default: the current GPU")
    parser.add_argument("--forget", action="store_true", help="delete the tuned sizes and use those of the table again")


def run(args: argparse.Namespace) -> int:
    """Tune kernel by kernel, save after each, and print what was found.

    Raises:
        ValueError: there is no GPU that the kernels run on, or an argument does not fit.
    """
    device = gpu(args.device)
    if args.forget:
        there = _tuned.forget(device)
        print(f"{_tuned.path(device)} {'is deleted' if there else 'was not there'}: the kernels take the table's sizes")
        return 0
    end, found = time.monotonic() + 60 * args.minutes, 0
    for trial in trials(args, device):
        if time.monotonic() > end:
            print(f"{args.minutes:g} minutes are over (--minutes); left out: {trial.name}, and what comes after it")
            break
        best, before, after, tried, failed = search(trial, seconds)
        gain = 1 - after / before
        if gain >= WORTH:
            _tuned.known(device)[trial.name] = list(best)
            _tuned.save(device)
            found += 1
        kept = ", ".join(f"{k} {v}" for k, v in best._asdict().items() if v) if gain >= WORTH else "the table's"
        print(
            f"{trial.name}: {1e6 * before:.1f} µs, {1e6 * after:.1f} µs with the best of {tried} sizes"
            + (f" ({failed} do not run)" if failed else "")
            + f"; kept: {kept}",
            flush=True,
        )
    new = f"{found} new size{'s' * (found > 1)} in {_tuned.path(device)}"
    print(new if found else "nothing faster was found")
    return 0


def gpu(name: str | None) -> torch.device:
    """Return the GPU to tune for, with its index.

    Raises:
        ValueError: there is none, or the kernels do not run on it.
    """
    kinds = [kind for kind in _native.GPUS if torch.get_device_module(kind).is_available()]
    if not kinds:
        raise ValueError("there is no GPU that torch can use: nothing to tune")
    try:
        device = torch.device(kinds[0] if name is None else name)
    except RuntimeError as reason:
        raise ValueError(f"--device {name}: {str(reason).splitlines()[0]}") from reason
    if device.type not in kinds:
        raise ValueError(f"--device {name} is not one of the GPUs that torch can use here: {', '.join(kinds)}")
    index = torch.get_device_module(device).current_device() if device.index is None else device.index
    device = torch.device(device.type, index)
    if why := _native._lacking(device.type, index):
        raise ValueError(f"the kernels do not run on {device}: {why}")
    return device


@dataclass(frozen=True)
class Trial:
    """One kernel on one shape: `run` launches it with the sizes that are known at the time and returns its outputs."""

    kernel: str
    shape: Any
    dtype: torch.dtype
    run: Callable[[], list[Tensor]]
    name: str


def trials(args: argparse.Namespace, device: torch.device) -> Iterator[Trial]:
    """Yield what is to be tuned, each class of shapes once.

    Raises:
        ValueError: an argument does not fit.
    """
    seen = set()
    for precision in args.dtypes.split(","):
        if precision not in DTYPES:
            raise ValueError(f"--dtypes must be some of {', '.join(DTYPES)}, got {precision!r}")
        for case in _cases(args):
            for trial in of(case, precision, device):
                if trial.name not in seen:
                    seen.add(trial.name)
                    yield trial


def _cases(args: argparse.Namespace) -> list[DeformConvCase]:
    try:
        batches = [int(n) for n in args.batch.split(",")]
        own = None if args.input is None else [int(n) for n in args.input.split(",")]
    except ValueError as reason:
        raise ValueError("--batch and --input must be whole numbers with commas between them") from reason
    if own is None:
        unknown = [name for name in args.cases.split(",") if name not in CASES]
        if unknown:
            raise ValueError(f"--cases must be some of {', '.join(CASES)}, got {', '.join(unknown)}")
        base = [CASES[name] for name in args.cases.split(",")]
    else:
        if len(own) != 4:
            raise ValueError(f"--input must be four numbers, N,C,H,W, got {args.input}")
        N, C, H, W = own
        k, O, g, G = args.kernel, args.outputs or C, args.groups, args.offset_groups
        numbers = (N, C, H, W, k, O, g, G, *batches)
        if min(numbers) < 1 or k % 2 == 0 or C % g or O % g or C % G:
            raise ValueError(
                "--input and its sizes must be positive, --kernel odd, --groups a divisor of both numbers of channels, "
                "--offset-groups of the inputs"
            )
        half = (k // 2, k // 2)
        base = [DeformConvCase("own", (N, C, H, W), O, (k, k), padding=half, groups=g, offset_groups=G)]
    if min(batches) < 1:
        raise ValueError(f"--batch must be positive, got {args.batch}")
    return [replace(case, input=(n * case.input[0], *case.input[1:])) for n in batches for case in base]


def of(case: DeformConvCase, precision: str, device: torch.device) -> list[Trial]:
    """Return the kernels of one case, and set torch's use of TF32 for the rest of the process."""
    from pliant.ops.deform_conv2d import triton as kernels
    from pliant.ops.deform_conv2d.triton import blocks
    from pliant.ops.deform_conv2d.triton.shape import Shape

    torch.backends.cuda.matmul.fp32_precision = "tf32" if precision == "tf32" else "ieee"
    dtype = DTYPES[precision]
    t = {name: x.to(device) for name, x in case.tensors(dtype, channels_last=True).items()}
    geometry = (*case.stride, *case.padding, *case.dilation)
    shape = Shape(t["input"], t["offset"], t["weight"], t["mask"], geometry, False)
    output = torch.empty(case.input[0], case.out_channels, *case.output, dtype=dtype, device=device)
    output = output.contiguous(memory_format=torch.channels_last)
    grad = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).to(device, dtype)
    grad = grad.contiguous(memory_format=torch.channels_last)
    N, _, H, W = case.input
    sums = torch.zeros(N, H, W, shape.C, device=device)
    d_offset, d_mask = torch.empty_like(t["offset"]), torch.empty_like(t["mask"])

    def forward() -> list[Tensor]:
        for launch in kernels.forward_launches(shape, t["bias"], output):
            launch.run(device)
        return [output]

    def samples() -> list[Tensor]:
        # The kernel adds to `sums`, which a backward clears first.
        kernels.samples_launch(shape, grad, sums.zero_(), None, d_offset, d_mask).run(device)
        return [sums, d_offset, d_mask]

    def weight() -> list[Tensor]:
        launch, shares = kernels.weight_launch(shape, grad)
        launch.run(device)
        return [shares.sum(0)]

    runs = {"forward": forward, "samples": samples, "weight": weight}
    return [Trial(kernel, shape, dtype, runs[kernel], blocks.name(shape, kernel)) for kernel in KERNELS]


def search(trial: Trial, timer: Callable[[Trial], float]) -> tuple[Any, float, float, int, int]:
    """Walk from the table's sizes to faster neighbours until there is none.

    Sizes that do not compile, do not fit the device or give another result are skipped.

    Returns:
        The best sizes, the seconds with the table's and with the best, the number of sizes tried and of those skipped.
    """
    from pliant.ops.deform_conv2d.triton import blocks

    tuned = _tuned.known(trial.shape.device)
    before_that = tuned.pop(trial.name, None)
    start = blocks.TABLE[trial.kernel](trial.shape)
    expected = [t.clone() for t in trial.run()]
    times = {start: timer(trial)}
    failed, best = 0, start
    try:
        while True:
            fresh = [size for size in blocks.neighbours(trial.shape, trial.kernel, best) if size not in times]
            for size in fresh:
                tuned[trial.name] = list(size)
                times[size] = float("inf")
                try:
                    right = all(
                        error(a, e) <= TOLERANCE[trial.dtype] for a, e in zip(trial.run(), expected, strict=True)
                    )
                    if right:
                        times[size] = timer(trial)
                except Exception:
                    # Out of registers or shared memory, or no instruction of that size.
                    right = False
                failed += not right
            found = min(times, key=lambda size: times[size])
            if found == best:
                return best, times[start], times[best], len(times), failed
            best = found
    finally:
        tuned.pop(trial.name, None)
        if before_that is not None:
            tuned[trial.name] = before_that


def seconds(trial: Trial) -> float:
    """Return the seconds that one run takes on the device: the median over rounds of many runs."""
    device = trial.shape.device
    devices = torch.get_device_module(device)
    with devices.device(device):
        once = _round(devices, trial.run)
        # Rounds of about 10 ms, long compared to the resolution of the clock.
        count = min(max(int(0.01 / once), 1), 100)

        def many() -> None:
            for _ in range(count):
                trial.run()

        replay: Callable[[], object] = many
        if device.type == "cuda":
            # Replayed as a graph: launching a small kernel takes longer than running it, and only the run is timed.
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                many()
            replay = graph.replay
        return statistics.median(_round(devices, replay) for _ in range(5)) / count


def _round(devices: Any, call: Callable[[], object]) -> float:
    start, end = (devices.Event(enable_timing=True) for _ in range(2))
    start.record()
    call()
    end.record()
    end.synchronize()
    elapsed: float = start.elapsed_time(end)
    return max(elapsed * 1e-3, 1e-9)
