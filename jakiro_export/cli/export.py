"""`jakiro-export`: a target and a head in, an engine directory out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from jakiro_export.precisions import PRECISIONS

TARGET_PRECISIONS = tuple(PRECISIONS)
HEAD_PRECISIONS = tuple(name for name, precision in PRECISIONS.items() if precision.for_head)

_EPILOG = """\b
Examples:
  jakiro-export --draft smollm2-135m --target smollm2-135m --out out/smollm2
  jakiro-export --draft ckpt/ --target llama2-7b --precision fp16 --out out/llama2
  jakiro-export --draft ckpt/ --target model.gguf --draft-vocab 16384 --out out/mine
"""


@click.command(epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option("--draft", "-d", required=True, metavar="D", help="The head: a folder (config.json and "
              "model.safetensors or pytorch_model.bin), a hub id, or an alias.")  # fmt: skip
@click.option("--target", "-t", required=True, metavar="T", help="The target: a transformers folder, a hub id, a GGUF "
              "file, or an alias (smollm2-135m, llama2-7b, llama3-8b, vicuna-7b, ...).")  # fmt: skip
@click.option("--family", type=click.Choice(["jakiro", "jakiro3", "jakiro_star", "eagle", "eagle3", "gumiho"]), default=None,
              show_default="what its files say", help="The head's family.")  # fmt: skip
@click.option("--out", "-o", required=True, type=click.Path(path_type=Path, file_okay=False), metavar="DIR",
              help="The engine directory to write. It appears when it is complete.")  # fmt: skip
@click.option("--precision", type=click.Choice(TARGET_PRECISIONS), default="fp32", help="For CPUs fp32, int8 "
              "(weights by channel) or int4 (by groups of 32 as GGUF's Q4_1 has them; the fastest), activations row by row. For "
              "GPUs fp16 or bf16 (sm80 and newer, and not checked here, since no CPU runs it); or quantised, with activations in "
              "fp16 between: w4a16 (int4 weights by groups of up to 128; sm80), w8a8 (int8 by channel, activations by row), fp8 "
              "(E4M3; sm89) or nvfp4 (blocks of 16; sm100).")  # fmt: skip
@click.option("--recipe", type=click.Path(path_type=Path, dir_okay=False, exists=True), default=None, metavar="FILE",
              show_default="the precision's", help="JSON that says which matrix is quantised how; for precisions that "
              "quantise.")  # fmt: skip
@click.option("--scaling/--no-scaling", default=False, help="With w4a16: inputs with large activations are "
              "given more of the steps, by a calibration text (AWQ). Needs memory for the whole target.")  # fmt: skip
@click.option("--draft-precision", type=click.Choice(HEAD_PRECISIONS), default=None,
              show_default="--precision, int8 for int4", help="The same for the head.")  # fmt: skip
@click.option("--equality", type=click.Choice(["bitwise", "numerical"]), default=None, show_default="bitwise for CPUs",
              help="bitwise: speculative logits equal plain ones bit for bit on a CPU. numerical: equal up to the order "
              "of sums, faster at long contexts.")  # fmt: skip
@click.option("--tree", type=click.Choice(["auto", "fixed", "static"]), default=None,
              show_default="auto for CPUs where none of --depth, --top-k and --nodes is given",
              help="auto measures on this machine and chooses what gives the most tokens per second; what --depth, --top-k "
              "or --nodes say is kept. The runtime then verifies as much of a tree as is worth its time. fixed takes the tree "
              "that --depth, --top-k and --nodes describe; static the 25 nodes of EAGLE-1.")  # fmt: skip
@click.option("--depth", type=click.IntRange(1, 32), default=None, show_default="5", help="Rounds of the draft phase; the tree "
              "is one level deeper.")  # fmt: skip
@click.option("--top-k", type=click.IntRange(1, 64), default=None, show_default="8", help="Nodes expanded on each level of the "
              "tree.")  # fmt: skip
@click.option("--nodes", type=click.IntRange(1, 512), default=None, show_default="31", help="Nodes of the tree that the target "
              "verifies.")  # fmt: skip
@click.option("--pairing", type=click.Choice(["parent", "published"]), default="parent", help="Where the last level "
              "takes its candidates from: the node's own parent, or as the published code does.")  # fmt: skip
@click.option("--parallel-step/--no-parallel-step", "parallel", default=True, help="Draft the last level in parallel with "
              "the one before it, or in a pass of its own.")  # fmt: skip
@click.option("--draft-vocab", type=click.IntRange(1), default=None, show_default="all; 32768 where a GPU's head is quantised",
              help="Let the head propose only the N most frequent tokens. The output does not change; drafting gets "
              "cheaper.")  # fmt: skip
@click.option("--max-context", type=click.IntRange(16), default=None, show_default="the target's",
              help="Most positions a session may use.")  # fmt: skip
@click.option("--opset", type=click.IntRange(20, 24), default=23, help="ONNX opset. 20 writes norms and rotary embeddings as "
              "primitives, 23 as single operators, which jakiro-build lowers for a TensorRT without them.")  # fmt: skip
@click.option("--verify/--no-verify", default=True, help="Compare ONNX Runtime with torch. Needs memory for the whole "
              "target; without it the export stays under 1 GB for safetensors.")  # fmt: skip
@click.option("--build/--no-build", default=True, help="Where there are an NVIDIA GPU and TensorRT, and the precision is for "
              "GPUs, build engines as jakiro-build does. Not run on a GPU.")  # fmt: skip
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.version_option(package_name="jakiro-export")
def main(debug: bool, **settings: Any) -> None:
    """Export a Jakiro head and its target to ONNX, checked against torch.

    The result runs with `jakiro-run --engine DIR` on any CPU, and is what `jakiro-build` makes TensorRT engines from.
    """
    from jakiro_runtime.errors import cli_errors

    with cli_errors(debug, "Interrupted; nothing was written.", f"nothing was left in {settings['out']}"):
        _run(**settings)


def _run(build: bool, **settings: Any) -> None:
    from jakiro_export.quiet import quiet_libraries

    quiet_libraries()
    from jakiro_export.export import export
    from jakiro_export.plan import ExportOptions
    from jakiro_export.report import Report

    report, options = Report(), ExportOptions(**settings)
    manifest = export(options, report)
    report.console.print(f"Wrote {options.out}. Try: jakiro-run --engine {options.out}")
    if (
        build
        and not manifest.bitwise
        and not any(PRECISIONS[name].quantized and not PRECISIONS[name].gpu for name in manifest.precision.values())
    ):
        from jakiro_export.cli.build import after_export

        after_export(options.out)


if __name__ == "__main__":
    main()
