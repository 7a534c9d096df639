"""Read and write files of weights: pickles without code, safetensors and MXNet's parameter files."""

from __future__ import annotations

import json
import pickle
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pliant._files import replacing
from pliant.interop.checkpoints import mxnet

# Keys under which checkpoints hold their weights, in the order in which they are tried.
INSIDE = ("state_dict", "model", "model_state_dict", "params_ema", "params")
READABLE = (".pth", ".pt", ".pkl", ".params", ".safetensors")
WRITABLE = (".safetensors", ".pth", ".pt")
_RECORD = "pliant"


class File(NamedTuple):
    """The content of a file: its tensors by name, the names of other entries, and the record of :func:`write`."""

    state: dict[str, Tensor]
    others: tuple[str, ...]
    record: dict[str, Any]


def read(path: str | Path) -> File:
    """Read the weights in a file.

    Nothing in the file is executed: `.pth` and `.pt` are read with ``weights_only=True``, `.pkl` by an unpickler that
    knows dictionaries and NumPy arrays, `.params` and `.safetensors` have no code in them. Weights inside a dictionary
    under "state_dict", "model", "model_state_dict", "params_ema" or "params" are found; a prefix "module." that every
    name has is removed.

    Args:
        path: the file; its suffix determines the format.

    Raises:
        OSError: there is no such file.
        ValueError: the suffix is unknown, the file is damaged or holds no weights, or a pickle needs more than tensors
            and numbers.
        ImportError: the file is `.safetensors`, and the package of that name is not installed.
    """
    path = Path(path)
    found: Any
    record: dict[str, Any] = {}
    if path.suffix not in READABLE:
        raise ValueError(f"{path}: the suffix must be one of {', '.join(READABLE)}, got {path.suffix!r}")
    with path.open("rb"):
        pass  # a missing file, a folder and a file without permission raise here, with their names
    if path.suffix == ".safetensors":
        found, record = _read_safetensors(path)
    elif path.suffix in (".pth", ".pt"):
        found = _read_torch(path)
    elif path.suffix == ".pkl":
        found = _read_arrays(path)
    else:
        found = dict(mxnet.read(path))
    if isinstance(found, dict) and isinstance(found.get(_RECORD), dict):
        record = found[_RECORD]
    for key in INSIDE:
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
            break
    entries = {str(key): value for key, value in found.items()} if isinstance(found, dict) else {}
    state = {name: value for name, value in entries.items() if isinstance(value, Tensor)}
    if not state:
        raise ValueError(f"{path}: holds no weights; a dictionary from names to tensors is expected")
    others = tuple(name for name in entries if name not in state)
    if all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    return File(state, others, record)


def write(path: str | Path, state: dict[str, Tensor], record: dict[str, Any] | None = None) -> None:
    """Write weights and a record, which must be plain JSON, to a `.safetensors`, `.pth` or `.pt` file.

    Raises:
        ValueError: the suffix is another one.
        OSError: the file could not be written; an existing file stays as it was.
        ImportError: the file is `.safetensors`, and the package of that name is not installed.
    """
    path = Path(path)
    if path.suffix not in WRITABLE:
        raise ValueError(f"{path}: the suffix must be one of {', '.join(WRITABLE)}, got {path.suffix!r}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: there is no folder {str(path.parent)!r} to write it to")
    if path.is_dir():
        raise IsADirectoryError(f"{path}: is a folder")
    package = _safetensors(path) if path.suffix == ".safetensors" else None
    with replacing(path) as part:
        part.touch()  # raises the system's error where writing is not permitted; torch and safetensors raise others
        try:
            _write(part, package, state, record or {})
        except Exception as error:
            raise OSError(f"{path}: could not be written: {str(error).partition(chr(10))[0]}") from error


def _write(path: Path, package: Any, state: dict[str, Tensor], record: dict[str, Any]) -> None:
    if package is None:
        # A whole detector is a checkpoint like those of training.
        about = record.get("detector") or {}
        torch.save({**about, "model" if about else "state_dict": dict(state), _RECORD: record}, path)
    else:
        # safetensors refuses tensors that share memory.
        own = {name: tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in state.items()}
        package.save_file(own, path, {"format": "pt", _RECORD: json.dumps(record)})


def _safetensors(path: Path) -> Any:
    try:
        import safetensors.torch
    except ModuleNotFoundError as error:
        sentence = f'{path}: needs the package safetensors: pip install "pliant[convert]"'
        raise ModuleNotFoundError(sentence, name="safetensors") from error
    return safetensors.torch


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    _safetensors(path)
    import safetensors

    try:
        with safetensors.safe_open(path, framework="pt") as file:
            record = json.loads((file.metadata() or {}).get(_RECORD, "{}"))
            return {name: file.get_tensor(name) for name in file.keys()}, record  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path}: is not a safetensors file: {error}") from error


def _read_torch(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of the pickle's protocol before it fails
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zip and torch raise their own; a truncated file raises OSError, too
        needs = _globals(path)
        if needs:
            raise ValueError(
                f"{path}: needs {needs} beside tensors and numbers, which loading would run; if you trust it, save "
                'its tensors alone, such as torch.save(torch.load(path, weights_only=False)["state_dict"], new_path)'
            ) from error
        raise ValueError(f"{path}: is not a file that torch.save wrote, or is damaged") from error


def _globals(path: Path) -> str:
    """Return the names outside torch that a pickle would import, "" if it needs none or cannot be read."""
    try:
        names = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:
        return ""
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")


class _Arrays(pickle.Unpickler):
    """Read dictionaries, lists, numbers and NumPy arrays, and refuse everything else that a pickle asks for."""

    # What rebuilds arrays: `encode` is how protocol 2 writes bytes, and NumPy 2 renamed the first module.
    allowed = frozenset(
        (module, name)
        for modules, names in (
            (("numpy.core.multiarray", "numpy._core.multiarray"), ("_reconstruct", "scalar")),
            (("numpy",), ("ndarray", "dtype")),
            (("collections",), ("OrderedDict",)),
            (("_codecs",), ("encode",)),
        )
        for module in modules
        for name in names
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.allowed:
            raise pickle.UnpicklingError(f"{module}.{name}")
        if module.startswith("numpy."):
            import numpy as np

            core = np._core if hasattr(np, "_core") else np.core
            return getattr(core.multiarray, name)
        return super().find_class(module, name)


def _read_arrays(path: Path) -> Any:
    import numpy as np

    try:
        with path.open("rb") as file:
            found = _Arrays(file, encoding="latin1").load()
    except pickle.UnpicklingError as error:
        raise ValueError(f"{path}: needs {error} beside arrays and numbers, which loading would run") from error
    except (EOFError, ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise ValueError(f"{path}: is not a pickle, or is damaged") from error

    def tensors(value: Any) -> Any:
        if isinstance(value, np.ndarray) and value.dtype != object:
            return torch.from_numpy(np.array(value))
        return {k: tensors(v) for k, v in value.items()} if isinstance(value, dict) else value

    return tensors(found)
