"""``pliant study STUDY``: run an experiment and write its report."""

from __future__ import annotations

import argparse
import errno
import os
import sys
from pathlib import Path
from typing import Any

from pliant.app import trace
from pliant.app.study import detection, geometry
from pliant.app.study.progress import progress
from pliant.studies import runner
from pliant.studies.store import Store

# Studies differ in their options and in what they print, not in how they are run.
STUDIES: dict[str, Any] = {"geometry": geometry, "detection": detection}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what ``pliant study`` takes."""
    studies = parser.add_subparsers(metavar="STUDY", dest="study", required=True)
    for name, module in STUDIES.items():
        one = studies.add_parser(name, help=module.HELP, description=module.HELP, allow_abbrev=False)
        out = Path("runs") / name
        one.add_argument("--quick", action="store_true", help="few epochs, one seed: minutes")
        one.add_argument("--seeds", type=int, metavar="N", help=f"default: {module.SEEDS}, with --quick 1")
        one.add_argument("--jobs", type=int, metavar="N", help="processes (default: one per core)")
        one.add_argument("--device", default="cpu", help="where the networks run, such as cuda (default: cpu)")
        one.add_argument("--out", type=Path, default=out, metavar="DIR", help=f"default: {out}")
        one.add_argument("--contestants", metavar="A,B", help=f"only these of {', '.join(module.CONTESTANTS)}")
        one.add_argument("--epochs", type=int, metavar="N", help="epochs, instead of the profile's")
        module.add_arguments(one)


def run(args: argparse.Namespace) -> int:
    """Run the study, print its summary, write its report; return the exit status."""
    module = STUDIES[args.study]
    if args.epochs is not None and args.epochs < 1:
        raise ValueError(f"--epochs must be at least 1, got {args.epochs}")
    study: runner.Study = module.study(
        args,
        out=args.out,
        seeds=args.seeds if args.seeds is not None else 1 if args.quick else module.SEEDS,
        contestants=tuple(args.contestants.split(",")) if args.contestants else None,
        jobs=args.jobs if args.jobs is not None else os.cpu_count() or 1,
        device=args.device,
    )
    data = study.load()
    store = study.store(data)
    for note in store.notes:
        print(note)
    tasks = study.tasks()
    done = len(store.finished & set(tasks))
    profile = "The quick study: few epochs, one seed" if args.quick else "The full study"
    epochs = study.protocol.recipe.epochs
    print(
        f"{profile}. {len(tasks)} runs of {epochs} epoch{'s' * (epochs > 1)}, {done} of them finished before. "
        f"Results go to {study.out}/.",
        flush=True,
    )
    try:
        with progress(tasks, store, module.said) as bar:
            runner.run(study, store, data, bar)
    except KeyboardInterrupt:
        print(f"\nInterrupted: {_kept(store)}", file=sys.stderr)
        return 130
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        trace(error)
        print(f"\nThe disk is full: {_kept(store)}", file=sys.stderr)
        return 1
    chosen = set(tasks)
    print("\n" + module.summary([result for result in store.results if study.task_of(result) in chosen]))
    print(f"Report, with curves and figures: {module.write(study.out)}")
    return 0


def _kept(store: Store) -> str:
    return f"{len(store.results)} finished runs are kept in {store.path}; the same command goes on from there."
