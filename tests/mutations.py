"""Change the sources in one place after another and see whether the tests notice: ``python tests/mutations.py``.

Every mutation is one small mistake that somebody may make. The script makes it in this checkout, runs the tests that
should fail, and takes it back; it refuses files with changes of their own. A mutation that survives is a missing test.
Those of csrc/ compile the library anew, twice (``--kernels``).
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
SECONDS = 900  # after which tests count as failed: the mistake may be an endless loop


class Mutation(NamedTuple):
    """One mistake: `old`, which stands once in `path`, becomes `new`; `tests` are arguments of pytest."""

    path: str
    old: str
    new: str
    tests: str


_PY = "src/pliant/"
_ROI, _CONV, _LRN = "tests/ops/roi", "tests/ops/conv", "tests/ops/local_response_norm"

MUTATIONS = (
    # ops: references and checks.
    Mutation(_PY + "ops/sampling/reference.py", "(a < n)", "(a <= n)", f"{_CONV} -k values"),
    Mutation(_PY + "ops/sampling/reference.py", "first = 0 if clamp else -1", "first = 0 if clamp else 0", _CONV),
    Mutation(_PY + "ops/sampling/reference.py", "(a >= first)", "(a > first)", f"{_CONV} tests/ops/test_fuzz.py"),
    Mutation(_PY + "ops/roi/reference/averages.py", "position <= extent - 0.5", "position < extent - 0.5", _ROI),
    Mutation(_PY + "ops/roi/reference/averages.py", "position >= -1)", "position > -1)", _ROI),
    Mutation(_PY + "ops/roi/reference/averages.py", ".abs() >= 0.5,", ".abs() > 0.5,", _ROI),
    Mutation(_PY + "ops/roi/reference/averages.py", ".clamp(min=0.1), (y2", ".clamp(min=0.2), (y2", _ROI),
    Mutation(
        _PY + "ops/roi/reference/averages.py",
        "visits = max(int(possible.max()), 1)",
        "visits = max(int(possible.max()), 0)",
        _ROI,
    ),
    Mutation(_PY + "ops/roi/reference/bins.py", "((k + 1) * bin).ceil()", "((k + 1) * bin).floor()", _ROI),
    Mutation(_PY + "ops/roi/reference/bins.py", "(value.isnan() & ~best.isnan())", "value.isnan()", _ROI),
    Mutation(
        _PY + "ops/local_response_norm/reference.py",
        "min(before, input.shape[dim] - 1), min(after",
        "min(before, input.shape[dim]), min(after",
        _LRN,
    ),
    Mutation(_PY + "ops/nms/reference.py", ".double() > iou_threshold", ".double() >= iou_threshold", "tests/ops/nms"),
    Mutation(_PY + "ops/aggregation/reference.py", "0).clamp(0, H - 1)", "0).clamp(0, H - 2)", "tests/ops/aggregation"),
    Mutation(
        _PY + "ops/aggregation/reference.py",
        "d * (kernel_size[which] - 1) // 2",
        "d * kernel_size[which] // 2",
        "tests/ops/aggregation",
    ),
    Mutation(_PY + "ops/roi/checks.py", "index.amax() < N):", "index.amax() <= N):", f"{_ROI}/test_boxes.py"),
    Mutation(_PY + "ops/roi/checks.py", "value >= limit:", "value > limit:", "tests/ops/test_errors.py -k sample"),
    Mutation(
        _PY + "_check.py",
        "if any(v < least for v in given):",
        "if any(v <= least for v in given):",
        "tests/ops/test_errors.py -k right",
    ),
    Mutation(_PY + "_check.py", "v >= LIMIT for v", "v > LIMIT for v", "tests/ops/test_errors.py -k dilation"),
    Mutation(_PY + "ops/_declare.py", "if wanted & bit:", "if wanted | bit:", "tests/ops/test_gradients.py -x"),
    Mutation(
        _PY + "ops/_declare.py",
        "grad.sum([0, *range(2, grad.dim())])",
        "grad.sum([0, *range(2, grad.dim())]) * 2",
        f"{_CONV} tests/ops/test_reference.py",
    ),
    # models.
    Mutation(
        _PY + "models/boxes.py", "best >= high, best < low", "best > high, best < low", "tests/models/test_boxes.py"
    ),
    Mutation(
        _PY + "models/boxes.py", "best >= high, best < low", "best >= high, best <= low", "tests/models/test_boxes.py"
    ),
    Mutation(_PY + "models/boxes.py", "(top > 0)", "(top >= 0)", "tests/models/test_boxes.py"),
    Mutation(_PY + "models/boxes.py", "<= COVERED * area", ">= COVERED * area", "tests/models/test_boxes.py"),
    Mutation(_PY + "models/boxes.py", ".exp() / 2", ".exp()", "tests/models/test_boxes.py"),
    Mutation(_PY + "models/rpn.py", "(corners < (sizes", "(corners <= (sizes", "tests/models/test_rpn.py"),
    Mutation(
        _PY + "models/rpn.py",
        "drawn.sum(1, keepdim=True).clamp(min=1)",
        "drawn.sum(1, keepdim=True).clamp(min=2)",
        "tests/models/test_rpn.py",
    ),
    Mutation(
        _PY + "models/mimic.py",
        "positive = labels < classes",
        "positive = labels <= classes",
        "tests/models/test_mimic.py",
    ),
    Mutation(_PY + "models/mimic.py", "rank < self.count", "rank <= self.count", "tests/models/test_mimic.py"),
    Mutation(
        _PY + "models/two_stage.py",
        "(labels < self.classes).nonzero()",
        "(labels <= self.classes).nonzero()",
        "tests/models",
    ),
    Mutation(_PY + "models/detector.py", "max(2, -(-max(", "max(1, -(-max(", "tests/models"),
    Mutation(_PY + "models/set_loss.py", "(counted | positive)", "counted", "tests/models/test_set_loss.py"),
    Mutation(_PY + "models/set_loss.py", "- weights[2] * overlap", "+ weights[2] * overlap", "tests/models"),
    Mutation(
        _PY + "models/deformable_detr.py",
        ".unflatten(1, (K, G)).transpose(1, 2)",
        ".unflatten(1, (G, K))",
        "tests/models/test_deformable_detr.py",
    ),
    Mutation(_PY + "nn/deformable.py", "(Kw, Kh)).transpose(-3, -2)", "(Kw, Kh))", "tests/show/test_aggregation.py"),
    # data.
    Mutation(_PY + "data/coco.py", "if w <= 0 or h <= 0:", "if w < 0 or h < 0:", "tests/data/test_coco.py"),
    Mutation(_PY + "data/coco.py", "crowd = crowd or set_", "crowd = set_", "tests/data/test_coco.py"),
    Mutation(_PY + "data/coco.py", '"iscrowd": int(ignore)', '"iscrowd": int(not ignore)', "tests/data/test_coco.py"),
    Mutation(
        _PY + "data/transforms.py", "left < visible * whole", "left <= visible * whole", "tests/data/test_transforms.py"
    ),
    Mutation(
        _PY + "data/transforms.py", "int(right * (W - w + 1))", "int(right * (W - w))", "tests/data/test_transforms.py"
    ),
    Mutation(_PY + "data/yolo.py", '"category_id": label + 1', '"category_id": label', "tests/data/test_folders.py"),
    Mutation(_PY + "data/voc.py", "right - left + 1", "right - left", "tests/data/test_folders.py"),
    # train.
    Mutation(
        _PY + "train/detector.py",
        'not self.best["AP"] >= scores["AP"]',
        'not self.best["AP"] > scores["AP"]',
        "tests/train/test_detector.py",
    ),
    Mutation(
        _PY + "train/detector.py",
        'self.evaluated, self.best = state["step"], state["evaluated"], state["best"]',
        'self.evaluated, self.best = state["step"], state["evaluated"], None',
        "tests/train/test_detector.py",
    ),
    Mutation(_PY + "train/detector.py", "or self.step == self.total\n", "\n", "tests/train/test_detector.py"),
    Mutation(
        _PY + "train/recipe.py",
        "momentum=self.momentum, weight_decay=self.weight_decay",
        "momentum=self.momentum",
        "tests/train/test_detector.py",
    ),
    Mutation(_PY + "train/recipe.py", "(step + 1) / self.warmup", "step / self.warmup", f"{_PY}train/recipe.py"),
    Mutation(
        _PY + "train/evaluation.py",
        "precision[precision > -1]",
        "precision[precision > 0]",
        "tests/train/test_evaluation.py",
    ),
    Mutation(
        _PY + "train/evaluation.py",
        "ranks.rank + i * ranks.world",
        "ranks.rank + i",
        "tests/train/test_evaluation.py tests/train/test_distributed.py",
    ),
    # nn.
    Mutation(_PY + "nn/offsets.py", "if forwards % self.every:", "if not forwards % self.every:", "tests/nn"),
    Mutation(_PY + "nn/offsets.py", "mean <= threshold and", "mean < threshold and", "tests/nn"),
    Mutation(
        _PY + "nn/surgery.py",
        "if not 1 <= count <= len(places):",
        "if not 1 <= count < len(places):",
        "tests/nn/test_surgery.py",
    ),
    # interop.
    Mutation(_PY + "interop/checkpoints/convert.py", "offset // 2", "offset // 3", "tests/interop/test_checkpoints.py"),
    Mutation(
        _PY + "interop/checkpoints/detectors.py",
        'len(new["classifier.bias"]) - 1',
        'len(new["classifier.bias"])',
        "tests/interop/test_detectors.py",
    ),
    # show, studies, app.
    Mutation(_PY + "show/recording.py", "min(max(row, 0), Ho - 1)", "min(max(row, 0), Ho)", "tests/show"),
    Mutation(
        _PY + "show/operators.py",
        '(name == "aten::stack" and a >= dim)',
        '(name == "aten::stack" and a > dim)',
        "tests/show",
    ),
    Mutation(_PY + "studies/store.py", 'data.rfind(b"\\n") + 1', 'data.rfind(b"\\n")', "tests/studies"),
    Mutation(_PY + "app/explore/look.py", 'found["scores"] >= LEAST', 'found["scores"] <= LEAST', "tests/explore"),
    Mutation(
        _PY + "app/explore/pictures.py",
        "if W * H > MOST_PIXELS:",
        "if W * H > 2 * MOST_PIXELS:",
        "tests/explore/test_pictures.py",
    ),
    # csrc.
    Mutation("csrc/nms.cpp", "> iou_threshold", ">= iou_threshold", "tests/ops/nms"),
    Mutation("csrc/roi/placement.cpp", "position >= -1 &&", "position > -1 &&", _ROI),
    Mutation("csrc/aggregation/place.cpp", "(t & r) - 1", "(t & l) - 1", "tests/ops/aggregation"),
    Mutation("csrc/sampling/locate.cpp", "(y < height)", "(y <= height)", _CONV),
)


def survives(mutation: Mutation) -> bool:
    """Return whether the tests pass with the mistake in place."""
    path = ROOT / mutation.path
    source = path.read_text(encoding="utf-8")
    if source.count(mutation.old) != 1:
        raise LookupError(f"{mutation.path} does not hold {mutation.old!r} exactly once: bring the list up to date")
    if subprocess.run(["git", "diff", "--quiet", "HEAD", "--", mutation.path], cwd=ROOT).returncode:
        raise RuntimeError(f"{mutation.path} has changes that are not committed")
    compiled = mutation.path.startswith("csrc/")
    path.write_text(source.replace(mutation.old, mutation.new), encoding="utf-8")
    try:
        if compiled:
            subprocess.run(["make", "install"], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *mutation.tests.split()]
        environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
        ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, timeout=SECONDS)
        # 1: a test failed; 2: one could not be collected. Anything else says nothing about the mistake.
        if ran.returncode not in (0, 1, 2):
            raise RuntimeError(f"pytest {mutation.tests} ended with {ran.returncode}: {ran.stdout.decode()[-500:]}")
        return ran.returncode == 0
    except subprocess.TimeoutExpired:
        return False
    finally:
        path.write_text(source, encoding="utf-8")
        if compiled:
            subprocess.run(["make", "install"], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("only", nargs="?", default="", help="paths that contain this")
    parser.add_argument("--kernels", action="store_true", help="those of csrc/ too")
    arguments = parser.parse_args()
    chosen = [
        m for m in MUTATIONS if arguments.only in m.path and (arguments.kernels or not m.path.startswith("csrc/"))
    ]
    alive = 0
    for mutation in chosen:
        found = survives(mutation)
        alive += found
        print(f"{'SURVIVES' if found else 'noticed '} {mutation.path}: {mutation.old!r} → {mutation.new!r}", flush=True)
    print(f"{alive} of {len(chosen)} mutations survive")
    return int(alive > 0)


if __name__ == "__main__":
    sys.exit(main())
