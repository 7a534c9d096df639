"""``pliant convert IN OUT --from SOURCE``: convert another library's checkpoint to pliant's names."""

from __future__ import annotations

import argparse
from pathlib import Path

from pliant._files import apart
from pliant.interop import checkpoints


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the two files, the source, and what the checkpoint alone does not determine."""
    parser.add_argument(
        "input", metavar="IN", help="a checkpoint: of torch.save, safetensors, MXNet, or pickled arrays"
    )
    parser.add_argument("output", metavar="OUT", help="the file to write: .safetensors, .pth or .pt")
    parser.add_argument(
        "--from", dest="source", required=True, choices=list(checkpoints.SOURCES), help="the library that wrote it"
    )
    parser.add_argument("--take", default="", metavar="PART", help='convert only this part, such as "backbone"')
    parser.add_argument(
        "--style", choices=("pytorch", "caffe"), help="of a detector: where strides lie and how images are normalised"
    )
    parser.add_argument("--classes", type=Path, metavar="FILE", help="names of a detector's classes, one per line")
    parser.add_argument(
        "--eps", type=float, default=1e-5, help="of a detector's normalization; 0 for torchvision's COCO_V1"
    )
    parser.add_argument(
        "--version", type=int, choices=(1, 2), help="of deformable layers whose channels fit both versions"
    )
    parser.add_argument("--verbose", action="store_true", help="print what became of every name")


def run(args: argparse.Namespace) -> int:
    """Convert, write, and print a summary: what was left out or made up, and with --verbose every name."""
    apart([Path(args.output)], [Path(args.input)])
    file = checkpoints.read(args.input)
    if "layers" in file.record:
        source = file.record.get("source")
        raise ValueError(f"{args.input}: is converted already, from {source}; checkpoints.load reads it")
    classes = None if args.classes is None else args.classes.read_text(encoding="utf-8").split("\n")
    done = checkpoints.convert(
        file.state, args.source, version=args.version, take=args.take, style=args.style, eps=args.eps,
        classes=None if classes is None else [name.strip() for name in classes if name.strip()],
    )  # fmt: skip
    checkpoints.write(args.output, done.state, done.record)
    summary, *names = done.report().splitlines()
    names += [f"left over  {name}: not a tensor" for name in file.others]
    # What is not in the new file as it was in the old one is always said.
    quiet = [line for line in names if not line.startswith(("kept ", "renamed ", "deformable "))]
    print("\n".join([summary, *(names if args.verbose else quiet)]))
    more = "" if args.verbose else "; --verbose prints every name"
    print(f"{len(done.layers)} deformable layers. Written to {args.output}{more}.")
    if done.detector:
        print(f"Next: pliant predict {args.output} IMAGE")
    return 0
