"""Prompts from conversations, by the model's own chat template."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from jakiro_runtime.errors import EngineError

Message = Mapping[str, str]


class ChatTemplate:
    """A model's chat template, rendered in jinja2's sandbox: it comes from a file that somebody else wrote.

    Raises:
        EngineError: the template cannot be parsed
    """

    def __init__(self, source: str, tokens: Mapping[str, str]) -> None:
        import jinja2
        import jinja2.sandbox

        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        # what transformers offers templates
        environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateError as error:
            raise EngineError(f"The engine's chat template cannot be parsed: {error}.") from error
        self._tokens = dict(tokens)

    @staticmethod
    def read(directory: Path) -> ChatTemplate | None:
        """The template of an engine directory; None where the model has none."""
        config: dict[str, Any] = {}
        if (directory / "tokenizer_config.json").is_file():
            config = json.loads((directory / "tokenizer_config.json").read_text(encoding="utf-8"))
        file = directory / "chat_template.jinja"
        source = file.read_text(encoding="utf-8") if file.is_file() else config.get("chat_template")
        if not isinstance(source, str):
            return None
        tokens = {}
        for name in ("bos_token", "eos_token", "unk_token", "pad_token"):
            value = config.get(name)
            value = value.get("content") if isinstance(value, dict) else value
            if isinstance(value, str):
                tokens[name] = value
        return ChatTemplate(source, tokens)

    def render(self, messages: Sequence[Message]) -> str:
        """The prompt that asks for the assistant's next answer.

        Args:
            messages: {"role": "system" | "user" | "assistant", "content": text} in order

        Raises:
            EngineError: the template refuses the conversation
        """
        import jinja2

        try:
            return str(self._template.render(messages=list(messages), add_generation_prompt=True, **self._tokens))
        except (jinja2.TemplateError, _Refused) as error:
            raise EngineError(f"The model's chat template refuses this conversation: {error}.") from error


class _Refused(Exception):
    pass


def _refuse(reason: str) -> None:
    raise _Refused(reason)
