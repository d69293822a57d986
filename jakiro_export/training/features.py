"""Features of a text: the target's hidden states, which a head sees and learns to predict, computed once and kept on disk."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import click
import numpy as np
import torch
from transformers import PreTrainedModel

from jakiro_export.targets.features import LayerInputs

_HELD_OUT = 48  # one conversation in 48 is held out, until there are enough
_BLOCK = 256  # conversations that are sorted by length and computed together


class Text:
    """Conversations and the target's features of them, which stay on disk.

    tokens: int32 [length] of each conversation
    features: float16 [length, hidden] of each, after the target's final norm
    states: float16 [length, width] of each, what the head reads: the inputs of several layers, or the features themselves
    prompts: how many tokens of each are the prompt, which the target reads and does not write
    lengths: of all conversations
    """

    def __init__(self) -> None:
        self.tokens: list[np.ndarray] = []
        self.features: list[np.ndarray] = []
        self.states: list[np.ndarray] = []
        self.prompts: list[int] = []

    def add(self, conversations: Iterable[tuple[Sequence[int] | np.ndarray, int]], rows: np.ndarray, hidden: int) -> None:
        """Conversations, each with the length of its prompt, and their features and states side by side, one after the other.

        Args:
            rows: [tokens, hidden] or [tokens, hidden + width]
        """
        start = 0
        for conversation, prompt in conversations:
            self.tokens.append(np.array(conversation, np.int32))
            self.prompts.append(prompt)
            own = rows[start : start + len(conversation)]
            self.features.append(own[:, :hidden])
            self.states.append(own[:, hidden:] if own.shape[1] > hidden else own)
            start += len(conversation)

    def only(self, numbers: Iterable[int]) -> Text:
        """A text of these conversations of it."""
        out = Text()
        for n in numbers:
            out.tokens.append(self.tokens[n])
            out.prompts.append(self.prompts[n])
            out.features.append(self.features[n])
            out.states.append(self.states[n])
        return out

    def part(self, tokens: int, held_out: int) -> Text:
        """What is held out, and of the rest at most `tokens` tokens, from the first on."""
        return self.only(part(self.tokens, tokens, held_out))

    def first_row(self, number: int) -> int:
        """The first row of a conversation that a head guesses from: the prompt's last."""
        return max(self.prompts[number] - 1, 0)

    @property
    def lengths(self) -> np.ndarray:
        return np.array([len(tokens) for tokens in self.tokens])

    def frequencies(self, vocab: int) -> np.ndarray:
        """How often each token occurs."""
        return np.bincount(np.concatenate(self.tokens), minlength=vocab)

    def held_out(self, most: int) -> np.ndarray:
        """The numbers of conversations to measure on, at most `most`."""
        return held_out(self.tokens, most)


def held_out(conversations: Sequence[np.ndarray], most: int) -> np.ndarray:
    """Which of int32 conversations to measure on. Text that is added later does not change them once there are `most`."""
    most = min(most, max(1, len(conversations) // 5))
    drawn = [n for n, tokens in enumerate(conversations) if zlib.crc32(tokens.tobytes()) % _HELD_OUT == 0]
    return np.array((drawn + [n for n in range(len(conversations)) if n not in set(drawn)])[:most])


def part(conversations: Sequence[np.ndarray], tokens: int, held: int) -> list[int]:
    """The numbers of int32 conversations to use: what is held out, then at most `tokens` tokens of the rest, in order."""
    out = held_out(conversations, held).tolist()
    rest = np.setdiff1d(np.arange(len(conversations)), out)
    lengths = np.array([len(conversations[n]) for n in rest])
    return [*out, *rest[np.cumsum(lengths) <= tokens].tolist()]


def grouped(lengths: np.ndarray, most: int) -> list[slice]:
    """Cut sequences of these lengths, nearly ascending, into groups of at most `most` tokens, padding included."""
    groups, start = [], 0
    while start < len(lengths):
        size = 1
        while start + size < len(lengths) and lengths[start + size] * (size + 1) <= most:
            size += 1
        groups.append(slice(start, start + size))
        start += size
    return groups


def features_of(file: Path) -> Path:
    """Where the features of all tokens in a file of conversations are, in order, float16 [tokens, hidden], if it has any."""
    return file.with_suffix(".f16")


def with_stored_features(
    file: Path, conversations: Sequence[tuple[list[int], int]], hidden: int, take: bool = True
) -> Iterator[tuple[tuple[list[int], int], np.ndarray | None]]:
    """The conversations of a file, each with its features from the file next to it; None where there is none, or not `take`.

    Raises:
        click.ClickException: there is one, with fewer rows than the conversations have tokens.
    """
    store, wanted = features_of(file), sum(len(tokens) for tokens, _ in conversations)
    if not (take and wanted and store.is_file()):
        yield from ((each, None) for each in conversations)
        return
    rows = store.stat().st_size // (2 * hidden)  # more than wanted where the text was being written when it was interrupted
    if rows < wanted:
        raise click.ClickException(
            f"{store} has the features of {rows} tokens, but {file} has {wanted}: move it away, and they are computed."
        )
    features, start = np.memmap(store, np.float16, "r", shape=(rows, hidden)), 0
    for tokens, asked in conversations:
        yield (tokens, asked), features[start : start + len(tokens)]
        start += len(tokens)


def extract(
    model: PreTrainedModel,
    conversations: Sequence[np.ndarray],
    folder: Path,
    progress: Callable[[int], None],
    layers: Sequence[int] = (),
    tokens_per_call: int = 4096,
) -> np.ndarray:
    """Run the target over every conversation, but for those at the beginning that an earlier run has left in `folder`.

    Args:
        conversations: int32 [length] each
        layers: whose inputs are appended to the features after the final norm

    Returns:
        float16 [all tokens, (1 + layers) * hidden], on disk
    """
    folder.mkdir(parents=True, exist_ok=True)
    width = int(model.config.hidden_size) * (1 + len(layers))
    state, file = folder / "features.json", folder / "features.f16"
    marks = [zlib.crc32(c.tobytes()) for c in conversations]
    made = {"hidden": int(model.config.hidden_size), "layers": list(layers)}
    done = _already_computed(marks, made, state)
    ends = np.concatenate([[0], np.cumsum([len(c) for c in conversations])]).astype(np.int64)
    progress(int(ends[done]))
    inputs = LayerInputs(model, layers)
    try:
        with file.open("r+b" if done else "wb") as rows:
            while done < len(conversations):
                block = conversations[done : done + _BLOCK]
                rows.seek(int(ends[done]) * width * 2)
                rows.write(_features(model, inputs, block, width, tokens_per_call).tobytes())
                rows.flush()
                done += len(block)
                state.with_suffix(".new").write_text(json.dumps({**made, "conversations": marks[:done]}))
                state.with_suffix(".new").replace(state)
                progress(int(ends[done]))
    finally:
        inputs.remove()
    return np.memmap(file, np.float16, "r", shape=(int(ends[-1]), width))


def _already_computed(marks: Sequence[int], made: Mapping[str, object], state: Path) -> int:
    """How many of these conversations, from the first on, an earlier run has computed in the same way, by their checksums."""
    found = {"layers": [], **(json.loads(state.read_text()) if state.is_file() else {})}
    if any(found.get(name) != value for name, value in made.items()) or not isinstance(found.get("conversations"), list):
        return 0
    same = [one == other for one, other in zip(marks, found["conversations"], strict=False)]
    return same.index(False) if False in same else len(same)


def _features(
    model: PreTrainedModel, inputs: LayerInputs, conversations: Sequence[np.ndarray], width: int, tokens_per_call: int
) -> np.ndarray:
    """float16 [all tokens, width]: conversations of similar length share a call, so that little of it is padding."""
    lengths = np.array([len(c) for c in conversations])
    ends = np.cumsum(lengths)
    out = np.empty((int(ends[-1]), width), np.float16)
    order = np.argsort(lengths, kind="stable")
    for numbers in (order[group] for group in grouped(lengths[order], tokens_per_call)):
        _run(model, inputs, [conversations[n] for n in numbers], [out[ends[n] - lengths[n] : ends[n]] for n in numbers])
    return out


@torch.inference_mode()
def _run(model: PreTrainedModel, inputs: LayerInputs, conversations: Sequence[np.ndarray], out: Sequence[np.ndarray]) -> None:
    """One call. Rows are padded on the right, where causal attention does not look."""
    longest = max(map(len, conversations))
    batch = torch.tensor([[*c, *[0] * (longest - len(c))] for c in conversations])
    found = model.get_decoder()(input_ids=batch, use_cache=False).last_hidden_state
    if inputs.layers:
        found = torch.cat([found, inputs.take()], -1)
    found = found.clamp(-65504, 65504).to(torch.float16).cpu().numpy()  # residual streams may exceed float16
    for row, conversation, place in zip(found, conversations, out, strict=True):
        place[:] = row[: len(conversation)]
