"""Safetensors files, read with plain file reads: pages of a memory map that were touched count as resident memory."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import ml_dtypes
import numpy as np

from jakiro_export.errors import ExportError

_DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
_MAX_HEADER = 100 * 1024 * 1024


class SafetensorsStore:
    """A `TensorStore` of one or more safetensors files.

    Raises:
        ExportError: a file is truncated, or its header does not describe its bytes.
    """

    def __init__(self, files: Iterable[Path]) -> None:
        self._entries: dict[str, tuple[Path, int, tuple[int, ...], np.dtype]] = {}
        for file in files:
            self._read_header(Path(file))

    def _read_header(self, file: Path) -> None:
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if size < 8 or length > min(size - 8, _MAX_HEADER):
                raise ExportError(f"{file} is not a complete safetensors file: {size} bytes, header of {length} bytes.")
            try:
                header = json.loads(stream.read(length))
            except ValueError as error:
                raise ExportError(f"{file} is not a safetensors file: its header is not JSON ({error}).") from error
        if not isinstance(header, dict):
            raise ExportError(f"{file} is not a safetensors file: its header is not an object.")
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            try:
                dtype, shape = _DTYPES[entry["dtype"]], tuple(int(n) for n in entry["shape"])
                begin, end = (int(n) for n in entry["data_offsets"])
            except (KeyError, TypeError, ValueError) as error:
                raise ExportError(f"{file}: the header entry of tensor {name} is unusable ({error!r}).") from error
            expected = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
            if begin < 0 or end - begin != expected or min(shape, default=0) < 0:
                raise ExportError(f"{file}: tensor {name} claims {end - begin} bytes where its shape needs {expected}.")
            if 8 + length + end > size:
                raise ExportError(
                    f"{file} is truncated: tensor {name} ends at byte {8 + length + end}, the file at {size}; download it again."
                )
            self._entries[name] = (file, 8 + length + begin, shape, dtype)

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return {name: entry[2] for name, entry in self._entries.items()}

    def dtype(self, name: str) -> np.dtype:
        return self._entries[name][3]

    def rows(self, name: str, start: int, stop: int) -> np.ndarray:
        file, offset, shape, dtype = self._entries[name]
        width = int(np.prod(shape[1:], dtype=np.int64))
        with file.open("rb") as stream:
            stream.seek(offset + start * width * dtype.itemsize)
            data = np.fromfile(stream, dtype, (stop - start) * width)
        return data.reshape(stop - start, *shape[1:])
