"""A draft that knows what the target will say and hides it among junk: every path of the loop runs, whatever a head is worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from jakiro_runtime import Engine
from jakiro_runtime.backends import Buffers


class OracleGraph:
    """Stands in for draft.onnx. Trees hold a random part of a true continuation, scattered among random nodes.

    truths: whole conversations, prompt and answer, as token ids
    """

    def __init__(self, graph: object, truths: Sequence[Sequence[int]], levels: int, vocab: int, seed: int = 0) -> None:
        self.inputs: Mapping[str, np.dtype] = graph.inputs  # type: ignore[attr-defined]
        self.outputs: Mapping[str, np.dtype] = graph.outputs  # type: ignore[attr-defined]
        self.truths, self.levels, self.vocab = [list(truth) for truth in truths], levels, vocab
        self.random = np.random.default_rng(seed)

    def bind(self, inputs: Buffers, outputs: Buffers) -> OracleBinding:
        return OracleBinding(self, inputs, outputs)

    def tree(self, token: int, place: int, nodes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """A tree behind `token`, which stands at `place` of its conversation."""
        known = [truth for truth in self.truths if place < len(truth) and truth[place] == token]
        true = known[0][place + 1 : place + 1 + int(self.random.integers(0, self.levels + 1))] if known else []
        at = np.sort(self.random.permutation(nodes)[: len(true)])  # the true path's nodes
        tokens, parents = np.empty(nodes, np.int64), np.empty(nodes, np.int64)
        scores, depths, last, done = np.empty(nodes), [0], 0, 0
        for node in range(nodes):
            if done < len(at) and node == at[done]:
                parents[node], tokens[node] = last, true[done]
                last, done = node + 1, done + 1
            else:
                open_rows = [row for row in range(node + 1) if depths[row] < self.levels]
                parents[node] = self.random.choice(open_rows)
                taken = set(tokens[:node][parents[:node] == parents[node]].tolist())
                ahead = set(true)  # junk that happens to be true would be a second true path: harmless, but not the point
                while (token := int(self.random.integers(0, self.vocab))) in taken | ahead:
                    pass
                tokens[node] = token
            depths.append(depths[parents[node]] + 1)
            scores[node] = (scores[parents[node] - 1] if parents[node] else 0.0) - self.random.exponential()
        return tokens, parents, scores


class OracleBinding:
    def __init__(self, graph: OracleGraph, inputs: Buffers, outputs: Buffers) -> None:
        self.graph, self.inputs, self.outputs = graph, dict(inputs), outputs

    def run(self) -> None:
        for row in range(len(self.inputs["input_ids"])):
            last = int(self.inputs["last_row"][row])
            token, place = int(self.inputs["input_ids"][row, last]), int(self.inputs["position_ids"][row, last]) + 1
            tree = self.graph.tree(token, place, self.outputs["tree_tokens"].shape[1])
            for name, values in zip(("tree_tokens", "tree_parents", "tree_scores"), tree, strict=True):
                self.outputs[name][row] = values


def with_oracle(engine: Engine, truths: Sequence[Sequence[int]], seed: int = 0) -> Engine:
    """The engine with its draft replaced."""
    draft, model = engine.manifest.draft, engine.manifest.model
    oracle = OracleGraph(engine.bundle.draft, truths, draft.levels, model.vocab_size, seed)
    return Engine(engine.bundle.replace(draft=oracle))
