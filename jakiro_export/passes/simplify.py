"""Small constants folded; what is double or dead removed."""

from __future__ import annotations

import onnx_ir as ir
import onnxscript.optimizer
from onnx_ir.passes import common

_SMALL = 1024  # constants up to this many bytes are folded; no weight is


def fold_constants(model: ir.Model) -> None:
    """Compute what depends on small constants alone."""
    onnxscript.optimizer.optimize_ir(model, input_size_limit=_SMALL, output_size_limit=_SMALL)


def remove_duplicates(model: ir.Model) -> None:
    """Make one of equal nodes, and drop those that do nothing or that nobody reads."""
    for each in (
        common.LiftConstantsToInitializersPass(lift_all_constants=False, size_limit=0),
        common.CommonSubexpressionEliminationPass(),
        common.IdentityEliminationPass(),
        common.RemoveUnusedNodesPass(),
    ):
        each(model)
