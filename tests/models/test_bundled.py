from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from pliant.models import bundled


def test_packed_weights_are_off_by_half_a_level_of_their_row(tmp_path: Path) -> None:
    random = torch.Generator().manual_seed(0)
    weights = {
        "conv.weight": torch.randn(6, 4, 3, 3, generator=random), "fc.weight": torch.randn(5, 7, generator=random) / 9,
        "bn.bias": torch.randn(6, generator=random).half().float(), "bn.num_batches_tracked": torch.tensor(3),
    }  # fmt: skip
    weights["fc.weight"][3] = 0
    bundled.write(tmp_path / "net.npz", {"classes": ("a", "b")}, weights, 31)
    assert json.loads((tmp_path / "net.json").read_text()) == {"classes": ["a", "b"]}
    found = bundled.unpack(tmp_path / "net.npz")
    assert found.keys() == weights.keys()
    for name, tensor in weights.items():
        assert found[name].dtype == tensor.dtype and found[name].shape == tensor.shape
        if tensor.dim() > 1:
            # Half a level, and what the scale loses in half precision over up to 31 levels.
            level = tensor.flatten(1).abs().amax(1) / 31
            bound = (0.5 * level + 31 * level * 2**-11 + 31 * 2**-24).view(-1, *[1] * (tensor.dim() - 1))
            assert bool(((found[name] - tensor).abs() <= bound + 1e-6).all()), name
        else:
            assert torch.equal(found[name], tensor)


@pytest.mark.parametrize("suffix", ["npz", "json"])
def test_a_damaged_file_gets_a_sentence(suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (name,) = bundled.NAMES
    for path in bundled.FOLDER.glob(f"{name}.*"):
        data = path.read_bytes()
        (tmp_path / path.name).write_bytes(data[: len(data) // 2] if path.suffix == f".{suffix}" else data)
    monkeypatch.setattr(bundled, "FOLDER", tmp_path)
    with pytest.raises(ValueError, match=rf"{name}\.{suffix} is damaged; install pliant again"):
        bundled.read(name)
