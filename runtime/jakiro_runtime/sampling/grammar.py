"""Answers of a given form: JSON schemas, regular expressions and grammars, by llguidance (an optional package).

Exact under speculation: the walk asks for visited nodes only, each with its true prefix, and drafted nodes the grammar forbids
are dropped before the target sees them.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from jakiro_runtime.errors import EngineError, UsageError, one_line
from jakiro_runtime.format.manifest import EXPORT_AGAIN
from jakiro_runtime.sampling.constraint import Constraint
from jakiro_runtime.sampling.grammar_trial import try_grammar

_MOST_TOKENS = 1 << 24  # as many as a manifest's vocabulary may have


class Grammar:
    """A compiled rule; any number of answers may use it. Give exactly one of the three forms.

    Args:
        json_schema: a JSON schema, as text or parsed
        regex: a regular expression that the whole answer matches
        lark: a grammar in llguidance's Lark dialect

    Raises:
        UsageError: not exactly one form, or it does not compile
        EngineError: llguidance is not installed
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        vocab_size: int,
        eos_token_ids: Collection[int],
        json_schema: str | dict[str, Any] | None = None,
        regex: str | None = None,
        lark: str | None = None,
    ) -> None:
        if sum(form is not None for form in (json_schema, regex, lark)) != 1:
            raise UsageError("A grammar is one of a JSON schema, a regular expression or a Lark grammar; give exactly one.")
        try:
            import llguidance
        except ImportError as error:
            raise EngineError(
                "Structured output needs llguidance, which is not installed; install it with: pip install llguidance"
            ) from error
        self._library: Any = llguidance
        self._vocab = vocab_size
        eos = self._eos = sorted(eos_token_ids)
        if not eos:
            raise UsageError("A grammar needs a token that ends the answer, and this engine's model names none.")
        highest = max(tokenizer.get_vocab().values(), default=0)
        if highest >= _MOST_TOKENS:  # llguidance makes a table of them all
            raise EngineError(
                f"A token of this engine's tokenizer has the id {highest}; at most {_MOST_TOKENS} are expected; {EXPORT_AGAIN}."
            )
        try:
            self._tokenizer = llguidance.LLTokenizer(
                tokenizer.to_str(), n_vocab=self._vocab, eos_token=eos if len(eos) > 1 else eos[0]
            )
        except Exception as error:  # llguidance knows fewer kinds of tokenizers
            raise EngineError(
                f"llguidance cannot use this engine's tokenizer: {one_line(error)}; answer without a grammar."
            ) from error
        matcher: Any = llguidance.LLMatcher
        text = regex if regex is not None else lark or ""
        if json_schema is not None:
            text = json_schema if isinstance(json_schema, str) else json.dumps(json_schema)
            try:
                json.loads(text)
            except (ValueError, RecursionError) as error:
                raise UsageError(f"The JSON schema is not JSON: {one_line(error)}.") from error
        try:
            text.encode()
        except UnicodeEncodeError:
            raise UsageError("The grammar is not valid Unicode; give text (UTF-8) without broken characters.") from None
        if json_schema is not None:
            self._source = matcher.grammar_from_json_schema(text)
        elif regex is not None:
            self._source = matcher.grammar_from_regex(text)
        else:
            self._source = matcher.grammar_from_lark(text)
        try_grammar(self._source, text)
        problem = self._matcher().get_error()
        if problem:
            raise UsageError(f"The grammar does not compile: {problem.strip().splitlines()[0]}")

    def _matcher(self) -> Any:
        return self._library.LLMatcher(self._tokenizer, self._source)

    def start(self) -> Constraint:
        """The rule at the beginning of an answer."""
        return _Matching(self._matcher(), self._vocab, self._eos)


class _Matching(Constraint):
    def __init__(self, matcher: Any, vocab: int, eos: list[int]) -> None:
        import llguidance.numpy

        self._fill: Any = llguidance.numpy.fill_next_token_bitmask
        self._matcher, self._vocab = matcher, vocab
        self._ending = np.zeros(vocab, bool)  # what may follow a complete answer
        self._ending[eos] = True
        self._bits: np.ndarray = llguidance.numpy.allocate_token_bitmask(1, vocab)

    def allowed(self) -> np.ndarray | None:
        if self._matcher.is_stopped():
            return self._ending
        self._fill(self._matcher, self._bits, 0)
        if self._matcher.is_error():
            raise EngineError(f"The grammar cannot be followed: {one_line(self._matcher.get_error())}; give a simpler one.")
        return np.unpackbits(self._bits[0].view(np.uint8), bitorder="little", count=self._vocab).astype(bool)

    def advance(self, token: int) -> None:
        if not self._matcher.is_stopped():
            self._matcher.consume_token(token)

    def valid_prefix(self, tokens: Sequence[int]) -> int:
        return 0 if self._matcher.is_stopped() else int(self._matcher.validate_tokens(list(tokens)))
