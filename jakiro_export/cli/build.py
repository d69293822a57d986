"""`jakiro-build`: TensorRT engines from an engine directory's graphs, on the device or ahead of time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

_EPILOG = """\b
Examples:
  jakiro-build out/llama2                                  on the device, for its own GPU
  jakiro-build out/llama2 --ahead-of-time sm86,sm120       anywhere, with TensorRT-RTX, for RTX 30 and RTX 50
  jakiro-build out/llama2 --dry-run --sm sm87              what it would do on an Orin

Not run on a GPU: builds on a device, the check that follows them, --plugin, --strip-weights. Builds ahead of time are part
of this project's tests; the engines they make have not run on a GPU either.
"""


@click.command(epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--ahead-of-time", metavar="SM,...", help="Build one engine a graph for these GPUs with TensorRT-RTX, on any "
              "machine: sm75, sm80, sm86, sm89, sm120, sm121.")  # fmt: skip
@click.option("--sm", metavar="SM", help="The GPU this machine should have, such as sm87; an error if it has another. With "
              "--dry-run no GPU is needed.")  # fmt: skip
@click.option("--plugin-matmul", is_flag=True, help="With --plugin: its kernel multiplies with int4 weights, not "
              "TensorRT's. Measure which is faster. Not run on a GPU.")  # fmt: skip
@click.option("--plugin", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", show_default="standard operators",
              help="libjakiro_plugins.so, whose kernels then do expert dispatch. Not run on a GPU.")  # fmt: skip
@click.option("--workspace", type=click.IntRange(16), default=1024, metavar="MIB", help="Most memory for temporary values.")
@click.option("--batch", type=click.IntRange(1, 256), default=1, help="Most sequences at once.")
@click.option("--chunk", type=click.IntRange(2, 8192), default=128, help="Most prompt tokens in one call.")
@click.option("--max-context", type=click.IntRange(16), default=None, show_default="the engine's, 4096 at most",
              help="Most positions a session may use; less makes smaller and faster engines.")  # fmt: skip
@click.option("--level", type=click.IntRange(0, 5), default=3, help="The builder's effort.")
@click.option("--strip-weights", is_flag=True, help="Leave the weights out of the engine; they are taken from the ONNX files "
              "when it is loaded. Not run on a GPU.")  # fmt: skip
@click.option("--compare/--no-compare", default=True, help="After a build on the device, compare with ONNX Runtime.")
@click.option("--ignore-memory", is_flag=True, help="Build although the estimate says that memory is too little.")
@click.option("--check", is_flag=True, help="Say whether TensorRT's parser has every operator, for the GPU --sm names and "
              "the version --tensorrt names; build nothing, and end with status 1 where it does not.")  # fmt: skip
@click.option("--tensorrt", metavar="VERSION", default=None, show_default="that of the device: 10.3 for sm87, 10.13 for sm110",
              help="The version that --check asks about, such as 10.3.")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Say what would be built and what it needs; build nothing.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.version_option(package_name="jakiro-export")
def main(debug: bool, **settings: Any) -> None:
    """Build TensorRT engines from the engine directory DIR, into DIR/tensorrt.

    Without --ahead-of-time it builds for this machine's GPU, with the TensorRT that is installed (10.3 to 11).
    """
    from jakiro_runtime.errors import cli_errors

    with cli_errors(debug, "Interrupted; engines that were not complete are gone."):
        _run(**settings)


def after_export(directory: Path) -> None:
    """What jakiro-export ends with: jakiro-build on this machine's GPU; nothing where there is none. Exits where that fails."""
    from jakiro_export.errors import ExportError
    from jakiro_export.tensorrt import versions
    from jakiro_runtime.backends import gpu
    from jakiro_runtime.errors import EngineError

    try:
        gpu.find()
        versions.load("tensorrt")
    except EngineError:
        return
    except ExportError as error:
        _log(f"No TensorRT engines were built: {error}")
        return
    main.main([str(directory)], standalone_mode=False)


def _run(
    directory: Path,
    ahead_of_time: str | None,
    sm: str | None,
    plugin: Path | None,
    plugin_matmul: bool,
    workspace: int,
    batch: int,
    chunk: int,
    max_context: int | None,
    level: int,
    strip_weights: bool,
    compare: bool,
    check: bool,
    tensorrt: str | None,
    ignore_memory: bool,
    dry_run: bool,
) -> None:
    from jakiro_export.errors import UsageError
    from jakiro_export.tensorrt.building import Settings
    from jakiro_export.tensorrt.profiles import Limits
    from jakiro_runtime.format.integrity import check_integrity
    from jakiro_runtime.format.manifest import Manifest

    if ahead_of_time is not None and (sm is not None or plugin is not None):
        other = "--sm" if sm is not None else "--plugin"
        raise UsageError(f"{other} is for builds on a device and --ahead-of-time for builds anywhere; give one of the two.")
    if ahead_of_time is not None and strip_weights:
        raise UsageError(
            "--strip-weights needs a GPU: TensorRT-RTX compiles such engines with the CUDA driver; build them on a device, "
            "without --ahead-of-time."
        )
    if plugin_matmul and plugin is None:
        raise UsageError("--plugin-matmul needs --plugin FILE, the library that has the kernel.")
    if plugin is not None and not plugin.is_file():
        raise UsageError(f"There is no plugin library at {plugin}; build it as plugins/README.md says.")
    if tensorrt is not None and not check:
        raise UsageError("--tensorrt is for --check; a build takes the TensorRT that is installed.")
    if check and (sm is None or ahead_of_time is not None):
        raise UsageError("--check needs the GPU it is about: add --sm, such as --sm sm87, and not --ahead-of-time.")
    settings = Settings(
        Limits(batch, chunk, max_context),
        workspace << 20,
        level,
        strip_weights,
        plugin.absolute() if plugin else None,
        plugin_matmul,
    )
    manifest = Manifest.read(directory)
    if check:
        _check(directory, manifest, _number(sm or ""), tensorrt, settings)
        return
    if not dry_run:
        check_integrity(manifest, directory, only=[name for name in manifest.files if not name.startswith("tensorrt/")])
    if ahead_of_time is not None:
        _ahead(directory, manifest, ahead_of_time, settings, ignore_memory, dry_run)
    else:
        _on_device(directory, manifest, sm, settings, compare, ignore_memory, dry_run)


def _ahead(directory: Path, manifest: Any, names: str, settings: Any, ignore_memory: bool, dry_run: bool) -> None:
    from jakiro_export.tensorrt import building, memory, versions

    steps = building.plan(directory, manifest, "tensorrt-rtx", building.parse_compute_capabilities(names), settings)
    if dry_run:
        _describe(steps, "with TensorRT-RTX, ahead of time")
        return
    versions.load("tensorrt-rtx")
    for step in steps:
        if not ignore_memory:
            _warn(memory.check(step.needs, memory.available(), None, False, step.title))
    building.build(directory, steps, _log)
    _log(f"Wrote {', '.join(step.title for step in steps)} to {directory}. The builder accepted them; not run on a GPU.")


def _on_device(
    directory: Path, manifest: Any, sm: str | None, settings: Any, compare: bool, ignore_memory: bool, dry_run: bool
) -> None:
    from jakiro_export.errors import ExportError
    from jakiro_export.tensorrt import accuracy, building, memory, versions
    from jakiro_runtime.backends import gpu as device
    from jakiro_runtime.backends.tensorrt import EngineLoader

    wanted = _number(sm) if sm is not None else None
    if dry_run and wanted is not None:
        _describe(building.plan(directory, manifest, "tensorrt", [wanted], settings), "with TensorRT, on the device")
        return
    gpu = device.find(hint="run jakiro-build on the machine with the GPU, or name the GPU with --ahead-of-time, such as sm86")
    if wanted not in (None, gpu.sm):
        raise ExportError(f"This machine's GPU is {gpu.name}, sm{gpu.sm}, and --sm asks for sm{wanted}.")
    steps = building.plan(directory, manifest, "tensorrt", [gpu.sm], settings)
    if dry_run:
        _describe(steps, f"with TensorRT, for {gpu.name}")
        return
    versions.load("tensorrt")
    for step in steps:
        if not ignore_memory:
            _warn(memory.check(step.needs, memory.available(), gpu.free, gpu.shared, step.title))
    building.build(directory, steps, _log)
    if compare and not settings.strip_weights:
        checks, loader = [], EngineLoader("tensorrt", settings.plugin, any(step.uses_plugin for step in steps))
        contracts = {"target": manifest.target_contract, "draft": manifest.draft_contract}
        for step in steps:
            precision = manifest.precision[step.name]
            if precision == "bf16":
                _log(f"{step.title} is not compared: ONNX Runtime has no bf16 on CPUs")
                continue
            file, vocab = directory / step.file(gpu.sm), manifest.model.vocab_size
            checks += accuracy.check_engine(loader, file, step.graph, contracts[step.name], step.profiles, vocab, precision)
        building.add_checks(directory, gpu.sm, checks)
        failed = [entry for entry in checks if not entry["passed"]]
        if failed:
            raise ExportError(
                f"{len(failed)} of {len(checks)} outputs differ from ONNX Runtime, the first: {failed[0]['name']} of "
                f"{failed[0]['graph']} by {failed[0]['difference']:.3g} where {failed[0]['allowed']:.3g} is allowed."
            )
        _log(f"{len(checks)} outputs agree with ONNX Runtime")
    _log(f"Wrote {', '.join(step.title for step in steps)} to {directory}")


def _check(directory: Path, manifest: Any, sm: int, tensorrt: str | None, settings: Any) -> None:
    """What --check says: a line for each graph. Raises ExportError where one of them would not parse."""
    from jakiro_export.errors import ExportError
    from jakiro_export.tensorrt import building, graphs, operators, versions

    version = versions.parse(tensorrt) if tensorrt is not None else versions.of_device(sm)
    versions.check("tensorrt", version)
    text, refused = ".".join(map(str, version)), []
    for step in building.plan(directory, manifest, "tensorrt", [sm], settings):
        native = versions.parses_opset_23("tensorrt", version)
        model = graphs.parsed_model(step.graph, step.uses_plugin and step.graph.dispatches > 0, native, step.own_int4)
        missing = operators.unparsed(model, "tensorrt", version, step.uses_plugin)
        form = "" if native else ", norms and rotary embeddings as primitives"
        nodes = f"{len(model.graph.node)} nodes of {len({node.op_type for node in model.graph.node})} operators"
        click.echo(f"{step.graph.path.name}: {nodes}, opset {model.opset_import[0].version}{form}")
        refused += [f"{name} ({count} times in {step.graph.path.name})" for name, count in missing.items()]
    if refused:
        raise ExportError(f"TensorRT {text} does not parse {', '.join(refused)}; export the engine again with --precision fp16.")
    click.echo(f"TensorRT {text} has every operator, and sm{sm} every type. By tables, not by a build.")


def _warn(sentence: str | None) -> None:
    if sentence is not None:
        _log(f"Warning: {sentence}")


def _number(sm: str) -> int:
    from jakiro_export.errors import UsageError

    number = sm.lower().removeprefix("sm").removeprefix("_")
    if not number.isdecimal() or int(number) < 75:
        raise UsageError(f"--sm {sm} is no GPU this project builds for; sm75 or newer is expected, such as sm87.")
    return int(number)


def _describe(steps: list[Any], how: str) -> None:
    click.echo(f"Would build {len(steps)} engines {how}:")
    for step in steps:
        click.echo(f"  {step.describe()}")
        for profile in step.profiles:
            ranges = ", ".join(f"{axis} {r.min}..{r.max} (best at {r.opt})" for axis, r in profile.axes.items())
            click.echo(f"    profile {profile.name}: {ranges}")


def _log(text: str) -> None:
    click.echo(text, err=True)


if __name__ == "__main__":
    main()
