"""What no engine can go below: the floors that stand beside a measured time.

Two of them, for reading a prompt and for a whole request. *GEMM*: the matrix products of just the needed
tokens, in their own shapes, back to back, with nothing between. *Roofline*: their operations at the
machine's peak, or their bytes at its bandwidth, whichever takes longer; weights that bfloat16 can hold
count as such.

Needed are the prompt's tokens and those of the inner nodes whose score exceeds the k-th title's: a node's
score bounds all below it, so no search can leave one of these unread. They are read level by level, since
a node's score is not known before its parent is read; a level of the trie is one step. Of the last layer,
tokens whose hidden state nobody asks for owe the others only their keys and values.

Shapes: T tokens of a step, W of them asked for, H hidden, F intermediate, E children scored.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from recommender.ranker import Ranker
from recommender.search.frontier import Query, SearchLimits
from recommender.search.search import TrieSearch
from recommender.search.transformer import LeanTransformer

_FLOAT32 = 4


@dataclass(frozen=True)
class Step:
    """One pass over the weights: tokens read, those asked for, and children scored behind them."""

    tokens: int
    wanted: int
    children: int


@dataclass(frozen=True)
class Machine:
    """Measured: multiply-adds count as two operations."""

    operations_per_s: float
    bytes_per_s: float


def needed_steps(ranker: Ranker, prompt: tuple[int, ...], k: int) -> list[Step]:
    """The steps of a request: its prompt with the root's children, then a step for each level."""
    trie = ranker.trie
    everything = Query(prompt, trie.leaf_count, distinct_titles=True)
    unlimited = SearchLimits(width=trie.leaf_count, proof_nodes=trie.leaf_count)
    [found] = TrieSearch(ranker.search.model, trie, unlimited).rank([everything])
    assert found.exact
    assert len(found.leaves) == trie.leaf_count
    probability_L = np.zeros(trie.leaf_count)
    probability_L[list(found.leaves)] = np.exp(found.scores)
    below = np.concatenate(([0.0], np.cumsum(probability_L)))
    probability_N = below[trie.leaf_stop] - below[trie.leaf_start]
    kth = np.sort(probability_L)[-k]

    children_N = np.diff(trie.child_offsets)
    tokens_N = np.diff(trie.label_offsets)
    steps = [Step(len(prompt), 1, int(children_N[0]))]
    level = np.asarray(trie.children(0))
    while True:
        level = level[(children_N[level] > 0) & (probability_N[level] > kth)]
        if not len(level):
            return steps
        steps.append(Step(int(tokens_N[level].sum()), len(level), int(children_N[level].sum())))
        level = np.concatenate([np.asarray(trie.children(int(node))) for node in level])


def gemm_seconds(model: LeanTransformer, steps: Sequence[Step], repeats: int = 5) -> float:
    """Median seconds of the steps' products, one after the other."""
    products = [product for step in steps for product in _products(model, step)]
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        for product in products:
            product()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def roofline_seconds(model: LeanTransformer, steps: Sequence[Step], machine: Machine) -> float:
    """Seconds that operations or bytes take, for each step whichever is more."""
    total, each = 0.0, _FLOAT32 // 2 if model.fits_bfloat16 else _FLOAT32
    for step in steps:
        operations = data = 0.0
        for weight, of_tokens in _weights(model, step):
            operations += 2.0 * of_tokens * weight.numel()
            data += each * weight.numel()
        hidden = model.architecture.hidden_size
        operations += 2.0 * step.children * hidden
        data += each * step.children * hidden
        total += max(operations / machine.operations_per_s, data / machine.bytes_per_s)
    return total


def measure_machine(working_set_bytes: int) -> Machine:
    """The peak of a large square product, and the bandwidth of reading as much as the model holds."""
    square = torch.rand(2048, 2048)
    operations = 2 * 2048**3 / _best(lambda: torch.mm(square, square))
    held = torch.rand(max(1 << 16, working_set_bytes // _FLOAT32))
    return Machine(operations, held.nbytes / _best(lambda: held.sum(), repeats=50))


def _weights(model: LeanTransformer, step: Step) -> Iterator[tuple[Tensor, int]]:
    """Every matrix, and how many tokens go through it."""
    for layer in model.layers[:-1]:
        for weight in (layer.qkv_weight, layer.o_weight, layer.gate_up_weight, layer.down_weight):
            yield weight, step.tokens
    last = model.layers[-1]
    queries = model.architecture.num_attention_heads * model.architecture.head_dim
    yield last.qkv_weight[queries:], step.tokens
    for weight in (last.qkv_weight[:queries], last.o_weight, last.gate_up_weight, last.down_weight):
        yield weight, step.wanted


def _products(model: LeanTransformer, step: Step) -> list[Callable[[], Tensor]]:
    """The step's products with their outputs in place, on the model's own weights."""
    products: list[Callable[[], Tensor]] = []

    def multiply(weight: Tensor, rows: int) -> None:
        given, out = torch.rand(rows, weight.shape[1]), torch.empty(rows, weight.shape[0])
        products.append(lambda: torch.mm(given, weight.T, out=out))

    for weight, of_tokens in _weights(model, step):
        multiply(weight, of_tokens)
    rows_EH = model.head_VH[: step.children]
    hidden_H, scores_E = torch.rand(rows_EH.shape[1]), torch.empty(len(rows_EH))
    products.append(lambda: torch.mv(rows_EH, hidden_H, out=scores_E))
    return products


def _best(work: Callable[[], object], repeats: int = 7) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)
