"""Tokens to text as they come, without a piece that would have to be taken back."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from tokenizers import Tokenizer

from jakiro_runtime.text.detokenizer import Detokenizer, overlap


class TextStream:
    """Decodes an answer token by token. Held back: what a later token can change, and what may become a stop string.

    The pieces add up to `Tokenizer.decode` of all tokens, up to a stop string. A stop string may hold special tokens, which the
    text leaves out.

    stops: the answer ends where one of these appears; it is not part of the text
    shown: special tokens, by their strings, that are text like any other
    """

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str] = (), shown: Collection[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._special = {number: text for number, text in special_tokens(tokenizer).items() if text not in shown}
        self._detokenizer = Detokenizer(tokenizer, frozenset(self._special.values()))
        self._stops = [stop for stop in stops if stop]
        self._held: list[tuple[str, bool]] = []  # characters, and whether they are shown
        self.stopped = False

    def push(self, token: int) -> str:
        """The text that this token completes; sets `stopped` where it completes a stop string."""
        if self._stops and token in self._special:
            return self._release_special(self._special[token])
        piece = self._detokenizer.push(token)
        if not self._stops:
            return piece
        shown = self._release(_shown(piece))
        if not self.stopped and (waiting := _shown(self._detokenizer.waiting())) and self._stop_begins(waiting) >= 0:
            shown += self._release(waiting)  # ended here, the run of bytes is its text
        return shown

    def flush(self) -> str:
        """What was held back, at the end of an answer: it may end in the middle of a character."""
        if self.stopped:
            return ""
        rest = self._detokenizer.finish()
        if not self._stops:
            return rest
        shown = self._release(_shown(rest))
        if not self.stopped:
            shown, self._held = shown + _text(self._held), []
        return shown

    def _release_special(self, content: str) -> str:
        hidden = [(character, False) for character in content]
        ending = [*_shown(self._detokenizer.rest()), *hidden]
        return self._release(ending if self._stop_begins(ending) >= 0 else hidden)

    def _stop_begins(self, more: list[tuple[str, bool]]) -> int:
        """Where the first stop string begins in what is held back and what comes; -1 where there is none."""
        text = "".join(character for character, _ in [*self._held, *more])
        return min((place for place in (text.find(stop) for stop in self._stops) if place >= 0), default=-1)

    def _release(self, more: list[tuple[str, bool]]) -> str:
        place = self._stop_begins(more)
        characters = [*self._held, *more]
        if place >= 0:
            self.stopped, self._held = True, []
            return _text(characters[:place])
        text = "".join(character for character, _ in characters)
        keep = max(overlap(text, stop) for stop in self._stops)
        self._held = characters[len(characters) - keep :]
        return _text(characters[: len(characters) - keep])


def special_tokens(tokenizer: Tokenizer) -> dict[int, str]:
    """The special tokens of a tokenizer, by id."""
    return {number: token.content for number, token in tokenizer.get_added_tokens_decoder().items() if token.special}


def _shown(text: str) -> list[tuple[str, bool]]:
    return [(character, True) for character in text]


def _text(characters: Sequence[tuple[str, bool]]) -> str:
    return "".join(character for character, shown in characters if shown)
