"""The only file that imports vLLM: its engine, and the logits processor that keeps it on the trie.

The processor turns a row's logits into log-probabilities of its node's children, renormalised over
them, and everything else into minus infinity; `processed_logits` hands them back untouched. It finds
the trie beside the weights, so a request carries no more than the number of its node.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from prometheus_client import generate_latest
from vllm import EngineArgs, LLMEngine, SamplingParams, TokensPrompt
from vllm.v1.sample.logits_processor import (
    BatchUpdate,
    LogitsProcessor,
    MoveDirectionality,
)

from recommender.artifact import TRIE, Artifact
from recommender.trie import TitleTrie
from service.engine.vllm.messages import Ready
from service.engine.vllm.search import Listing, Row

# B rows of the batch, V vocabulary, E children of all rows of the batch, R rows that ask for children.
_NODE = "espalier_node"
_BLOCK_TOKENS_ON_CPU = 32  # vLLM's 128 makes the search three times slower there, and 16 is refused
_BATCHED_TOKENS = 4096


class TrieProcessor(LogitsProcessor):  # type: ignore[misc]
    """Keeps rows that name a node on the children of that node."""

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        del is_pin_memory  # vLLM hands it over by name
        self._trie = TitleTrie.load(Path(vllm_config.model_config.model) / TRIE)
        self._device = device
        self._node_of_row: dict[int, int] = {}

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        if batch_update is None:
            return
        nodes = self._node_of_row
        for index in batch_update.removed:
            nodes.pop(index, None)
        for index, params, _, _ in batch_update.added:
            nodes.pop(index, None)
            if params.extra_args and _NODE in params.extra_args:
                nodes[index] = params.extra_args[_NODE]
        for source, target, direction in batch_update.moved:
            moved, replaced = nodes.pop(source, None), nodes.pop(target, None)
            if moved is not None:
                nodes[target] = moved
            if replaced is not None and direction == MoveDirectionality.SWAP:
                nodes[source] = replaced

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        if not self._node_of_row:
            return logits
        nodes_R = np.fromiter(self._node_of_row.values(), np.int64, len(self._node_of_row))
        batch_R = np.fromiter(self._node_of_row.keys(), np.int64, len(nodes_R))
        first_R = self._trie.child_offsets[nodes_R]
        counts_R = self._trie.child_offsets[nodes_R + 1] - first_R
        row_E = np.repeat(np.arange(len(nodes_R)), counts_R)
        within_E = np.arange(len(row_E)) - (np.cumsum(counts_R) - counts_R)[row_E]
        children_E = first_R[row_E] + 1 + within_E
        tokens_E = self._trie.label_tokens[self._trie.label_offsets[children_E]].astype(np.int64)

        rows = torch.from_numpy(row_E).to(self._device)
        batch = torch.from_numpy(batch_R).to(self._device)
        tokens = torch.from_numpy(tokens_E).to(self._device)
        scores_E = logits[batch[rows], tokens].double()
        highest_R = torch.full((len(nodes_R),), -torch.inf, dtype=torch.float64, device=self._device)
        highest_R.scatter_reduce_(0, rows, scores_E, "amax")
        scores_E = scores_E - highest_R[rows]
        sums_R = torch.zeros_like(highest_R).scatter_add_(0, rows, scores_E.exp())
        logits[batch] = -torch.inf
        logits[batch[rows], tokens] = (scores_E - sums_R.log()[rows]).to(logits.dtype)
        return logits


class VllmModel:
    """An artifact in vLLM, as a `Model` of the step loop."""

    def __init__(
        self,
        artifact: Artifact,
        context: int,
        kv_cache: int,
        *,
        compiled: bool = False,
        block_tokens: int | None = None,
    ) -> None:
        """Loads the weights.

        Args:
            artifact: what to load.
            context: tokens that a prompt with a title may have.
            kv_cache: bytes of the cache of keys and values.
            compiled: torch compiles the model first, which takes a C++ compiler and most of a minute.
            block_tokens: tokens of a block of the cache; None: what suits the device.
        """
        self.context = context
        self._kv_cache = kv_cache
        if block_tokens is None and not torch.cuda.is_available():
            block_tokens = _BLOCK_TOKENS_ON_CPU
        children = np.diff(artifact.load_trie().child_offsets)
        self._engine = LLMEngine.from_engine_args(
            EngineArgs(
                model=str(artifact.path),
                served_model_name=artifact.identity,
                skip_tokenizer_init=True,  # rows are token ids, both ways
                dtype="float32",  # the same answers as the native engine's; bfloat16 gives others
                max_model_len=context,
                max_num_batched_tokens=max(_BATCHED_TOKENS, context),
                kv_cache_memory_bytes=kv_cache,
                block_size=block_tokens,
                enable_prefix_caching=True,
                enforce_eager=not compiled,
                seed=0,
                logits_processors=[TrieProcessor],
                logprobs_mode="processed_logits",
                max_logprobs=int(children.max()),
                disable_log_stats=False,  # they are what /metrics/vllm shows
                async_scheduling=False,
            )
        )

    def add(self, ticket: int, row: Row) -> None:
        params = SamplingParams(
            temperature=0.0,
            max_tokens=1,
            logprobs=row.listed,
            flat_logprobs=True,
            detokenize=False,
            ignore_eos=True,
            extra_args={_NODE: row.node},
        )
        self._engine.add_request(str(ticket), TokensPrompt(prompt_token_ids=list(row.prompt)), params)

    def abort(self, tickets: Iterable[int]) -> None:
        self._engine.abort_request([str(ticket) for ticket in tickets])

    def step(self) -> list[tuple[int, Listing]]:
        done = []
        for output in self._engine.step():
            if output.finished:
                listed = output.outputs[0].logprobs
                best = dict(
                    zip(listed.token_ids, listed.logprobs, strict=True)
                )  # the chosen one stands twice
                done.append(
                    (
                        int(output.request_id),
                        Listing(list(best), list(best.values()), output.num_cached_tokens or 0),
                    )
                )
        return done

    def ready(self) -> Ready:
        """What the model holds, as the service is told."""
        (weights,) = self._engine.apply_model(_weight_bytes)
        on_device = torch.cuda.memory_reserved() if torch.cuda.is_available() else 0
        return Ready(weights=weights, kv_cache=self._kv_cache, accelerator=on_device)

    def metrics(self) -> str:
        """What vLLM measures itself, in Prometheus' text format."""
        return generate_latest().decode()


def _weight_bytes(model: torch.nn.Module) -> int:
    return sum(parameter.nbytes for parameter in model.parameters())
