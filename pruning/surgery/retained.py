"""What a cut keeps, as plain indices that survive a round trip through JSON.

Indices count from zero in the model that is cut. A stage writes its `Cut` to the run folder, and the
same file and the same model give the same student again.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, model_validator

from pruning.errors import RecipeError
from pruning.surgery.shape import Shape

Indices = Annotated[tuple[NonNegativeInt, ...], Field(min_length=1)]
IndicesPerLayer = Annotated[tuple[Indices, ...], Field(min_length=1)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class RetainedHeads(_Frozen):
    """Heads kept in each layer.

    Attributes:
        query: old query heads, in their new order.
        key_value: the old key/value head that each new one is a copy of. A source that stands
            several times has been copied to several query heads.
    """

    query: IndicesPerLayer
    key_value: IndicesPerLayer

    @model_validator(mode="after")
    def _is_uniform(self) -> RetainedHeads:
        if len(self.query) != len(self.key_value):
            raise ValueError("query and key_value must name the same layers")
        sizes = {(len(q), len(kv)) for q, kv in zip(self.query, self.key_value, strict=True)}
        if len(sizes) > 1:
            raise ValueError("every layer must keep the same number of heads")
        query, key_value = next(iter(sizes))
        if query % key_value:
            raise ValueError("each key/value head must serve the same number of query heads")
        if any(len(set(heads)) != query for heads in self.query):
            raise ValueError("a query head is named twice")
        return self


class RetainedHidden(_Frozen):
    """Channels of the residual stream kept, the same in every layer; ascending."""

    channels: Indices

    @model_validator(mode="after")
    def _ascends(self) -> RetainedHidden:
        _require_ascending(self.channels)
        return self


class RetainedNeurons(_Frozen):
    """MLP neurons kept in each layer; ascending, the same number in every layer."""

    neurons: IndicesPerLayer

    @model_validator(mode="after")
    def _is_uniform(self) -> RetainedNeurons:
        for neurons in self.neurons:
            _require_ascending(neurons)
        if len({len(neurons) for neurons in self.neurons}) > 1:
            raise ValueError("every layer must keep the same number of neurons")
        return self


class RetainedLayers(_Frozen):
    """Layers kept; ascending."""

    layers: Indices

    @model_validator(mode="after")
    def _ascends(self) -> RetainedLayers:
        _require_ascending(self.layers)
        return self


class Cut(_Frozen):
    """Everything one stage keeps; an axis that is None stays whole.

    Heads and neurons are listed for every layer of the model that is cut, also for those that
    `layers` drops.
    """

    heads: RetainedHeads | None = None
    hidden: RetainedHidden | None = None
    mlp: RetainedNeurons | None = None
    layers: RetainedLayers | None = None

    def applied_to(self, shape: Shape) -> Shape:
        """The shape that this cut leaves of `shape`.

        Raises:
            RecipeError: an index or a number of layers that `shape` has not, or query heads that
                would read the keys and values of another group.
        """
        sizes: dict[str, int] = {}
        if self.heads is not None:
            _check_heads(self.heads, shape)
            sizes["num_attention_heads"] = len(self.heads.query[0])
            sizes["num_key_value_heads"] = len(self.heads.key_value[0])
        if self.hidden is not None:
            _check_indices("hidden channel", self.hidden.channels, shape.hidden_size)
            sizes["hidden_size"] = len(self.hidden.channels)
        if self.mlp is not None:
            _check_layers("neurons", len(self.mlp.neurons), shape)
            for neurons in self.mlp.neurons:
                _check_indices("neuron", neurons, shape.intermediate_size)
            sizes["intermediate_size"] = len(self.mlp.neurons[0])
        if self.layers is not None:
            _check_indices("layer", self.layers.layers, shape.num_hidden_layers)
            sizes["num_hidden_layers"] = len(self.layers.layers)
        return shape.resized(**sizes)


def _check_heads(heads: RetainedHeads, shape: Shape) -> None:
    _check_layers("heads", len(heads.query), shape)
    for layer, (query, key_value) in enumerate(zip(heads.query, heads.key_value, strict=True)):
        _check_indices("query head", query, shape.num_attention_heads)
        _check_indices("key/value head", key_value, shape.num_key_value_heads)
        served = len(query) // len(key_value)
        for position, head in enumerate(query):
            source = key_value[position // served]
            if head // shape.query_heads_per_group != source:
                raise RecipeError(
                    f"layer {layer}: query head {head} would read key/value head {source}, but "
                    f"belongs to {head // shape.query_heads_per_group}; select the heads again"
                )


def _check_layers(what: str, layers: int, shape: Shape) -> None:
    if layers != shape.num_hidden_layers:
        raise RecipeError(
            f"{what} are retained for {layers} layers, but the model has "
            f"{shape.num_hidden_layers}; select them again for this model"
        )


def _check_indices(what: str, indices: Sequence[int], size: int) -> None:
    if max(indices) >= size:
        raise RecipeError(
            f"{what} {max(indices)} is retained, but the model has {size}; select again for this model"
        )


def _require_ascending(indices: Sequence[int]) -> None:
    if any(left >= right for left, right in pairwise(indices)):
        raise ValueError("indices must ascend, each named once")
