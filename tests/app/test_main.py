from __future__ import annotations

import importlib
import subprocess
import sys
import types

import pytest

import pliant
from pliant import app


def pretend(monkeypatch: pytest.MonkeyPatch, run: object) -> None:
    """Put a module of ours in the place of ``pliant study``."""
    module = types.ModuleType("pliant.app.study")
    module.add_arguments = lambda parser: parser.add_argument("--seeds", type=int, default=5)
    module.run = run
    monkeypatch.setitem(sys.modules, "pliant.app.study", module)


def failing(error: BaseException) -> object:
    def run(args: object) -> int:
        raise error

    return run


def test_command_gets_its_arguments_and_gives_its_status(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    pretend(monkeypatch, lambda args: seen.append(args.seeds) or 3)
    assert app.main(["study", "--seeds", "2"]) == 3
    assert seen == [2]


@pytest.mark.parametrize(
    ("error", "status", "sentence"),
    [
        (ValueError("study geometry: seeds must be at least 1, got 0"), 2, "seeds must be at least 1, got 0"),
        (FileNotFoundError(2, "No such file or directory", "/data/x"), 2, "No such file or directory: '/data/x'"),
        (OSError(28, "No space left on device"), 2, "No space left on device"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (
            ModuleNotFoundError("No module named 'cv2.x'", name="cv2.x"),
            2,
            'cv2: pip install ".[study]" in a clone of the repository',
        ),
    ],
    ids=["value", "file", "disk", "ctrl-c", "extra"],
)
def test_error_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    status: int,
    sentence: str,
) -> None:
    pretend(monkeypatch, failing(error))
    assert app.main(["study"]) == status
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("pliant study: ")
    assert err.endswith(sentence + "\n") and "Errno" not in err
    assert err.count("\n") == 1


def test_traceback_on_request_and_for_bugs(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, failing(ValueError("bad")))
    with pytest.raises(ValueError, match="bad"):
        app.main(["--traceback", "study"])
    pretend(monkeypatch, failing(KeyError("a bug")))
    with pytest.raises(KeyError):
        app.main(["study"])
    pretend(monkeypatch, failing(ModuleNotFoundError("No module named 'pliant.nowhere'", name="pliant.nowhere")))
    with pytest.raises(ModuleNotFoundError):
        app.main(["study"])


def test_traceback_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, failing(ValueError("bad")))
    for words in (["study", "--traceback"], ["study", "--seeds", "3", "--traceback"]):
        with pytest.raises(ValueError, match="bad"):
            app.main(words)


def test_version_and_module(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        app.main(["--version"])
    assert (stopped.value.code, capsys.readouterr().out) == (0, f"pliant {pliant.__version__}\n")
    done = subprocess.run([sys.executable, "-m", "pliant", "--version"], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"pliant {pliant.__version__}\n", "")


@pytest.mark.parametrize("words", [["help"], ["help", "study"], ["study", "--help"]])
def test_help_has_an_example(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pretend(monkeypatch, failing(KeyError("runs nothing")))
    with pytest.raises(SystemExit) as stopped:
        app.main(words)
    assert stopped.value.code == 0
    out = capsys.readouterr().out
    assert app.COMMANDS["study"].example in out
    assert max(map(len, out.splitlines())) <= 100


def test_help_without_the_extra(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name in [name for name in sys.modules if name.startswith(("pliant.app.predict", "pliant.data"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pliant.app.predict", None)
    monkeypatch.setattr(importlib, "import_module", failing(ModuleNotFoundError("No module named 'PIL'", name="PIL")))
    assert app.main(["predict", "--help"]) == 0
    out = capsys.readouterr().out
    assert "detect objects in images" in out and app.COMMANDS["predict"].example in out
    assert 'pliant predict: needs PIL: pip install ".[train]" in a clone of the repository\n' in out


def test_a_closed_pipe_is_quiet() -> None:
    script = "import sys; from pliant.app import main; sys.exit(main(['doctor']))"
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None and child.stderr is not None
        child.stdout.close()
        assert child.stderr.read() == ""
        assert child.wait(timeout=300) == 141


@pytest.mark.parametrize("arguments", [[], ["cure"], ["--traceback"]])
def test_wrong_command_names_the_right_ones(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        app.main(arguments)
    assert stopped.value.code == 2
    assert "COMMAND" in capsys.readouterr().err


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        app.main(["--help"])
    assert stopped.value.code == 0
    out = capsys.readouterr().out
    assert all(command in out for command in app.COMMANDS)
