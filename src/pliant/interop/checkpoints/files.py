"""Read and write files of weights: pickles without code, safetensors and MXNet's parameter files."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pliant import _INSTALL
from pliant._files import ZIP, code_in, load, replacing, save, weights
from pliant.interop.checkpoints import mxnet

WRITABLE = (".safetensors", ".pth", ".pt")
# What a file of torch before 1.6 begins with: a number, pickled.
_OLD_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_RECORD = "pliant"


class File(NamedTuple):
    """The content of a file: its tensors by name, the names of other entries, and the record of :func:`write`."""

    state: dict[str, Tensor]
    others: tuple[str, ...]
    record: dict[str, Any]


def read(path: str | Path) -> File:
    """Read the weights in a file.

    Nothing in the file is executed: what torch.save wrote is read with ``weights_only=True``, other pickles by an
    unpickler that knows dictionaries and NumPy arrays; files of MXNet and safetensors have no code in them. Weights
    inside nested dictionaries are found, whatever their key; where several hold tensors, names begin with their keys. A
    prefix "module." that every name has is removed.

    Args:
        path: the file. Its first bytes determine the format: `.pkl`, `.bin`, `.ckpt`, `.pth.tar` or any other suffix
            may stand for several.

    Raises:
        OSError: there is no such file.
        ValueError: the file has another format, is damaged or holds no weights, or a pickle needs more than tensors
            and numbers.
        ImportError: the file is `.safetensors`, and the package of that name is not installed.
    """
    path = Path(path)
    found: Any
    record: dict[str, Any] = {}
    kind = _kind(path)
    if kind == "safetensors":
        found, record = _read_safetensors(path)
    elif kind == "torch":
        found = _read_torch(path)
    elif kind == "pickle":
        found = _read_arrays(path)
    else:
        found = dict(mxnet.read(path))
    if isinstance(found, dict) and isinstance(found.get(_RECORD), dict):
        record = found[_RECORD]
    entries = weights(found)
    state = {name: value for name, value in entries.items() if isinstance(value, Tensor)}
    if not state:
        raise ValueError(f"{path}: holds no weights; a dictionary from names to tensors is expected")
    others = tuple(name for name in entries if name not in state)
    if all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    return File(state, others, record)


def _kind(path: Path) -> str:
    """Return the format of a file by its first bytes; those of a damaged file may be nothing, then by its suffix."""
    with path.open("rb") as file:
        start = file.read(len(_OLD_TORCH))
    if start.startswith((ZIP, _OLD_TORCH)):
        return "torch"
    if int.from_bytes(start[:8], "little") == mxnet.LIST_MAGIC:
        return "mxnet"
    if start[8:9] == b"{":  # after the length of a header of JSON
        return "safetensors"
    if start.startswith(b"\x80"):
        return "pickle"
    kinds = {".safetensors": "safetensors", ".params": "mxnet", ".pkl": "pickle"}
    return kinds.get(path.suffix, "torch")


def write(path: str | Path, state: dict[str, Tensor], record: dict[str, Any] | None = None) -> None:
    """Write weights and a record, which must be plain JSON, to a `.safetensors`, `.pth` or `.pt` file.

    Folders that do not exist are made.

    Raises:
        ValueError: the suffix is another one.
        OSError: the file could not be written; an existing file stays as it was.
        ImportError: the file is `.safetensors`, and the package of that name is not installed.
    """
    path = Path(path)
    if path.suffix not in WRITABLE:
        raise ValueError(f"{path}: the suffix must be one of {', '.join(WRITABLE)}, got {path.suffix!r}")
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
        save({**about, "model" if about else "state_dict": dict(state), _RECORD: record}, path)
    else:
        # safetensors refuses tensors that share memory.
        own = {name: tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in state.items()}
        package.save_file(own, path, {"format": "pt", _RECORD: json.dumps(record)})


def _safetensors(path: Path) -> Any:
    try:
        import safetensors.torch
    except ModuleNotFoundError as error:
        sentence = f"{path}: needs the package safetensors: {_INSTALL.format(extra='convert')}"
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
        return load(path)
    except ValueError as error:
        if needs := code_in(path):
            raise ValueError(
                f"{path}: needs {needs} beside tensors and numbers, which loading would run; if you trust it, save "
                'its tensors alone, such as torch.save(torch.load(path, weights_only=False)["state_dict"], new_path)'
            ) from error
        raise ValueError(f"{path}: is not a file that torch.save wrote, or is damaged") from error


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
