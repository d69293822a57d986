"""Text generation for training: the target in conversation with itself, many conversations at once, a token of each a pass.

A conversation that ends makes room for the next one at once, so passes are always full; and the features that a head learns from
are those of the pass, so nothing is computed twice. What is written depends on the seed and the conversation's number alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import numpy as np
import torch

from jakiro_export.training.batched_target import BatchedTarget
from jakiro_export.training.features import features_of

PROMPT, QUESTION, ANSWER = 256, 64, 224  # tokens at most: a question that is given, one that is drawn, an answer
_LIKELY = 512  # tokens that are drawn from
_OPENED = 0.75  # of the questions begin with given words
_LOOP, _PERIOD = 48, 24  # an answer whose last 48 tokens repeat with a period of up to 24 has nothing more to teach


@dataclass
class Conversation:
    """One conversation that is being written.

    sampled: its answer is drawn, not greedy
    prompt_length: 0 until the question is complete
    fed: tokens that the target has processed
    """

    random: np.random.Generator
    sampled: bool
    tokens: list[int]
    prompt_length: int = 0
    fed: int = 0
    ended: bool = False
    features: list[np.ndarray] = field(default_factory=list)

    @property
    def waits(self) -> bool:
        """Whether the target's next token is what comes next."""
        return self.fed == len(self.tokens) and not self.ended

    @property
    def complete(self) -> bool:
        """Whether it has ended, and all of it has features."""
        return self.fed == len(self.tokens) and self.ended

    def line(self, number: int) -> str:
        """Its line of a conversations file."""
        prompt, response = self.tokens[: self.prompt_length], self.tokens[self.prompt_length :]
        return json.dumps({"prompt": prompt, "response": response, "number": number}) + "\n"

    def repeats(self) -> bool:
        """Whether the answer goes in circles; looked at every 16 tokens."""
        answer = self.tokens[self.prompt_length :]
        if len(answer) < _LOOP + _PERIOD or len(answer) % 16:
            return False
        return any(answer[-_LOOP:] == answer[-_LOOP - period : -period] for period in range(1, _PERIOD + 1))


def generate(
    target: BatchedTarget,
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

    It is asked the given questions first, one after the other; then it asks itself: a question is drawn after the user
    header (temperature 1, top-p 0.95), three in four after one of the openings. Three answers in four are greedy, as the head
    is asked to guess greedy text most of the time; the rest is drawn at temperature 0.8.
    An answer stops where it repeats itself.
    """
    before, after = headers
    done, have = resume_file(file, target.features.shape[1])
    numbers = (number for number in count() if number not in done)

    def begin() -> Conversation:
        number = next(numbers)
        random = np.random.default_rng((seed, number))
        begun[number] = conversation = Conversation(random, number % 4 == 3, [*before])
        if number < len(questions):
            conversation.tokens += [*questions[number], *after]
            conversation.prompt_length = len(conversation.tokens)
        elif openings and random.random() < _OPENED:
            conversation.tokens += openings[int(random.integers(len(openings)))]
        return conversation

    begun: dict[int, Conversation] = {}
    progress(have)
    conversations = [begin() for _ in target.lengths] if have < tokens else []
    with file.open("a") as lines, features_of(file).open("ab") as rows:
        while have < tokens:
            target.run([conversation.tokens[conversation.fed] for conversation in conversations])
            for slot, conversation in enumerate(conversations):
                conversation.features.append(target.features[slot].astype(np.float16))
                conversation.fed += 1
            waiting = [slot for slot, each in enumerate(conversations) if each.waits]
            for slot, token in zip(waiting, _next_tokens(target, conversations, waiting), strict=True):
                _continue(conversations[slot], token, before, after, eos)
            for number, conversation in [item for item in begun.items() if item[1].complete]:
                rows.write(np.stack(conversation.features).tobytes())
                rows.flush()
                lines.write(conversation.line(number))
                lines.flush()
                have += conversation.fed
                del begun[number]
                slot = next(slot for slot, each in enumerate(conversations) if each is conversation)
                conversations[slot], target.lengths[slot] = begin(), 0
                progress(have)


def resume_file(file: Path, hidden: int) -> tuple[set[int], int]:
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


def _next_tokens(target: BatchedTarget, conversations: Sequence[Conversation], waiting: Sequence[int]) -> list[int]:
    """The next token of each slot that waits for one."""
    chosen = target.best[waiting].tolist() if waiting else []
    drawn = [place for place, slot in enumerate(waiting) if conversations[slot].sampled or not conversations[slot].prompt_length]
    if drawn:
        slots = [waiting[place] for place in drawn]
        asking = torch.tensor([[not conversations[slot].prompt_length] for slot in slots])
        scores, tokens = torch.from_numpy(target.logits[slots]).float().topk(min(_LIKELY, target.logits.shape[1]))
        shares = (scores / torch.where(asking, 1.0, 0.8)).softmax(-1)
        ahead = shares.cumsum(-1) - shares  # top-p 0.95 of a question: a token stays where less than that is ahead of it
        shares = torch.where(asking & (ahead >= 0.95), 0.0, shares).cumsum(-1)
        points = torch.tensor([[conversations[slot].random.random()] for slot in slots]) * shares[:, -1:]
        places = torch.searchsorted(shares, points.float(), right=True).clamp(max=shares.shape[1] - 1)
        for place, token in zip(drawn, tokens.gather(1, places)[:, 0].tolist(), strict=True):
            chosen[place] = token
    return chosen


def _continue(conversation: Conversation, token: int, before: Sequence[int], after: Sequence[int], eos: Sequence[int]) -> None:
    """What a conversation does with the target's next token."""
    if conversation.prompt_length:
        conversation.tokens.append(token)
        full = len(conversation.tokens) - conversation.prompt_length >= ANSWER
        conversation.ended = token in eos or full or conversation.repeats()
        return
    if token not in eos:
        conversation.tokens.append(token)
    if token in eos or len(conversation.tokens) - len(before) >= QUESTION:
        conversation.tokens += after
        conversation.prompt_length = len(conversation.tokens)
