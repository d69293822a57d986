"""Prompts from conversations, by the model's own chat template."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jakiro_runtime.errors import ConversationError, EngineError, one_line
from jakiro_runtime.format.files import read_text

Message = Mapping[str, Any]
"""{"role": "system" | "user" | "assistant" | ..., "content": text, a list of parts, or None; and whatever the template reads}."""

_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_LARGEST = 64 << 20  # bytes of tokenizer_config.json
_LARGEST_TEMPLATE = 4 << 20
_DEFAULT, _TOOL_USE = "default", "tool_use"
_REASONING = ("reasoning_content", "thinking", "reasoning")  # names of a message's reasoning; the first is the standard one


class ChatTemplate:
    """A model's chat template, rendered as `transformers` renders it, in a bounded sandbox.

    Args:
        source: the template; or several by name, of which "tool_use" is for conversations with tools and "default" for the others
        tokens: the named special tokens, such as bos_token

    Raises:
        EngineError: the template cannot be parsed
    """

    def __init__(self, source: str | Mapping[str, str], tokens: Mapping[str, str]) -> None:
        sources = {_DEFAULT: source} if isinstance(source, str) else source
        self._sources = dict(sources)
        self._templates = {name: _compiled(text) for name, text in sources.items()}
        self._tokens = dict(tokens)

    @staticmethod
    def read(directory: Path) -> ChatTemplate | None:
        """The template of an engine directory; None where the model has none.

        Raises:
            EngineError: a file is damaged, or the template cannot be parsed
        """
        path = directory / "tokenizer_config.json"
        config: Any = {}
        if path.exists():
            try:
                config = json.loads(_read(path, _LARGEST))
            except (ValueError, RecursionError) as error:
                raise EngineError(f"{path} is not JSON ({error}); export the engine again.") from error
            if not isinstance(config, dict):
                raise EngineError(f"{path} holds no JSON object; export the engine again.")
        sources = _named_sources(config.get("chat_template"))
        file = directory / "chat_template.jinja"
        if file.exists():
            sources[_DEFAULT] = _read(file, _LARGEST_TEMPLATE)
        named = directory / "additional_chat_templates"
        if named.is_dir():
            sources.update({each.stem: _read(each, _LARGEST_TEMPLATE) for each in sorted(named.glob("*.jinja"))})
        tokens = {}
        for name in _NAMED:
            value = config.get(name)
            value = value.get("content") if isinstance(value, dict) else value
            if isinstance(value, str):
                tokens[name] = value
        return ChatTemplate(sources, tokens) if sources else None

    def source(self, tools: bool = False) -> str:
        """The template for conversations with tools, or without; empty where there is none."""
        return self._sources.get(self._name(tools), "")

    def _name(self, tools: bool) -> str:
        return _TOOL_USE if tools and _TOOL_USE in self._templates else _DEFAULT

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        **variables: Any,
    ) -> str:
        """The prompt that asks for the assistant's next answer.

        Args:
            messages: in order; keys whose value is None are left out
            tools: JSON schemas of functions that the assistant may call
            documents: to answer from, {"title": ..., "text": ...} each
            variables: whatever else the template reads, such as enable_thinking

        Raises:
            ConversationError: the template refuses the conversation, fails, or does more than any prompt needs
        """
        name = self._name(tools is not None)
        if name not in self._templates:
            raise ConversationError(
                f"The model has no default chat template, only {', '.join(sorted(self._templates))}; give prompts as they stand."
            )
        conversation = [_message(message) for message in messages]
        if not conversation:
            raise ConversationError("The conversation is empty; at least one message is expected.")
        given = {
            **self._tokens,
            **{key: _plain(value) for key, value in variables.items()},
            "messages": conversation,
            "tools": _plain(tools),
            "documents": _plain(documents),
            "add_generation_prompt": True,
        }
        from jakiro_runtime.text import sandbox

        try:
            return sandbox.render(self._templates[name], given)
        except sandbox.TemplateError as error:
            raise ConversationError(f"The model's chat template refuses this conversation: {one_line(error)}.") from error
        except sandbox.TemplateBudgetError as error:
            raise ConversationError(f"The model's chat template was stopped: {error}.") from error
        except Exception as error:  # its expressions may raise anything: the template or the conversation is at fault
            raise ConversationError(
                f"The model's chat template fails on this conversation: {type(error).__name__}: {one_line(error)}."
            ) from error


def _compiled(source: str) -> Any:
    from jakiro_runtime.text import sandbox  # here: importing the runtime shall not import jinja2

    try:
        return sandbox.sandbox().from_string(source)
    except Exception as error:  # besides TemplateError: nested too deep, for jinja2 or for Python's compiler
        raise EngineError(
            f"The engine's chat template cannot be parsed: {one_line(error)}; export the engine again, or give prompts as "
            "they stand (jakiro-run --raw)."
        ) from error


def _read(path: Path, most: int) -> str:
    try:
        return read_text(path, most)
    except (OSError, UnicodeDecodeError) as error:
        raise EngineError(f"{path} cannot be read: {one_line(error)}; export the engine again.") from error


def _named_sources(given: Any) -> dict[str, str]:
    """The templates of tokenizer_config.json: one, or a list of {"name", "template"}."""
    if isinstance(given, str):
        return {_DEFAULT: given}
    each = given if isinstance(given, list) else []
    return {
        part["name"]: part["template"]
        for part in each
        if isinstance(part, dict) and isinstance(part.get("name"), str) and isinstance(part.get("template"), str)
    }


def _message(message: Any) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise ConversationError(f"A message is a {type(message).__name__}; an object with a role and a content is expected.")
    plain: dict[str, Any] = _plain({key: value for key, value in message.items() if value is not None})
    reasoning = next((plain[key] for key in _REASONING if plain.get(key) is not None), None)
    return plain if reasoning is None else {"thinking": reasoning, **plain, "reasoning_content": reasoning}


def _plain(value: Any) -> Any:
    """The same out of plain JSON types: methods of other objects are not a template's to call."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    for kind in (str, int, float):
        if isinstance(value, kind):
            return kind(value)
    if isinstance(value, Mapping):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value] if isinstance(value, list) else tuple(map(_plain, value))
    return f"<{type(value).__name__}>"
