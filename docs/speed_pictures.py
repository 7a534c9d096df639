"""Write the tables of speed.md and draw its chart from benchmarks/results: ``python docs/speed_pictures.py``."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pliant.show import canvas

HERE = Path(__file__).parent
RESULTS = HERE.parent / "benchmarks" / "results"
# Peers in the order of the columns and of the bars: label and colour.
PEERS = {
    "conv2d nchw": ("conv2d, not deformable", "#B5B5B5"),
    "torchvision": ("torchvision", canvas.VERMILION),
    "ONNX Runtime": ("ONNX Runtime", canvas.BLUE),
    "OpenVINO": ("OpenVINO", canvas.SKY),
    "ncnn": ("ncnn", canvas.GREEN),
    "oneDNN channels_last": ("oneDNN, channels_last", canvas.PURPLE),
    "grid_sample": ("grid_sample in PyTorch", canvas.ORANGE),
    "torch nchw": ("PyTorch", canvas.VERMILION),
    "torch loop": ("a loop in PyTorch", canvas.VERMILION),
    "embedding_bag, places known": ("embedding_bag, places known", canvas.GREEN),
    "torch-ms-deform-attn": ("torch-ms-deform-attn", canvas.VERMILION),
    "conv3d": ("conv3d, not deformable", "#B5B5B5"),
    "conv_transpose2d": ("conv_transpose2d, not deformable", "#B5B5B5"),
}
OWN = ("pliant nchw", "pliant channels_last", "pliant ncdhw", "pliant channels_last_3d", "pliant")
MARK = re.compile(r"(<!-- table (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)

CHARTED = ("S1", "S2", "S3", "S4", "S5", "S6", "S7", "S8", "T1")

Results = list[dict[str, Any]]


def results(name: str) -> Results:
    """Return the entries of a file of benchmarks/results, and of its further parts, one per case and threads."""
    paths = [RESULTS / f"{name}.json", *sorted(RESULTS.glob(f"{name}-[0-9].json"))]
    return [entry for path in paths for entry in json.loads(path.read_text(encoding="utf-8"))["results"]]


def medians(entry: dict[str, Any]) -> dict[str, float]:
    """Return the milliseconds of each contestant of a case."""
    return {row["contestant"]: row["median_ms"] for row in entry["rows"]}


def table(entries: Results) -> str:
    """Return a Markdown table: pliant's time relative to the limit, then each peer's relative to pliant's."""
    times = [medians(entry) for entry in entries]
    own = [name for name in OWN if any(name in found for found in times)]
    peers = [name for name in PEERS if any(name in found for found in times)]
    limit = " + ".join(f"{weight:g} {name}" for name, weight in entries[0]["limit"].items())
    columns = ["", "shape", *(f"{name} / ({limit})" for name in own), *(PEERS[name][0] for name in peers)]
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    for entry, found in zip(entries, times, strict=True):
        bound = sum(weight * found[name] for name, weight in entry["limit"].items())
        threads = "" if entry["threads"] == 1 else f", {entry['threads']} threads"
        cells = [entry["case"] + threads, entry["shape"], *(f"{found[name] / bound:.2f}" for name in own)]
        cells += [f"{found[name] / found[own[0]]:.2f}" if name in found else "" for name in peers]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def page(text: str) -> str:
    """Return the page with its tables, each between two marks, replaced by those of the results."""
    return MARK.sub(lambda found: found[1] + table(results(found[2])) + found[3], text)


def chart(panels: Sequence[tuple[str, Results]]) -> bytes:
    """Return bars as a PNG: each peer's time relative to pliant's, one group of bars per case."""
    figure = canvas.sheet(9, 8.5)
    for place, (title, entries) in enumerate(panels, 1):
        axes = figure.add_subplot(1, len(panels), place)
        named: set[str] = set()
        at, ticks = 0.0, []
        for entry in entries:
            found = medians(entry)
            peers = [name for name in PEERS if name in found]
            ticks.append(at + (len(peers) - 1) / 2)
            for name in peers:
                label, colour = PEERS[name]
                ratio = found[name] / found["pliant nchw"]
                axes.barh(at, ratio - 1, left=1, color=colour, label=None if name in named else label)
                # Beside the end of the bar: to the right of it, or to the left where pliant is slower.
                side = "left" if ratio >= 1 else "right"
                space = 1.04 if ratio >= 1 else 1 / 1.04
                axes.text(ratio * space, at, f"{ratio:.2g}", ha=side, va="center", fontsize=7.5, color=canvas.INK)
                named.add(name)
                at += 1
            at += 1
        axes.axvline(1, color=canvas.INK, linewidth=1)
        axes.set_xscale("log")
        axes.set_xlim(0.055, 55)
        axes.set_xticks([0.1, 0.2, 0.5, 1, 2, 5, 10, 20], ["⅒", "⅕", "½", "1", "2", "5", "10", "20"])
        axes.minorticks_off()
        axes.set_yticks(ticks, [entry["case"] for entry in entries])
        axes.invert_yaxis()
        axes.set_title(title, fontsize=11, loc="left")
        axes.set_xlabel("time, times that of pliant (both NCHW)")
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
        axes.tick_params(axis="y", length=0)
        if place == 1:
            figure.legend(*axes.get_legend_handles_labels(), loc="lower center", ncols=3, frameon=False, fontsize=9)
    figure.tight_layout(rect=(0, 0.08, 1, 1))
    return canvas.png(figure)


if __name__ == "__main__":
    path = HERE / "speed.md"
    path.write_text(page(path.read_text(encoding="utf-8")), encoding="utf-8")
    panels = [
        (mode, [entry for entry in results(f"intel-xeon-deform_conv2d-{name}") if entry["case"] in CHARTED])
        for mode, name in (("forward", "forward"), ("forward + backward", "backward"))
    ]
    plot = HERE / "pictures" / "speed.png"
    plot.write_bytes(chart(panels))
    print(f"{path}, {plot}: {plot.stat().st_size} bytes")
