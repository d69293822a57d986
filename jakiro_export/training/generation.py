"""The target talks to itself: many conversations side by side, a token of each in every pass, through the graph that users run.

A conversation that ends makes room for the next one at once, so passes are always full; and the features that a head learns from
are the pass's own, so nothing is computed twice. What is written depends on the seed and the conversation's number alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import numpy as np
import torch

from jakiro_export.artifact.writer import DataFiles, save
from jakiro_export.checkpoints.target import Target
from jakiro_export.graphs import target_graph
from jakiro_export.plan import TargetPlan
from jakiro_export.precisions import PRECISIONS
from jakiro_export.training.features import features_of
from jakiro_runtime.backends.onnxruntime import OnnxRuntimeGraph
from jakiro_runtime.decoding.kv_cache import KVCache
from jakiro_runtime.kernels import library

PROMPT, QUESTION, ANSWER = 256, 64, 224  # tokens at most: a question that is given, one that is drawn, an answer
_LIKELY = 512  # tokens that are drawn from
_OPENED = 3  # of four questions begin with words that are given
# How people begin when they ask. What a small target asks by itself is of few kinds.
OPENINGS = (
    "Write a", "Write a short story about", "Write an email to", "Write a poem about", "Write a Python function that",
    "Write a program", "Write a review of", "Write a persuasive", "Implement", "Create a", "Design a", "Draft a", "Compose a",
    "Describe", "Explain", "Explain the difference between", "Explain why", "How does", "How do I", "How many", "How can",
    "What is", "What are the", "What would happen if", "What are some", "Why do", "Why is", "Who was", "When did", "Where",
    "Which", "Can you", "Could you", "Give me", "Give three examples of", "List", "Name", "Compare", "Discuss", "Analyze",
    "Evaluate", "Summarize the following text:", "Rewrite the following sentence:", "Translate", "Classify the following",
    "Extract the", "Identify", "Correct the", "Edit", "Solve", "Calculate", "Find the", "If", "Suppose", "Given", "Consider",
    "A", "The", "In", "There are", "Imagine you are", "Pretend to be", "You are a", "Act as a", "Please", "Help me",
    "Tell me", "I", "I want to", "My", "Let's", "Should", "Is it", "Do you", "Provide", "Suggest", "Recommend", "Plan",
    "Outline", "Develop", "Read the following passage:", "Complete the", "Generate", "Define", "Prove that", "Use", "Make",
    "Convert", "Count", "Arrange", "Determine", "Choose", "Debate", "Teach me",
)  # fmt: skip
_LOOP, _PERIOD = 48, 24  # an answer that repeats up to so many tokens over so many has nothing more to teach


def written_graph(target: Target, folder: Path) -> Path:
    """The target's graph in `folder`, written there if it is not yet: in int8 where that is fast, else in float32."""
    file = folder / "target.onnx"
    if not file.is_file():
        precision = PRECISIONS["fp32" if library() is None else "int8"]
        plan = TargetPlan(target, precision, precision.attention(bitwise=False), 23)
        with DataFiles(folder) as files:
            save(target_graph(plan, {}), folder / "target.new.onnx", files)
        (folder / "target.new.onnx").rename(file)
    return file


@dataclass
class _Talk:
    """One conversation. Tokens from `fed` on are yet to be fed; `asked` is the prompt's length, 0 until it is known."""

    random: np.random.Generator
    wanders: bool
    tokens: list[int]
    asked: int = 0
    fed: int = 0
    ended: bool = False
    features: list[np.ndarray] = field(default_factory=list)

    def loops(self) -> bool:
        answer = self.tokens[self.asked :]
        if len(answer) < _LOOP + _PERIOD or len(answer) % 16:
            return False
        return any(answer[-_LOOP:] == answer[-_LOOP - period : -period] for period in range(1, _PERIOD + 1))


class Passes:
    """The target over one token of each of `slots` sequences.

    lengths: tokens that each sequence's cache holds, [slots]; set one to 0 to begin anew
    logits, best, features: of the last pass, [slots, vocab], [slots], [slots, hidden]
    """

    def __init__(self, graph: OnnxRuntimeGraph, config: object, longest: int, slots: int) -> None:
        layers, kv_heads = config.num_hidden_layers, config.num_key_value_heads  # type: ignore[attr-defined]
        hidden, vocab = config.hidden_size, config.vocab_size  # type: ignore[attr-defined]
        width = getattr(config, "head_dim", None) or hidden // config.num_attention_heads  # type: ignore[attr-defined]
        names = [(f"past_key.{n}", f"past_value.{n}") for n in range(layers)]
        kinds = graph.inputs["past_key.0"], graph.inputs["past_value.0"]
        self._cache = KVCache(names, kv_heads, width, kinds, slots)
        self._cache.reserve(longest)
        self.lengths = self._cache.lengths
        self._new = self._cache.scratch(1)
        self._tokens, self._positions = np.zeros((slots, 1), np.int64), np.zeros((slots, 1), np.int64)
        best, logits = np.zeros((slots, 1), np.int64), np.zeros((slots, 1, vocab), graph.outputs["logits"])
        features = np.zeros((slots, 1, hidden), graph.outputs["hidden_states"])
        self.best, self.logits, self.features = best[:, 0], logits[:, 0], features[:, 0]
        inputs = {
            "input_ids": self._tokens, "position_ids": self._positions, "tree_mask": np.ones((slots, 1, 1), bool),
            "past_length": self.lengths, "logit_rows": np.zeros((slots, 1), np.int64), **self._cache.inputs(),
        }  # fmt: skip
        outputs = {"next_tokens": best, "logits": logits, "hidden_states": features, **self._new[2]}
        self._binding = graph.bind(inputs, outputs)

    def run(self, tokens: Sequence[int]) -> None:
        """Feed one token to each sequence."""
        self._tokens[:, 0], self._positions[:, 0] = tokens, self.lengths
        self._binding.run()
        self._cache.commit(self._new[0], self._new[1], [[0]] * len(tokens))


def generate(
    passes: Passes,
    headers: tuple[list[int], list[int]],
    openings: Sequence[Sequence[int]],
    questions: Sequence[Sequence[int]],
    eos: Sequence[int],
    file: Path,
    tokens: int,
    seed: int,
    progress: Callable[[int], None],
) -> None:
    """Let the target ask and answer until `file` holds `tokens` tokens; what the file already holds counts.

    First it is asked the given questions, one after the other; after that it asks itself: a question is drawn after the user
    header (temperature 1, top-p 0.95), three in four behind one of the openings. Three answers in four are greedy, as the head
    is asked to guess greedy text most of the time; the rest is drawn at temperature 0.8.
    An answer stops where it goes in circles.
    """
    before, after = headers
    done, have = take_up(file, passes.features.shape[1])
    numbers = (number for number in count() if number not in done)

    def begin() -> _Talk:
        number = next(numbers)
        random = np.random.default_rng((seed, number))
        begun[number] = talk = _Talk(random, number % 4 == 3, [*before])
        if number < len(questions):
            talk.tokens += [*questions[number], *after]
            talk.asked = len(talk.tokens)
        elif openings and random.random() < _OPENED / 4:
            talk.tokens += openings[random.integers(len(openings))]
        return talk

    begun: dict[int, _Talk] = {}
    progress(have)
    talks = [begin() for _ in passes.lengths] if have < tokens else []
    with file.open("a") as lines, features_of(file).open("ab") as rows:
        while have < tokens:
            passes.run([talk.tokens[talk.fed] for talk in talks])
            for slot, talk in enumerate(talks):
                talk.features.append(passes.features[slot].astype(np.float16))
                talk.fed += 1
            waiting = [slot for slot, talk in enumerate(talks) if talk.fed == len(talk.tokens) and not talk.ended]
            for slot, token in zip(waiting, _choose(passes, talks, waiting), strict=True):
                _continue(talks[slot], token, before, after, eos)
            for number, talk in [(number, talk) for number, talk in begun.items() if talk.ended and talk.fed == len(talk.tokens)]:
                rows.write(np.stack(talk.features).tobytes())
                rows.flush()
                record = {"prompt": talk.tokens[: talk.asked], "response": talk.tokens[talk.asked :], "number": number}
                lines.write(json.dumps(record) + "\n")
                lines.flush()
                have += talk.fed
                del begun[number]
                slot = next(slot for slot, each in enumerate(talks) if each is talk)
                talks[slot], passes.lengths[slot] = begin(), 0
                progress(have)


def take_up(file: Path, hidden: int) -> tuple[set[int], int]:
    """What an interrupted run left, cut to whole conversations: their numbers and how many tokens they have."""
    store = features_of(file)
    done: set[int] = set()
    have = whole = 0
    if file.is_file() and store.is_file():
        enough = store.stat().st_size // (2 * hidden)
        for line in file.read_bytes().splitlines(keepends=True):
            if not line.endswith(b"\n"):
                break
            record = json.loads(line)
            more = len(record["prompt"]) + len(record["response"])
            if have + more > enough:
                break
            have, whole = have + more, whole + len(line)
            done.add(record["number"])
    for each, size in ((file, whole), (store, have * 2 * hidden)):
        with each.open("ab"):
            pass
        with each.open("r+b") as opened:
            opened.truncate(size)
    return done, have


def _choose(passes: Passes, talks: Sequence[_Talk], waiting: Sequence[int]) -> list[int]:
    """The next token of each slot that waits for one."""
    chosen = passes.best[waiting].tolist() if waiting else []
    drawn = [place for place, slot in enumerate(waiting) if talks[slot].wanders or not talks[slot].asked]
    if drawn:
        slots = [waiting[place] for place in drawn]
        asking = torch.tensor([[not talks[slot].asked] for slot in slots])
        scores, tokens = torch.from_numpy(passes.logits[slots]).float().topk(min(_LIKELY, passes.logits.shape[1]))
        shares = (scores / torch.where(asking, 1.0, 0.8)).softmax(-1)
        ahead = shares.cumsum(-1) - shares  # top-p 0.95 of a question: a token stays where less than that is ahead of it
        shares = torch.where(asking & (ahead >= 0.95), 0.0, shares).cumsum(-1)
        points = torch.tensor([[talks[slot].random.random()] for slot in slots]) * shares[:, -1:]
        places = torch.searchsorted(shares, points.float(), right=True).clamp(max=shares.shape[1] - 1)
        for place, token in zip(drawn, tokens.gather(1, places)[:, 0].tolist(), strict=True):
            chosen[place] = token
    return chosen


def _continue(talk: _Talk, token: int, before: Sequence[int], after: Sequence[int], eos: Sequence[int]) -> None:
    """What a conversation does with the target's next token."""
    if talk.asked:
        talk.tokens.append(token)
        talk.ended = token in eos or len(talk.tokens) - talk.asked >= ANSWER or talk.loops()
        return
    if token not in eos:
        talk.tokens.append(token)
    if token in eos or len(talk.tokens) - len(before) >= QUESTION:
        talk.tokens += after
        talk.asked = len(talk.tokens)
