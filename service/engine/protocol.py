"""What an engine is to the service: something that ranks a prompt, for one checkpoint, until it is closed.

`LoadedModel` bundles an engine with everything else of its checkpoint, so that an answer is made of
one checkpoint only. Nothing here knows HTTP, Redis, or which engine it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from recommender.artifact import Artifact
from recommender.ranker import RankedItem, TitleIndex


@dataclass(frozen=True)
class RankRequest:
    """What to rank.

    Attributes:
        prompt: token ids, never empty.
        k: how many items are wanted, at least 1.
        exclude: item indices that must not come out.
        candidates: when given, only these item indices may come out.
        deadline: seconds on the running event loop's clock (`loop.time()`).
    """

    prompt: tuple[int, ...]
    k: int
    exclude: frozenset[int]
    candidates: frozenset[int] | None
    deadline: float


@dataclass(frozen=True)
class Ranking:
    """An engine's answer.

    Attributes:
        items: at most k, best first; fewer when fewer survive the filters.
        exact: the ranking is proven.
        queue_s: seconds between the request and the first work on it.
        prefill_s: seconds in which its prompt was read, beside those that joined with it.
        decode_s: seconds of search after that.
        prompt_tokens: tokens of the prompt.
        cached_tokens: how many of them were found in a cache.
        steps: model steps after the prefill.
    """

    items: tuple[RankedItem, ...]
    exact: bool
    queue_s: float
    prefill_s: float
    decode_s: float
    prompt_tokens: int
    cached_tokens: int
    steps: int


@dataclass(frozen=True)
class EngineMemory:
    """Bytes an engine holds: weights, keys and values of prompts, and of both what is on an accelerator."""

    weights: int
    kv_cache: int
    accelerator: int


class Engine(Protocol):
    """Ranks requests, many at a time, without blocking the event loop."""

    @property
    def alive(self) -> bool:
        """Whether whatever keeps the engine going still turns."""
        ...

    @property
    def obstacle(self) -> str | None:
        """Why nothing can be ranked just now, in words; None: it can."""
        ...

    @property
    def waiting(self) -> int:
        """Requests that nothing was done for yet."""
        ...

    def memory(self) -> EngineMemory:
        """What the engine holds now."""
        ...

    async def rank(self, request: RankRequest) -> Ranking:
        """Ranks one request. Cancelling the call drops its work.

        Raises:
            DeadlineError: the deadline passed.
            EngineError: the engine is dead, or died under way.
        """
        ...

    async def own_metrics(self) -> str:
        """What the library that runs the model measures, in Prometheus' text format; empty: nothing.

        Raises:
            EngineError: it cannot tell now.
        """
        ...

    async def close(self) -> None:
        """Frees everything; no request is in flight any more."""
        ...


@dataclass(frozen=True)
class LoadedModel:
    """One checkpoint, ready to serve.

    Attributes:
        artifact: where it came from, with its manifest and identity.
        titles: catalogue, prompt encoder and trie.
        item_of_title: the most popular item that bears a (normalised) title.
        prompt_limit: tokens that a prompt may have, so that any title still fits behind it.
        engine: runs the model.
    """

    artifact: Artifact
    titles: TitleIndex
    item_of_title: Mapping[str, int]
    prompt_limit: int
    engine: Engine

    @property
    def identity(self) -> str:
        """`name@digest12`."""
        return self.artifact.identity

    async def rank(self, request: RankRequest) -> Ranking:
        """Asks the engine; see `Engine.rank`."""
        return await self.engine.rank(request)
