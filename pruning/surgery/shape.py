"""The sizes of a decoder, under Hugging Face's keys, and what they weigh.

A target is a `Shape` too, so how many parameters a recipe leaves is known before anything is cut.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, PositiveInt
from transformers import PretrainedConfig

from recommender.errors import UnsupportedModelError


class Shape(BaseModel):
    """A decoder's family and sizes; layers are uniform.

    Attributes:
        attention_bias: q, k and v carry a bias, and in Llama and Qwen3 o as well.
        mlp_bias: gate, up and down carry a bias.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    model_type: Literal["llama", "qwen2", "qwen3"]
    vocab_size: PositiveInt
    hidden_size: PositiveInt
    intermediate_size: PositiveInt
    num_hidden_layers: PositiveInt
    num_attention_heads: PositiveInt
    num_key_value_heads: PositiveInt
    head_dim: PositiveInt
    tie_word_embeddings: bool
    attention_bias: bool
    mlp_bias: bool

    @classmethod
    def of(cls, config: PretrainedConfig) -> Shape:
        """Reads the shape of a Hugging Face configuration.

        Raises:
            UnsupportedModelError: the family is none of Llama, Qwen2 and Qwen3.
        """
        family = config.model_type
        if family not in ("llama", "qwen2", "qwen3"):
            raise UnsupportedModelError(
                f"model_type {family!r} cannot be pruned; give a llama, qwen2 or qwen3 model"
            )
        heads = config.num_attention_heads
        return cls(
            model_type=family,
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_hidden_layers,
            num_attention_heads=heads,
            num_key_value_heads=config.num_key_value_heads,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
            tie_word_embeddings=config.tie_word_embeddings,
            attention_bias=family == "qwen2" or config.attention_bias,
            mlp_bias=getattr(config, "mlp_bias", False),
        )

    def resized(self, **sizes: int) -> Shape:
        """The same family with some sizes changed, e.g. `shape.resized(hidden_size=448)`."""
        return Shape.model_validate(self.model_dump() | sizes)

    @property
    def query_heads_per_group(self) -> int:
        """How many query heads share one key/value head."""
        return self.num_attention_heads // self.num_key_value_heads

    @property
    def nonembedding_parameters(self) -> int:
        """Parameters outside the token embedding and the vocabulary head."""
        return self.attention_parameters + self.mlp_parameters + self.norm_parameters

    @property
    def total_parameters(self) -> int:
        """All parameters; a tied vocabulary head counts once."""
        return self.nonembedding_parameters + self.embedding_parameters

    @property
    def embedding_parameters(self) -> int:
        """The token embedding and the vocabulary head; tied they count once."""
        return (1 if self.tie_word_embeddings else 2) * self.vocab_size * self.hidden_size

    @property
    def norm_parameters(self) -> int:
        """Gains of the RMSNorms of the residual stream, two a layer and the final one."""
        return (2 * self.num_hidden_layers + 1) * self.hidden_size

    @property
    def mlp_parameters(self) -> int:
        """Gate, up and down of all layers."""
        hidden, neurons = self.hidden_size, self.intermediate_size
        bias = 2 * neurons + hidden if self.mlp_bias else 0
        return self.num_hidden_layers * (3 * hidden * neurons + bias)

    @property
    def attention_parameters(self) -> int:
        """Queries, keys, values and output of all layers, with the norms of queries and keys."""
        hidden = self.hidden_size
        query = self.num_attention_heads * self.head_dim
        key_value = self.num_key_value_heads * self.head_dim
        attention = 2 * hidden * query + 2 * hidden * key_value
        if self.attention_bias:
            attention += query + 2 * key_value + (0 if self.model_type == "qwen2" else hidden)
        if self.model_type == "qwen3":
            attention += 2 * self.head_dim  # norms of the queries and of the keys
        return self.num_hidden_layers * attention
