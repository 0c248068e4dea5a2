"""How much the cache of keys and values takes: the service reckons with it before vLLM reserves it."""

from __future__ import annotations

from recommender.search.architecture import Architecture

_LEAST = 64 << 20
_FLOAT32 = 4
_TOKENS_A_SEARCH = 512  # its prompt and its frontier


def kv_cache_bytes(shape: Architecture, context: int, max_batch: int) -> int:
    """Bytes of a cache that holds one prompt as long as they may be, and `max_batch` usual searches."""
    per_token = 2 * shape.num_hidden_layers * shape.num_key_value_heads * shape.head_dim * _FLOAT32
    return max(_LEAST, per_token * (context + max_batch * _TOKENS_A_SEARCH))
