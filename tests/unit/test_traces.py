"""When two modules are one to the tests' kept traces."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from traces import Traces, described


class _Scaled(nn.Module):
    def __init__(self, size: int = 3, scale: float = 2.0) -> None:
        super().__init__()
        self.linear, self.scale = nn.Linear(size, size, device="meta"), scale


def _hooked(offset: int) -> nn.Module:
    module = _Scaled()
    module.register_forward_hook(lambda *_: offset)
    return module


def test_modules_that_are_alike_are_one() -> None:
    assert described(_Scaled()) == described(_Scaled())
    assert described(_hooked(1)) == described(_hooked(1))


@pytest.mark.parametrize("other", [_Scaled(4), _Scaled(scale=3.0), _Scaled().half(), _hooked(1), _hooked(2)])
def test_modules_that_differ_anywhere_are_not(other: nn.Module) -> None:
    assert described(other) not in (described(_Scaled()), described(_hooked(3)))


def test_values_that_are_not_meta_count() -> None:
    one, two = torch.zeros(3), torch.tensor([0.0, 0.0, 1.0])
    assert described({"a": one}) == described({"a": torch.zeros(3)}) != described({"a": two})


def test_a_trace_is_made_once_and_again_where_the_code_changes() -> None:
    calls: list[Any] = []

    class Model:
        def clone(self) -> Model:
            return self

    traces = Traces()
    trace = traces.around(lambda *of: calls.append(of) or Model())  # type: ignore[arg-type, return-value, func-returns-value]
    trace(_Scaled(), 1), trace(_Scaled(), 1), trace(_Scaled(), 2)
    assert (len(calls), traces.made, traces.reused) == (2, 2, 1)
    with traces.off():
        trace(_Scaled(), 1)
    trace(_Scaled(), 1)
    assert len(calls) == 3
