"""How a draft graph selects the nodes of its tree: in standard operators, or with one operator a step."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from jakiro_export.ops.best_nodes import best_nodes, fused_best_nodes
from jakiro_export.ops.candidates import candidates, fused_candidates
from jakiro_export.ops.propose import fused_propose, propose


class Selection(NamedTuple):
    """The steps; see the functions of these names for shapes."""

    candidates: Callable[..., tuple[Tensor, Tensor]]
    propose: Callable[..., tuple[Tensor, Tensor, Tensor]]
    best_nodes: Callable[..., tuple[Tensor, Tensor, Tensor]]


PRIMITIVE = Selection(candidates, propose, best_nodes)
FUSED = Selection(fused_candidates, fused_propose, fused_best_nodes)
