"""A child that speaks to the service as vLLM's does, with the lean transformer where vLLM would be.

So the step loop, the protocol and the supervision run for real on a machine without vLLM. It may be
told to fail: `--fail load`, or at the first ranking `--fail memory`, `--fail hang`, or `--fail slow`, which
works on a step for three seconds.
"""

import argparse
import time
from collections.abc import Iterable

import numpy as np
import torch

from recommender.artifact import Artifact
from recommender.search.reading import Transformer, prompts_reading
from recommender.trie import TitleTrie
from service.engine.vllm.child import serve
from service.engine.vllm.messages import Ready
from service.engine.vllm.search import Listing, Row


class LeanModel:
    """Answers rows one by one, each read anew. `failure` happens at the first row after `ready`."""

    def __init__(
        self,
        model: Transformer,
        trie: TitleTrie,
        context: int = 512,
        kv_cache: int = 0,
        failure: str | None = None,
    ) -> None:
        if failure == "load":
            raise ValueError("no such weights\nand more")
        self.context = context
        self._kv_cache = kv_cache
        self._model = model
        self._trie = trie
        self._failure = failure
        self._told = False
        self.rows: dict[int, Row] = {}
        self.asked: list[Row] = []

    def add(self, ticket: int, row: Row) -> None:
        self.rows[ticket] = row
        self.asked.append(row)

    def abort(self, tickets: Iterable[int]) -> None:
        for ticket in tickets:
            del self.rows[ticket]

    def step(self) -> list[tuple[int, Listing]]:
        if self._told:
            self._fail()
        ticket = next(iter(self.rows))
        row = self.rows.pop(ticket)
        cache = self._model.new_cache()
        cache.reserve(1, len(row.prompt))
        hidden_1H = self._model.read(prompts_reading([row.prompt], 0), cache)
        children = self._model.score(hidden_1H, self._trie, np.array([row.node], np.int32), np.zeros(1))
        tokens = [int(self._trie.label(child)[0]) for child in children.nodes_E]
        best = torch.topk(torch.from_numpy(children.scores_E), row.listed)
        listed = [tokens[place] for place in best.indices.tolist()]
        return [(ticket, Listing(listed, best.values.tolist(), cached_tokens=0))]

    def ready(self) -> Ready:
        self._told = True
        return Ready(weights=self._model.nbytes, kv_cache=self._kv_cache, accelerator=0)

    def _fail(self) -> None:
        if self._failure == "memory":
            raise MemoryError("no room")
        if self._failure == "hang":
            time.sleep(3600)
        if self._failure == "slow":
            end, self._failure = time.monotonic() + 3, None
            while time.monotonic() < end:
                pass

    def metrics(self) -> str:
        return "# TYPE vllm:lean gauge\nvllm:lean 1.0\n"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--fail")
    ours, others = parser.parse_known_args()

    def load(artifact: Artifact, context: int, kv_cache: int) -> LeanModel:
        trie = artifact.load_trie()
        return LeanModel(artifact.load_transformer(), trie, context, kv_cache, ours.fail)

    serve(others, load)


if __name__ == "__main__":
    main()
