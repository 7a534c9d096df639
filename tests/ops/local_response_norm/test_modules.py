"""The local response normalization layer."""

from __future__ import annotations

import copy
import doctest
import importlib
import pickle
import re
from typing import Any

import pytest
import torch

from pliant.nn import LocalResponseNorm
from pliant.ops import local_response_norm


def test_layer() -> None:
    layer = LocalResponseNorm(3, 0.5, 0.6, 2.0, region="spatial", even="right")
    x = torch.randn(2, 3, 4, 5)
    assert torch.equal(layer(x), local_response_norm(x, 3, 0.5, 0.6, 2.0, region="spatial"))
    assert repr(layer) == "LocalResponseNorm(3, alpha=0.5, beta=0.6, k=2.0, region='spatial', even='right')"
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(twin(x), layer(x))
    assert not list(layer.parameters())
    assert not layer.state_dict()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"size": 0}, "LocalResponseNorm: size must be at least 1, got 0"),
        ({"size": 4, "region": "spatial"}, "LocalResponseNorm: size must be odd with region='spatial', got 4"),
        ({"size": 3, "region": "sp"}, "LocalResponseNorm: region must be one of"),
        ({"size": 4, "even": "up"}, "LocalResponseNorm: even must be one of"),
    ],
)
def test_the_layer_checks_when_it_is_made(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=re.escape(sentence)):
        LocalResponseNorm(**arguments)


@pytest.mark.parametrize("module", ["local_response_norm", "modules"])
def test_docstrings(module: str) -> None:
    result = doctest.testmod(importlib.import_module(f"pliant.ops.local_response_norm.{module}"))
    assert result.attempted > 0
    assert result.failed == 0
