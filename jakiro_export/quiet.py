"""Silence for libraries that print while they work; the exporter says what a user needs."""

from __future__ import annotations

import logging
import os
import warnings


def quiet_libraries() -> None:
    """Silence torch's exporter, transformers' bars and their warnings. Call before importing them."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if not os.isatty(2):
        os.environ.setdefault("TQDM_DISABLE", "1")
    warnings.filterwarnings("ignore")
    for name in ("torch.onnx", "torch.onnx._internal.exporter", "torch.export", "onnxscript"):
        logging.getLogger(name).setLevel(logging.ERROR)
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
