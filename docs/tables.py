"""Writes the tables of these pages that are made from the code: `python docs/tables.py`. A test compares pages and code."""

from __future__ import annotations

import pkgutil
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from importlib import import_module
from pathlib import Path

import click

import jakiro_export.ops
from jakiro_export.checkpoints.aliases import ALIASES
from jakiro_export.heads.registry import families
from jakiro_export.ops import registry
from jakiro_export.ops.operator import Operand, Operator
from jakiro_export.ops.rotary import REFUSED_ROTARY
from jakiro_export.targets.families import KNOWN_TO_WORK, REFUSED_MODELS
from jakiro_runtime import contract

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
_TABLE = re.compile(r"(<!-- table: (?P<name>[a-z-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def _tensors(specs: Iterable[contract.TensorSpec]) -> str:
    """Inputs or outputs of a graph; of tensors that every layer has, the first stands for all, as layer N."""
    rows = []
    for spec in specs:
        dims = ", ".join(map(str, spec.dims))
        rows.append((f"`{spec.name}`".replace(".0", ".N"), f"[{dims}]", spec.type, spec.meaning.replace("layer 0", "layer N")))
    return table(("name", "shape", "type", "meaning"), rows)


def _contracts() -> dict[str, contract.GraphContract]:
    # names in place of sizes
    target = contract.target(1, "kv_heads", "head_dim", "hidden", "vocab")  # type: ignore[arg-type]
    draft = contract.draft("kv_heads", "head_dim", "hidden", "nodes")  # type: ignore[arg-type]
    return {each.name: each for each in (target, draft)}


def _operators(own: bool) -> str:
    files: dict[str, str] = {}
    for each in pkgutil.iter_modules(jakiro_export.ops.__path__):
        module = import_module(f"jakiro_export.ops.{each.name}")
        files |= {operator.name: f"`ops/{each.name}.py`" for operator in getattr(module, "OPERATORS", ())}

    def runs(operator: Operator) -> str:
        return ", ".join(
            name for name, there in (("CPU kernel", operator.cpu_kernel), ("plugin", operator.tensorrt_plugin)) if there
        )

    rows = [
        (f"`{each.name}`", each.doc, str(each.opset), runs(each), files[each.name])
        for each in registry.operators().values()
        if bool(each.domain) == own
    ]
    return table(("operator", "what it computes", "opset", "replaced by", "file"), rows)


def _signatures() -> str:
    def spelt(operands: Iterable[Operand]) -> str:
        return "<br>".join(f"`{each.name}` {each.type} {each.shape}" for each in operands)

    rows = []
    for each in registry.operators().values():
        attributes = "<br>".join(
            f"`{name}` {attribute.type}: {attribute.doc}" + ("" if attribute.default is None else f" ({attribute.default!r})")
            for name, attribute in each.attributes.items()
        )
        if each.domain:
            rows.append((f"`{each.name}`", spelt(each.inputs), spelt(each.outputs), attributes))
    return table(("operator", "inputs", "outputs", "attributes"), rows)


def _aliases() -> str:
    def place(name: str | None) -> str:
        kind, _, rest = (name or "").rpartition(":")
        return {"package": f"GGUF in the package `{rest}`", "examples": f"`examples/{rest}`, shipped here"}.get(kind, rest)

    return table(
        ("alias", "target", "head", "`alias-star`: a Jakiro* head"),
        [(f"`{name}`", *map(place, (each.target, each.head, each.star_head))) for name, each in ALIASES.items()],
    )


def _families() -> str:
    rows = []
    for each in families():
        about = str(sys.modules[each.__module__].__doc__).splitlines()[0]
        rows.append((f"`{each.variant}`", about, f"`{each.__module__.replace('.', '/')}.py`"))
    return table(("variant", "heads", "file"), rows)


def commands() -> dict[str, click.Command]:
    """The console scripts of pyproject.toml by name."""
    scripts = (ROOT / "pyproject.toml").read_text().split("[project.scripts]\n")[1].split("\n[")[0]
    found = re.findall(r'^([a-z-]+) = "([\w.]+):(\w+)"$', scripts, re.MULTILINE)
    return {name: getattr(import_module(module), function) for name, module, function in found}


def _options(command: click.Command) -> str:
    context, rows = click.Context(command, **command.context_settings), []
    for parameter in command.params:
        record = parameter.get_help_record(context)
        if record is None:  # an argument
            rows.append((f"`{parameter.make_metavar(context)}`", "the argument"))
        elif parameter.name not in ("help", "version"):
            rows.append((f"`{record[0]}`", record[1]))
    return table(("option", ""), rows)


def tables() -> dict[str, Callable[[], str]]:
    """What makes each table, by the name that pages call it by."""
    made: dict[str, Callable[[], str]] = {}
    for name, each in _contracts().items():
        made[f"{name}-inputs"] = lambda each=each: _tensors(each.inputs)  # type: ignore[misc]
        made[f"{name}-outputs"] = lambda each=each: _tensors(each.outputs)  # type: ignore[misc]
    made["operators"] = lambda: _operators(own=True)
    made["standard-operators"] = lambda: _operators(own=False)
    made["signatures"] = _signatures
    made["targets"] = lambda: table(("architecture", "models"), KNOWN_TO_WORK.items())
    refused = sorted((kind, reason) for kind, reason in REFUSED_MODELS.items())
    made["refused"] = lambda: table(("`model_type`", "why it is refused"), refused)
    made["rotary"] = lambda: table(("`rope_type`", "why it is refused"), REFUSED_ROTARY.items())
    made["aliases"] = _aliases
    made["head-families"] = _families
    for name, command in commands().items():
        made[name] = lambda command=command: _options(command)  # type: ignore[misc]
    return made


def filled(page: str) -> str:
    """A page with its tables as the code has them."""
    known = tables()
    return _TABLE.sub(lambda found: found[1] + known[found["name"]]() + found[3], page)


def main() -> None:
    for page in sorted(DOCS.rglob("*.md")):
        before = page.read_text()
        if (after := filled(before)) != before:
            page.write_text(after)
            print(f"wrote {page.relative_to(ROOT)}")


if __name__ == "__main__":
    sys.exit(main())
