"""The last pass: a graph's name, its operators' bodies, and where it came from."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir
from onnx_ir.passes import common

from jakiro_export.ops import DOMAIN, registry
from jakiro_export.ops.operator import VERSION


def finish(model: ir.Model, name: str, metadata: Mapping[str, str]) -> None:
    """Name the graph, attach the bodies of the operators it has, and say where it came from."""
    common.ClearMetadataAndDocStringPass()(model)
    model.graph.name = name
    model.producer_name = "jakiro-export"
    model.producer_version = metadata.get("jakiro_version", "")
    model.metadata_props.update(metadata)
    for proto in registry.bodies(model):
        function = ir.serde.deserialize_function(proto)
        model.functions[function.identifier()] = function
        model.graph.opset_imports[DOMAIN] = VERSION
    common.TopologicalSortPass()(model)
