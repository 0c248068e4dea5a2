"""A child that speaks to the service as vLLM's does, with the lean transformer where vLLM would be.

So the step loop, the protocol and the supervision run for real on a machine without vLLM. It may be
told to fail: `--fail load`, or at the first ranking `--fail memory` or `--fail hang`.
"""

import argparse
import socket
import time
from collections.abc import Iterable
from pathlib import Path

import torch

from recommender.artifact import Artifact
from recommender.ranker import TitleIndex
from recommender.search.transformer import LeanTransformer
from recommender.trie import TitleTrie
from service.engine.vllm.child import Child, last_words
from service.engine.vllm.messages import Ready
from service.engine.vllm.search import Listing, Row


class LeanModel:
    """Answers rows one by one, each read anew. `failure` happens at the first row after `ready`."""

    def __init__(self, model: LeanTransformer, trie: TitleTrie, failure: str | None = None) -> None:
        if failure == "load":
            raise ValueError("no such weights\nand more")
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
        if self._told and self._failure == "memory":
            raise MemoryError("no room")
        if self._told and self._failure == "hang":
            time.sleep(3600)
        ticket = next(iter(self.rows))
        row = self.rows.pop(ticket)
        cache = self._model.new_cache()
        cache.reserve(1, len(row.prompt))
        hidden_1H = self._model.prefill([row.prompt], 0, cache)
        children = list(self._trie.children(row.node))
        tokens = [int(self._trie.label(child)[0]) for child in children]
        scores = torch.log_softmax((hidden_1H @ self._model.head_VH[tokens].T).double(), -1)[0]
        best = torch.topk(scores, row.listed)
        listed = [tokens[place] for place in best.indices.tolist()]
        return [(ticket, Listing(listed, best.values.tolist(), cached_tokens=0))]

    def ready(self) -> Ready:
        self._told = True
        return Ready(weights=self._model.nbytes, kv_cache=5, accelerator=0)

    def metrics(self) -> str:
        return "# TYPE vllm:lean gauge\nvllm:lean 1.0\n"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--socket", type=int, required=True)
    parser.add_argument("--artifact", type=Path, required=True)
    parser.add_argument("--fail")
    given = parser.parse_args()
    with socket.socket(fileno=given.socket) as connection:
        try:
            artifact = Artifact.open(given.artifact)
            titles = TitleIndex(artifact.load_catalogue(), artifact.load_encoder(), artifact.load_trie())
            Child(connection, titles, LeanModel(artifact.load_transformer(), titles.trie, given.fail)).run()
        except (BrokenPipeError, ConnectionResetError):
            return
        except Exception as error:
            connection.sendall(last_words(error).line())
            raise


if __name__ == "__main__":
    main()
