"""Generation configs: what a checkpoint's own generation_config.json asks of sampling."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from jakiro_runtime.errors import EngineError, UsageError
from jakiro_runtime.format.files import read_text
from jakiro_runtime.sampling.parameters import Sampling

NAME = "generation_config.json"
_DRAWN = {"temperature": 1.0, "top_k": 50, "top_p": 1.0, "min_p": 0.0}  # transformers' defaults where it draws
_ALWAYS = {"repetition_penalty": 1.0, "min_new_tokens": 0}
# what changes an answer in transformers and has no counterpart here, with the values that change nothing
_UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "typical_p": (1.0,), "top_h": (), "epsilon_cutoff": (0.0,), "eta_cutoff": (0.0,), "encoder_repetition_penalty": (1.0,),
    "no_repeat_ngram_size": (0,), "encoder_no_repeat_ngram_size": (0,), "bad_words_ids": ([],), "sequence_bias": ({},),
    "suppress_tokens": ([],), "begin_suppress_tokens": ([],), "forced_bos_token_id": (), "forced_eos_token_id": (),
    "exponential_decay_length_penalty": (), "num_beams": (1,), "penalty_alpha": (0.0,), "guidance_scale": (1.0,),
    "renormalize_logits": (False,), "remove_invalid_values": (False,), "stop_strings": ([],), "min_length": (0,),
    "dola_layers": (), "watermarking_config": (),
}  # fmt: skip


@dataclass(frozen=True)
class GenerationDefaults:
    """What a checkpoint asks for.

    sampling: parameters as transformers' `generate` would take them from the file
    unsupported: names of the file's settings that change answers in transformers and that this runtime does not have
    """

    sampling: Sampling
    unsupported: tuple[str, ...] = ()

    @property
    def asked(self) -> dict[str, Any]:
        """The parameters that differ from greedy defaults."""
        plain = Sampling()
        each = ((part.name, getattr(self.sampling, part.name)) for part in fields(Sampling))
        return {name: value for name, value in each if value != getattr(plain, name)}

    @staticmethod
    def read(directory: Path) -> GenerationDefaults:
        """Of an engine directory. Without the file, or with nothing in it about sampling: greedy.

        Raises:
            EngineError: the file is damaged, or holds a value out of its range
        """
        path = directory / NAME
        if not path.exists():
            return GenerationDefaults(Sampling())
        try:
            config = json.loads(read_text(path, 1 << 24))
        except (OSError, ValueError, RecursionError) as error:
            raise EngineError(f"{path} cannot be read: {error}; export the engine again.") from error
        if not isinstance(config, dict):
            raise EngineError(f"{path} holds no JSON object; export the engine again.")
        names = {**_ALWAYS, **(_DRAWN if config.get("do_sample") is True else {})}
        values: dict[str, Any] = {name: default if config.get(name) is None else config[name] for name, default in names.items()}
        try:
            sampling = Sampling(**values)
        except UsageError as error:
            raise EngineError(f"{path}: {error}") from error
        found = ((name, config.get(name), same) for name, same in _UNSUPPORTED.items())
        return GenerationDefaults(sampling, tuple(name for name, value, same in found if value is not None and value not in same))
