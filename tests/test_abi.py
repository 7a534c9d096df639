"""One binary for every Python and torch: the kernels use libtorch's stable C interface and nothing of Python."""

from __future__ import annotations

import importlib.metadata
import re
import shutil
import subprocess
import sys

import pytest

from pliant import _native

UNSTABLE = re.compile(r"_?_?Py\w+|_?_Z\w*(2at|3c10|5torch)\w*")


def foreign(listing: str) -> set[str]:
    """Return the undefined symbols of nm's listing that other versions of Python or torch may lack.

    Where symbols carry the version of the runtime that has them (Linux: ``memset@GLIBC_2.2.5``), a strong one without
    is to be torch's C interface; elsewhere the known wrong ones are looked for.
    """
    symbols = [line.split()[-2:] for line in listing.splitlines()]
    names = {symbol[-1] for symbol in symbols if symbol[0] != "w"}
    wrong = {name for name in names if UNSTABLE.fullmatch(name)}
    if any("@GLIBC" in name for name in names):
        wrong |= {name for name in names if "@" not in name and not re.match(r"(aoti_)?torch_", name)}
    return wrong


def test_kernels_use_the_stable_interface_alone() -> None:
    if shutil.which("nm") is None:
        pytest.skip("nm is not installed (Debian: binutils)")
    assert _native.path is not None, _native.reason
    flags = ["-u"] if sys.platform == "darwin" else ["-D", "--undefined-only"]
    listing = subprocess.check_output(["nm", *flags, _native.path], text=True)
    assert "torch_library_impl" in listing
    assert foreign(listing) == set()


@pytest.mark.parametrize(
    "name",
    [
        "PyObject_Call",
        "_Py_Dealloc",
        "_ZN2at4_ops7sigmoid4callERKNS_6TensorE",
        "_ZNK3c1010TensorImpl4sizeEl",
        "omp_fork",
    ],
)
def test_unstable_symbols_are_seen(name: str) -> None:
    runtime = (
        "                 w __gmon_start__\n                 U memset@GLIBC_2.2.5\n                 U torch_new_list\n"
    )
    assert foreign(f"{runtime}                 U {name}\n") == {name}
    if name != "omp_fork":
        assert foreign(f"_torch_new_list\n_{name}\n") == {f"_{name}"}


def test_one_wheel_for_every_python() -> None:
    wheel = importlib.metadata.distribution("pliant").read_text("WHEEL")
    assert wheel is not None
    assert re.findall(r"^Tag: (\w+-\w+)-", wheel, re.MULTILINE) == ["py3-none"]
