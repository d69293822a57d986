"""Sandbox for chat templates: jinja2's, with transformers' functions and with bounds on steps, time and size.

A template comes from a file that somebody else wrote. The sandbox of jinja2 keeps it from the interpreter's internals; what it
does not bound (loops in loops, doubled strings, huge powers and widths) is bounded here, by counting in the compiled template.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from contextvars import ContextVar
from datetime import datetime
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.runtime
import jinja2.sandbox
from jinja2 import TemplateError as TemplateError

SECONDS = 5.0
"""The most time of one prompt."""
CHARACTERS = 1 << 24
"""The longest text, of a prompt or of anything that a template makes on its way."""
_STEPS = 2_000_000  # loop passes and macro calls
_BITS = 1 << 12  # of a whole number
_DEPTH = 16  # of loops and macros in each other; what compiling them takes doubles with each
_WIDTHS = ("center", "ljust", "rjust", "zfill", "expandtabs", "indent", "wordwrap", "tojson", "lipsum", "batch", "slice", "round")


class TemplateBudgetError(Exception):
    """A template does more than any prompt needs."""


class _Budget:
    def __init__(self) -> None:
        self.steps, self.characters, self.end = 0, 0, time.monotonic() + SECONDS

    def step(self) -> None:
        self.steps += 1
        if self.steps > _STEPS or time.monotonic() > self.end:
            raise TemplateBudgetError(f"it takes more than {_STEPS} steps or {SECONDS:.0f} seconds")

    def add(self, characters: int) -> None:
        self.characters += characters
        if self.characters > 8 * CHARACTERS or time.monotonic() > self.end:
            raise TemplateBudgetError("it writes too much text")


_BUDGET: ContextVar[_Budget | None] = ContextVar("budget", default=None)


def sandbox() -> jinja2.sandbox.SandboxedEnvironment:
    """An environment that compiles chat templates as transformers does."""
    environment = _Environment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, jinja2.ext.loopcontrols], finalize=_finalize
    )
    environment.filters.update(
        {name: _bounded(environment.filters[name], name) for name in _WIDTHS if name in environment.filters}
    )
    environment.filters["replace"] = _bounded(environment.filters["replace"], "replace")
    environment.filters["format"] = _bounded(environment.filters["format"], "format")
    environment.filters["join"] = _bounded_join(environment.filters["join"])
    environment.filters["sum"] = _bounded_sum(environment.filters["sum"])
    environment.filters["tojson"] = _to_json
    environment.globals.update(
        raise_exception=_raise_exception,
        strftime_now=lambda form: datetime.now().strftime(form),
        dict=_TemplateDict(),
        namespace=_TemplateNamespace,
    )
    environment.globals.pop("lipsum", None)
    return environment


def render(template: jinja2.Template, variables: Mapping[str, Any]) -> str:
    """The text of a template.

    Raises:
        TemplateBudgetError: it takes too long or grows too large
        Exception: whatever a template's expressions raise
    """
    token = _BUDGET.set(_Budget())
    try:
        return _concat(template.generate(variables))
    finally:
        _BUDGET.reset(token)


class _GenerationTag(jinja2.ext.Extension):
    """`{% generation %}` marks what an assistant wrote, for training; a prompt holds its body as it stands."""

    tags = {"generation"}  # noqa: RUF012  (as jinja2 has it)

    def parse(self, parser: Any) -> Any:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: Any) -> str:
        return str(caller())


class _Environment(jinja2.sandbox.ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset(["*", "**", "%", "+"])

    def _parse(self, source: str, name: str | None, filename: str | None) -> jinja2.nodes.Template:
        tree = super()._parse(source, name, filename)
        _check_depth(tree, 0)
        for kind in (jinja2.nodes.For, jinja2.nodes.Macro, jinja2.nodes.CallBlock):
            for node in list(tree.find_all(kind)):
                call = jinja2.nodes.Call(jinja2.nodes.EnvironmentAttribute("count_step"), [], [], None, None)
                node.body.insert(0, jinja2.nodes.ExprStmt(call).set_lineno(node.lineno))  # type: ignore[attr-defined]
        return _Concatenations().visit(tree)  # type: ignore[no-any-return]

    def count_step(self) -> None:
        budget = _BUDGET.get()
        if budget is not None:
            budget.step()

    def concatenate(self, *parts: Any) -> str:
        return _concat(map(str, parts))

    @staticmethod
    def concat(parts: Iterable[str]) -> str:  # type: ignore[override]
        return _concat(parts)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        _check_operands(operator, left, right)
        return super().call_binop(context, operator, left, right)

    def wrap_str_format(self, value: Any) -> Any:
        wrapped: Any = super().wrap_str_format(value)
        if wrapped is None:
            return None

        def bounded(*args: Any, **kwargs: Any) -> str:
            _check_form(value.__self__, [*args, *kwargs.values()])
            return str(wrapped(*args, **kwargs))

        return bounded

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        name = getattr(__obj, "__name__", "")
        if name in _WIDTHS or name in ("replace", "join", "translate"):
            _check_call(name, getattr(__obj, "__self__", ""), args, kwargs)
        return super().call(__context, __obj, *args, **kwargs)


class _Concatenations(jinja2.visitor.NodeTransformer):
    """`a ~ b` as a call that is bounded."""

    def visit_Concat(self, node: jinja2.nodes.Concat) -> jinja2.nodes.Node:
        self.generic_visit(node)
        call = jinja2.nodes.EnvironmentAttribute("concatenate")
        return jinja2.nodes.Call(call, node.nodes, [], None, None).set_lineno(node.lineno)


def _check_depth(node: jinja2.nodes.Node, depth: int) -> None:
    if depth > _DEPTH:
        raise jinja2.TemplateSyntaxError(f"loops and macros are nested deeper than {_DEPTH}", node.lineno)
    inner = isinstance(node, jinja2.nodes.For | jinja2.nodes.Macro | jinja2.nodes.CallBlock)
    for child in node.iter_child_nodes():
        _check_depth(child, depth + inner)


def _concat(parts: Iterable[str]) -> str:
    kept, length = [], 0
    for part in parts:
        kept.append(part)
        length += len(part)
        if length > CHARACTERS:
            raise TemplateBudgetError(f"it makes a text of more than {CHARACTERS} characters")
    return "".join(kept)


def _finalize(value: Any) -> Any:
    budget = _BUDGET.get()
    if budget is not None:
        budget.add(len(value) if isinstance(value, str) else 1)
    return value


def _check_operands(operator: str, left: Any, right: Any) -> None:
    if isinstance(left, int) and isinstance(right, int):
        if operator == "*":
            bits = left.bit_length() + right.bit_length()
        elif operator == "**":
            bits = left.bit_length() * max(1, abs(right))
        else:
            bits = 0
        if bits > _BITS:
            raise TemplateBudgetError(f"it makes a number of more than {_BITS} bits")
    elif operator == "*" or operator == "+":
        sizes = [len(each) if isinstance(each, str | list | tuple | bytes) else each for each in (left, right)]
        if all(isinstance(size, int) for size in sizes):
            size = sizes[0] * sizes[1] if operator == "*" else sizes[0] + sizes[1]
            if size > CHARACTERS:
                raise TemplateBudgetError(f"it makes a text or list of more than {CHARACTERS} parts")
    elif operator == "%" and isinstance(left, str):
        _check_form(left, right if isinstance(right, tuple) else (right,))


def _check_form(form: str, values: Iterable[Any]) -> None:
    """A format string whose widths are written with more than four digits, or come from a value, makes a huge text."""
    digits = 0
    for character in form:
        digits = digits + 1 if character.isdigit() else 0
        if digits > 4:
            raise TemplateBudgetError("it formats with a huge width")
    if ("*" in form or "{" in form) and any(isinstance(value, int) and abs(value) > 9999 for value in values):
        raise TemplateBudgetError("it formats with a huge width")


def _check_call(name: str, text: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    values = [*args, *kwargs.values()]
    if name == "translate":
        raise TemplateBudgetError("it calls translate, which no prompt needs")
    if name in _WIDTHS and any(isinstance(value, int) and abs(value) > 9999 for value in values):
        raise TemplateBudgetError(f"it asks {name} for a huge width")
    if name == "format" and isinstance(text, str):
        _check_form(text, values)
    if name == "replace" and isinstance(text, str) and len(values) >= 2:
        old, new = str(values[0]), str(values[1])
        if len(text) + text.count(old) * len(new) > CHARACTERS:
            raise TemplateBudgetError(f"it makes a text of more than {CHARACTERS} characters")
    if name == "join" and values and isinstance(values[0], list | tuple):
        sizes = sum(len(each) for each in values[0] if isinstance(each, str))
        if sizes + len(str(text)) * len(values[0]) > CHARACTERS:
            raise TemplateBudgetError(f"it makes a text of more than {CHARACTERS} characters")


def _bounded(function: Any, name: str) -> Any:
    """A filter whose arguments are looked at first; what it is filtered with comes after what jinja2 passes of its own."""
    passed = int(hasattr(function, "jinja_pass_arg"))

    def call(*args: Any, **kwargs: Any) -> Any:
        _check_call(name, args[passed] if len(args) > passed else "", args[passed + 1 :], kwargs)
        return function(*args, **kwargs)

    if passed:
        call.jinja_pass_arg = function.jinja_pass_arg  # type: ignore[attr-defined]
    return call


def _bounded_join(function: Any) -> Any:
    passed = int(hasattr(function, "jinja_pass_arg"))

    def call(*args: Any, **kwargs: Any) -> Any:
        values = list(args[passed])
        separator = args[passed + 1] if len(args) > passed + 1 else kwargs.get("d", "")
        _check_call("join", separator, (values,), {})
        return function(*args[:passed], values, *args[passed + 1 :], **kwargs)

    if passed:
        call.jinja_pass_arg = function.jinja_pass_arg  # type: ignore[attr-defined]
    return call


def _bounded_sum(function: Any) -> Any:
    def call(environment: Any, values: Any, attribute: Any = None, start: Any = 0) -> Any:
        if not isinstance(start, int | float):
            raise TemplateBudgetError("it sums other things than numbers")
        return function(environment, values, attribute, start)

    call.jinja_pass_arg = function.jinja_pass_arg  # type: ignore[attr-defined]
    return call


def _to_json(value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False) -> str:
    _check_call("tojson", "", (indent,), {})
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(reason: str) -> None:
    raise jinja2.TemplateError(reason)


class _TemplateDict:
    """`dict` in templates, as transformers has it: no class whose attributes could be reached."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args, **kwargs)


class _TemplateNamespace(jinja2.utils.Namespace):
    """`namespace` in templates, as transformers has it: names that begin with an underscore are refused."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, args = args[0], args[1:]
        attributes = dict(*args, **kwargs)
        for name in attributes:
            _check_attribute(name)
        jinja2.utils.Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_attribute(name)
        super().__setitem__(name, value)


def _check_attribute(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"the namespace attribute {name!r} begins with an underscore")
