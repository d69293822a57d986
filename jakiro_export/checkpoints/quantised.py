"""Quantised checkpoints as they come: what they packed, unpacked again, and the matrices that it stands for.

A layout's own arithmetic is one function here, from the tensors of a matrix to `Packed`; nothing is rounded. Sources: the packing
of AutoGPTQ and GPTQModel (`qweight`, `qzeros`, `scales`, `g_idx`), of AutoAWQ, of compressed-tensors and of NVIDIA's ModelOpt.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from jakiro_export.checkpoints.store import TensorStore
from jakiro_export.errors import ExportError

INT4, INT8, FP8, FP4 = "int4", "int8", "fp8", "fp4"
_FP8, _FP4 = np.dtype(ml_dtypes.float8_e4m3fn), np.dtype(ml_dtypes.float4_e2m1fn)
_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # which of eight outputs lies in each nibble of a word, the lowest first
# Methods that transformers knows and this exporter does not, with the reason
_REFUSED = {
    "bitsandbytes": "bitsandbytes keeps weights in a code book of its own (NF4) or splits outliers off at run time (LLM.int8), "
    "which no engine multiplies with",
}
_REMEDY = "give the checkpoint that is not quantised; --precision quantises it (w4a16, w8a8, fp8, nvfp4; int8, int4 for CPUs)"
METHODS = ("gptq", "awq", "compressed-tensors", "modelopt", "fp8")


@dataclass(frozen=True, eq=False)
class Packed:
    """A matrix [out, in] as a quantiser left it: scale * (step - zero), inputs in groups.

    kind: INT4, INT8, FP8 or FP4
    steps: [out, in], int8 for integers, else of the small type itself; integers are around zero
    scales: float32 [out, groups]; a group is `in / groups` inputs next to each other. Those of FP4 lack `shared`
    zeros: int8 [out, groups]; None where all are zero
    order: int64 [in]: the input that each column of `steps` belongs to; None where that is its own number (GPTQ's act-order)
    shared: what all scales of the matrix are multiplied by; 1 except for FP4
    """

    kind: str
    steps: np.ndarray
    scales: np.ndarray
    zeros: np.ndarray | None = None
    order: np.ndarray | None = None
    shared: np.float32 = field(default=np.float32(1))

    @property
    def shape(self) -> tuple[int, ...]:
        return self.steps.shape

    @property
    def group(self) -> int:
        """Inputs that share a scale."""
        return self.steps.shape[1] // self.scales.shape[1]

    def values(self) -> np.ndarray:
        """The matrix, float32 [out, in], inputs in their own order."""
        rows, columns = self.shape
        steps = self.steps.astype(np.float32).reshape(rows, -1, self.group)
        if self.zeros is not None:
            steps = steps - self.zeros.astype(np.float32)[..., None]
        scales = self.scales * self.shared if self.shared != 1 else self.scales
        found = (steps * scales[..., None]).reshape(rows, columns)
        if self.order is None:
            return found
        ordered = np.empty_like(found)
        ordered[:, self.order] = found
        return ordered


class QuantisedStore:
    """A `TensorStore` of a quantised checkpoint: its matrices under the names and in the shapes of a plain one, in float32.

    `packed` gives what they are stored as. One matrix is unpacked at a time.
    """

    def __init__(self, store: TensorStore, layout: Layout) -> None:
        self._store, self.layout = store, layout
        shapes = store.shapes()
        self._packed: dict[str, tuple[int, ...]] = {}
        hidden: set[str] = set()
        for name in shapes:
            base, _, tail = name.rpartition(".")
            if tail != layout.main or not layout.is_packed(store, base):
                continue
            self._packed[f"{base}.weight"] = layout.shape(store, base)
            hidden.update(f"{base}.{each}" for each in layout.tensors)
        self._plain = {name: shape for name, shape in shapes.items() if name not in hidden}
        self._unpack = lru_cache(maxsize=4)(self._read)

    @property
    def names(self) -> tuple[str, ...]:
        """The matrices that are quantised."""
        return tuple(self._packed)

    @property
    def kind(self) -> str:
        """INT4, INT8, FP8 or FP4, of the first matrix."""
        first = self.packed(self.names[0])
        assert first is not None
        return first.kind

    @property
    def label(self) -> str:
        """What the checkpoint is, for reports: "GPTQ, int4 in groups of 128, symmetric"."""
        first = self.packed(next(iter(self._packed)))
        assert first is not None
        grouped = f" in groups of {first.group}" if first.group < first.shape[1] else ""
        zeros = "" if first.kind != INT4 else ", symmetric" if first.zeros is None else ", asymmetric"
        order = "" if first.order is None else ", act-order"
        return f"{self.layout.title}, {first.kind}{grouped}{zeros}{order}"

    def packed(self, name: str) -> Packed | None:
        """A matrix as it is stored; None for a tensor that is not quantised."""
        return self._unpack(name) if name in self._packed else None

    def _read(self, name: str) -> Packed:
        base = name.removesuffix(".weight")
        found = self.layout.unpack(_Tensors(self._store, base))
        expected = self._packed[name]
        if found.shape != expected or not np.isfinite(found.scales).all():
            raise ExportError(f"The quantised matrix {name} is damaged: its shape is {found.shape}, or scales are not finite.")
        return found

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return {**self._plain, **self._packed}

    def dtype(self, name: str) -> np.dtype:
        return np.dtype(np.float32) if name in self._packed else self._store.dtype(name)

    def rows(self, name: str, start: int, stop: int) -> np.ndarray:
        if name not in self._packed:
            return self._store.rows(name, start, stop)
        return self._values(name)[start:stop]

    def _values(self, name: str) -> np.ndarray:
        if getattr(self, "_last", ("", None))[0] != name:
            self._last = (name, self._unpack(name).values())
        values: np.ndarray = self._last[1]
        return values


@dataclass(frozen=True)
class _Tensors:
    """The tensors of one matrix, by the ends of their names."""

    store: TensorStore
    base: str

    def __contains__(self, tail: str) -> bool:
        return f"{self.base}.{tail}" in self.store.shapes()

    def __getitem__(self, tail: str) -> np.ndarray:
        name = f"{self.base}.{tail}"
        shape = self.store.shapes().get(name)
        if shape is None:
            raise ExportError(f"The quantised matrix {self.base} lacks its tensor {tail}; download the checkpoint again.")
        return self.store.rows(name, 0, shape[0]) if shape else _scalar(self.store, name)


def _scalar(store: TensorStore, name: str) -> np.ndarray:
    return store.rows(name, 0, 1).reshape(())


@dataclass(frozen=True)
class Layout:
    """How one kind of checkpoint packs a matrix.

    title: for reports; main: the tensor that makes a module a quantised one; tensors: all that belong to it
    main_dtypes: element types that the main tensor has where it is quantised
    shape: of the matrix, from the main tensor's shape; unpack: the matrix
    """

    title: str
    main: str
    tensors: tuple[str, ...]
    main_dtypes: tuple[np.dtype, ...]
    sizes: Callable[[tuple[int, ...]], tuple[int, int]]
    unpack: Callable[[_Tensors], Packed]

    def is_packed(self, store: TensorStore, base: str) -> bool:
        return store.dtype(f"{base}.{self.main}") in self.main_dtypes

    def shape(self, store: TensorStore, base: str) -> tuple[int, int]:
        found = store.shapes()[f"{base}.{self.main}"]
        if len(found) != 2:
            raise ExportError(f"The quantised tensor {base}.{self.main} has shape {list(found)}, where a matrix is expected.")
        return self.sizes(found)


def nibbles(words: np.ndarray) -> np.ndarray:
    """Eight numbers from 0 to 15 of each 32-bit word, the lowest four bits first: [..., n] as uint8 [..., 8 n]."""
    parts = [(words.view(np.uint32) >> np.uint32(4 * place)) & np.uint32(15) for place in range(8)]
    return np.stack(parts, -1).astype(np.uint8).reshape(*words.shape[:-1], -1)


def _around_zero(zeros: np.ndarray) -> np.ndarray | None:
    """Zero points 0 to 15 as steps from 8; None where all are 8."""
    centred = zeros.astype(np.int8) - np.int8(8)
    return centred if centred.any() else None


def _gptq(first_zero: int) -> Callable[[_Tensors], Packed]:
    """first_zero: 1 where a stored zero point is one too low (the first format), else 0."""

    def unpack(tensors: _Tensors) -> Packed:
        steps = nibbles(np.ascontiguousarray(tensors["qweight"].T)).astype(np.int8) - np.int8(8)  # [out, in]
        scales = tensors["scales"].astype(np.float32).T  # [out, groups]
        zeros = nibbles(np.ascontiguousarray(tensors["qzeros"])).T + np.uint8(first_zero)
        groups, columns = scales.shape[1], steps.shape[1]
        if zeros.shape != scales.shape or columns % groups:
            raise ExportError(f"{tensors.base}: zero points {zeros.shape} and scales {scales.shape} do not fit each other.")
        order, size = None, columns // groups
        if "g_idx" in tensors:
            index = tensors["g_idx"].astype(np.int64)
            if index.shape != (columns,) or (np.bincount(index, minlength=groups) != size).any():
                raise ExportError(f"{tensors.base}: g_idx does not put {size} inputs into each of {groups} groups.")
            if (index != np.arange(columns) // size).any():
                order = np.argsort(index, kind="stable")
                steps = steps[:, order]
        return Packed(INT4, steps, scales, _around_zero(zeros), order)

    return unpack


def _awq(tensors: _Tensors) -> Packed:
    def outputs(words: np.ndarray) -> np.ndarray:
        """[n, out / 8] as [out, n]."""
        mixed = nibbles(np.ascontiguousarray(words)).reshape(len(words), -1, 8)
        return mixed[..., np.argsort(_AWQ_ORDER)].reshape(len(words), -1).T

    steps, scales = outputs(tensors["qweight"]).astype(np.int8) - np.int8(8), tensors["scales"].astype(np.float32).T
    zeros = _around_zero(outputs(tensors["qzeros"])) if "qzeros" in tensors else None
    return Packed(INT4, np.ascontiguousarray(steps), scales, zeros)


def _compressed_int4(tensors: _Tensors) -> Packed:
    steps, scales = nibbles(tensors["weight_packed"]).astype(np.int8) - np.int8(8), tensors["weight_scale"].astype(np.float32)
    zeros = None
    if "weight_zero_point" in tensors:  # packed along the outputs
        rows = nibbles(np.ascontiguousarray(tensors["weight_zero_point"].T)).T[: len(scales)]
        zeros = _around_zero(rows)
    order = None
    if "weight_g_idx" in tensors:
        index, groups = tensors["weight_g_idx"].astype(np.int64), scales.shape[1]
        if index.min() >= 0:  # -1 where there is no order
            size = steps.shape[1] // groups
            if index.shape != steps.shape[1:] or (np.bincount(index, minlength=groups) != size).any():
                raise ExportError(f"{tensors.base}: weight_g_idx does not put {size} inputs into each of {groups} groups.")
            if (index != np.arange(len(index)) // size).any():
                order = np.argsort(index, kind="stable")
                steps = steps[:, order]
    return Packed(INT4, steps, scales, zeros, order)


def _bytes(kind: str) -> Callable[[_Tensors], Packed]:
    """Int8 or fp8 with a scale for the matrix or for each output."""

    def unpack(tensors: _Tensors) -> Packed:
        steps, scales = tensors["weight"], tensors["weight_scale"].astype(np.float32)
        return Packed(kind, steps, np.broadcast_to(scales.reshape(-1, 1), (len(steps), 1)))

    return unpack


def _blocks_fp8(tensors: _Tensors) -> Packed:
    """Fp8 with a scale for each square block, as DeepSeek's and Qwen's checkpoints have it."""
    steps, scales = tensors["weight"], tensors["weight_scale_inv"].astype(np.float32)
    rows, columns = steps.shape
    if scales.ndim != 2 or rows % len(scales) or columns % scales.shape[1]:
        raise ExportError(f"{tensors.base}: {rows} x {columns} are no whole blocks of scales {scales.shape}.")
    return Packed(FP8, steps, np.repeat(scales, rows // len(scales), 0))


def _fp4_steps(packed: np.ndarray) -> np.ndarray:
    """[out, in / 2] bytes, the first input in the lower four bits."""
    both = np.stack([packed & 15, packed >> 4], -1).reshape(len(packed), -1)
    return both.view(_FP4)


def _compressed_fp4(tensors: _Tensors) -> Packed:
    shared = np.float32(1) / tensors["weight_global_scale"].astype(np.float32).reshape(())
    return Packed(
        FP4, _fp4_steps(tensors["weight_packed"]), tensors["weight_scale"].astype(np.float32), shared=np.float32(shared)
    )


def _modelopt_fp4(tensors: _Tensors) -> Packed:
    shared = tensors["weight_scale_2"].astype(np.float32).reshape(())
    return Packed(FP4, _fp4_steps(tensors["weight"]), tensors["weight_scale"].astype(np.float32), shared=np.float32(shared))


def _modelopt_int4(tensors: _Tensors) -> Packed:
    """Two outputs a byte: [out / 2, in]."""
    if "pre_quant_scale" in tensors:
        raise ExportError(
            f"{tensors.base} has a pre_quant_scale, which scales its inputs at run time and is not read here; {_REMEDY}."
        )
    packed = tensors["weight"].view(np.uint8)
    both = np.stack([packed & 15, packed >> 4], 1).reshape(-1, packed.shape[1]).astype(np.int8)
    return Packed(INT4, np.where(both > 7, both - 16, both).astype(np.int8), tensors["weight_scale"].astype(np.float32))


_I32, _U8, _I8 = np.dtype(np.int32), np.dtype(np.uint8), np.dtype(np.int8)
_GPTQ_TENSORS = ("qweight", "qzeros", "scales", "g_idx")
_BYTE_TENSORS = ("weight", "weight_scale", "input_scale", "weight_zero_point", "pre_quant_scale")
_CT_TENSORS = ("weight_packed", "weight_scale", "weight_zero_point", "weight_shape", "weight_g_idx", "weight_global_scale",
               "input_global_scale", "input_scale")  # fmt: skip
_MODELOPT_TENSORS = (*_BYTE_TENSORS, "weight_scale_2")


def _same(shape: tuple[int, ...]) -> tuple[int, int]:
    return shape[0], shape[1]


def _words(shape: tuple[int, ...]) -> tuple[int, int]:
    return shape[0], 8 * shape[1]


def _pairs(shape: tuple[int, ...]) -> tuple[int, int]:
    return shape[0], 2 * shape[1]


def layout(config: Mapping[str, Any], path: Path) -> Layout:
    """How a checkpoint with this `quantization_config` packs its matrices.

    Raises:
        ExportError: by a method, or with settings, that this exporter does not read
    """
    method = str(config.get("quant_method") or ("modelopt" if "quant_algo" in config else "") or "an unnamed method")
    if method == "gptq":
        _check(config.get("bits") == 4, path, f"GPTQ with {config.get('bits')} bits, where 4 are read")
        version = 0 if config.get("checkpoint_format") == "gptq_v2" else 1
        return Layout("GPTQ", "qweight", _GPTQ_TENSORS, (_I32,), lambda s: (s[1], 8 * s[0]), _gptq(version))
    if method == "awq":
        form, bits = str(config.get("version", "gemm")).lower(), config.get("bits", config.get("w_bit"))
        _check(bits == 4 and form == "gemm", path, f'AWQ with {bits} bits in the form {form!r}, where 4 bits in "gemm" are read')
        return Layout("AWQ", "qweight", _GPTQ_TENSORS, (_I32,), lambda s: (8 * s[1], s[0]), _awq)
    if method == "compressed-tensors":
        return _compressed_tensors(config, path)
    if method == "modelopt":
        algorithm = str((config.get("quantization") or config).get("quant_algo", "")).upper()
        if algorithm in ("FP8", "FP8_PER_CHANNEL_PER_TOKEN"):
            return Layout("ModelOpt", "weight", _MODELOPT_TENSORS, (_FP8,), _same, _bytes(FP8))
        if algorithm == "NVFP4":
            return Layout("ModelOpt", "weight", _MODELOPT_TENSORS, (_U8,), _pairs, _modelopt_fp4)
        if algorithm in ("W4A16", "W4A16_AWQ"):
            return Layout("ModelOpt", "weight", _MODELOPT_TENSORS, (_U8, _I8), lambda s: (2 * s[0], s[1]), _modelopt_int4)
        _check(False, path, f"ModelOpt's {algorithm or 'algorithm is not named'}, where FP8, NVFP4 and W4A16_AWQ are read")
    if method == "fp8":
        tensors = ("weight", "weight_scale_inv", "input_scale")
        return Layout("fp8 in blocks", "weight", tensors, (_FP8,), _same, _blocks_fp8)
    _check(False, path, _REFUSED.get(method, f"{method}, which this exporter does not read"))
    raise AssertionError


def _compressed_tensors(config: Mapping[str, Any], path: Path) -> Layout:
    form = str(config.get("format"))
    groups = config.get("config_groups")
    weights = [each.get("weights") or {} for each in groups.values()] if isinstance(groups, dict) else []
    bits = {each.get("num_bits") for each in weights}
    if form == "pack-quantized":
        _check(bits == {4}, path, f"compressed-tensors packed with {sorted(map(str, bits))} bits, where 4 are read")
        return Layout("compressed-tensors", "weight_packed", _CT_TENSORS, (_I32,), _words, _compressed_int4)
    if form == "nvfp4-pack-quantized":
        return Layout("compressed-tensors", "weight_packed", _CT_TENSORS, (_U8,), _pairs, _compressed_fp4)
    known = ("int-quantized", "float-quantized", "naive-quantized")
    _check(form in known, path, f"compressed-tensors in the format {form!r}, which this exporter does not read")
    _check(all(each.get("strategy") in ("channel", "tensor") for each in weights), path, f"compressed-tensors {form} in groups")
    _check(all(each.get("symmetric", True) for each in weights), path, f"compressed-tensors {form} with zero points")
    if form == "int-quantized":
        return Layout("compressed-tensors", "weight", _BYTE_TENSORS, (_I8,), _same, _bytes(INT8))
    return Layout("compressed-tensors", "weight", _BYTE_TENSORS, (_FP8,), _same, _bytes(FP8))


def _check(fine: bool, path: Path, found: str) -> None:
    if not fine:
        raise ExportError(f"The checkpoint in {path} is quantised: {found}; {_REMEDY}.")
