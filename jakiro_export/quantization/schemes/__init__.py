"""The registry of schemes. A new one is a file of this package and a line here."""

from __future__ import annotations

from collections.abc import Mapping

from jakiro_export.quantization.scheme import Scheme
from jakiro_export.quantization.schemes.int4 import Int4
from jakiro_export.quantization.schemes.int8 import Int8

SCHEMES: Mapping[str, Scheme] = {scheme.name: scheme for scheme in (Int8(), Int4())}
