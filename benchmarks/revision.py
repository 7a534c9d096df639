"""Another revision of this repository as a contestant: compiled in a folder of its own, timed in a process of its own.

The benchmark's code and `pliant.testing`, which draws the tensors, are those of the working tree in both processes: all
else of `pliant` differs. So problems may use only public names that both revisions have.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Remote:
    """A contestant of the other process."""

    name: str
    ask: Callable[[dict[str, Any]], Any]
    question: dict[str, Any]

    def seconds(self, count: int) -> float:
        return float(self.ask(self.question | {"seconds": count}))

    def memory(self) -> float | None:
        found = self.ask(self.question | {"memory": True})
        return None if found is None else float(found)

    def error(self, exact: Callable[[], tuple[Tensor, ...]]) -> float | None:
        # The other process draws the same tensors, and computes the exact result itself.
        found = self.ask(self.question | {"error": True})
        return None if found is None else float(found)


class Revision:
    """The process that runs the other revision's pliant.

    Args:
        name: the revision, as git understands it.
        site: the folder into which it is installed.
    """

    def __init__(self, name: str, site: Path) -> None:
        self.name = name
        command = [sys.executable, str(HERE / "revision.py"), str(site)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def contestants(self, **problem: Any) -> list[Remote]:
        """Return pliant's contestants of a problem, which is given by op, case, backward and threads."""
        return [Remote(f"{name} @ {self.name}", self._ask, problem | {"name": name}) for name in self._ask(problem)]

    def close(self) -> None:
        self.process.communicate()

    def _ask(self, question: dict[str, Any]) -> Any:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"benchmarks: the process of {self.name} ended; its error is printed above")
        return json.loads(line)


@contextmanager
def checked_out(name: str) -> Iterator[Revision]:
    """Compile a revision in a temporary worktree, and start its process.

    Raises:
        SystemExit: git does not know the revision, or it does not compile.
    """
    with tempfile.TemporaryDirectory() as folder:
        tree, site = Path(folder, "tree"), Path(folder, "site")
        _run(["git", "-C", str(HERE), "worktree", "add", "--quiet", "--detach", str(tree), name])
        try:
            pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
            print(f"compiling {name}", flush=True)
            _run([*pip, "--disable-pip-version-check", "--target", str(site), str(tree)])
        finally:
            _run(["git", "-C", str(HERE), "worktree", "remove", "--force", str(tree)])
        revision = Revision(name, site)
        try:
            yield revision
        finally:
            revision.close()


def _run(command: list[str]) -> None:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise SystemExit(f"benchmarks: {' '.join(command)} failed:\n{done.stdout}")


def serve(site: str) -> None:
    """Answer questions, one JSON line each, with the pliant in `site`."""
    # The finder of an editable installation would be asked before the path.
    sys.meta_path[:] = [finder for finder in sys.meta_path if "Editable" not in type(finder).__name__ + str(finder)
                        and "Redirecting" not in type(finder).__name__]  # fmt: skip
    sys.path.insert(0, site)
    import torch

    import pliant

    assert pliant.__file__ is not None and Path(pliant.__file__).is_relative_to(site), pliant.__file__
    _use_testing_of_the_working_tree()
    from measuring import Setting
    from problems import PROBLEMS

    held: dict[str, Any] = {}
    for line in sys.stdin:
        question = json.loads(line)
        name, count = question.pop("name", None), question.pop("seconds", None)
        memory, error = question.pop("memory", False), question.pop("error", False)
        key = json.dumps(question)
        if key not in held:
            held.clear()
            torch.manual_seed(0)
            torch.set_num_threads(question["threads"])
            cases, build = PROBLEMS[question["op"]]
            case = next(case for case in cases if case.name == question["case"])
            problem = build(case, Setting(backward=question["backward"], peers="none"))
            held[key] = problem, {c.name: c for c in problem.contestants if c.name.startswith("pliant")}
        problem, contestants = held[key]
        answer: Any = list(contestants)
        if count is not None:
            answer = contestants[name].seconds(count)
        elif memory:
            answer = contestants[name].memory()
        elif error:
            answer = contestants[name].error(problem.exact)
        print(json.dumps(answer), flush=True)


def _use_testing_of_the_working_tree() -> None:
    """Make `pliant.testing`, which imports torch alone, that of the working tree."""
    path = HERE.parent / "src" / "pliant" / "testing.py"
    spec = importlib.util.spec_from_file_location("pliant.testing", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["pliant.testing"] = module
    spec.loader.exec_module(module)


if __name__ == "__main__":
    serve(sys.argv[1])
