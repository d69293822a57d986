"""What fits where: the known models on every Jetson, as a table in Markdown. Estimates, as `budget` makes them."""

from __future__ import annotations

from jakiro_export.estimates import devices
from jakiro_export.estimates.budget import Budget, budget
from jakiro_export.estimates.cost_model import SIZES

DEPTH, DRAFT_VOCAB = 5, 32768


def jetsons() -> dict[str, devices.Gpu]:
    """The boards whose memory the host shares, by name."""
    return {name: gpu for name, gpu in devices.GPUS.items() if gpu.shared}


def fits(found: Budget, gpu: devices.Gpu) -> str:
    """What a device can do: "runs, builds", "runs, may build" where only the estimate is above its memory, "runs", or "-"."""
    words = ["runs"] if found.running <= gpu.memory else []
    if found.build <= gpu.memory:
        words.append("builds")
    elif words and found.build_floor <= gpu.memory:
        words.append("may build")
    return ", ".join(words) or "-"


def markdown(context: int, batch: int) -> list[str]:
    """A row for each model in fp16 and in w4a16, the latter with a head over 32,768 tokens.

    In it weights, cache, workspace, all of it running and the peak of a build in GiB, then each board.
    """
    boards = jetsons()
    head = ["model", "precision", "weights", "cache", "workspace", "running", "building", *(gpu.label for gpu in boards.values())]
    rows = []
    for name, precision in ((name, precision) for name in SIZES for precision in ("fp16", "w4a16")):
        sizes = SIZES[name].at(precision, None if precision == "fp16" else DRAFT_VOCAB)
        per_board = {
            board: budget(sizes.target(), sizes.draft(DEPTH), gpu, sizes.hidden, sizes.vocab, context, batch)
            for board, gpu in boards.items()
        }
        one = next(iter(per_board.values()))  # the sizes are the same on every board
        parts = (one.target + one.draft, one.cache, one.activations, one.running, one.build)
        cells = [fits(per_board[board], boards[board]) for board in boards]
        rows.append([name, precision, *(f"{size / 2**30:.2f}" for size in parts), *cells])
    return ["| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows)]
