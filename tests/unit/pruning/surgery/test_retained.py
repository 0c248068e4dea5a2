"""Retained indices: JSON, and what they refuse."""

import pytest
from pydantic import ValidationError

from pruning.errors import RecipeError
from pruning.surgery.retained import (
    Cut,
    RetainedHeads,
    RetainedHidden,
    RetainedLayers,
    RetainedNeurons,
)
from pruning.surgery.shape import Shape

SHAPE = Shape(
    model_type="qwen3",
    vocab_size=9,
    hidden_size=8,
    intermediate_size=6,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=4,
    tie_word_embeddings=True,
    attention_bias=False,
    mlp_bias=False,
)


def test_json_round_trip_and_resulting_shape():
    cut = Cut(
        heads=RetainedHeads(query=((0, 1), (2, 3)), key_value=((0,), (1,))),
        hidden=RetainedHidden(channels=(0, 3, 5)),
        mlp=RetainedNeurons(neurons=((0, 1), (2, 5))),
        layers=RetainedLayers(layers=(1,)),
    )
    assert Cut.model_validate_json(cut.model_dump_json()) == cut
    assert cut.applied_to(SHAPE) == SHAPE.resized(
        num_attention_heads=2,
        num_key_value_heads=1,
        hidden_size=3,
        intermediate_size=2,
        num_hidden_layers=1,
    )
    assert Cut().applied_to(SHAPE) == SHAPE


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: RetainedHeads(query=((0, 1), (2,)), key_value=((0,), (1,))), "same number"),
        (lambda: RetainedHeads(query=((0,),), key_value=((0,), (1,))), "same layers"),
        (lambda: RetainedHeads(query=((0, 1, 2),), key_value=((0, 1),)), "same number of query"),
        (lambda: RetainedHeads(query=((1, 1),), key_value=((0,),)), "twice"),
        (lambda: RetainedHidden(channels=(2, 1)), "ascend"),
        (lambda: RetainedHidden(channels=(1, 1)), "ascend"),
        (lambda: RetainedHidden(channels=()), "at least 1"),
        (lambda: RetainedNeurons(neurons=((0, 1), (0,))), "same number"),
        (lambda: RetainedNeurons(neurons=((1, 0),)), "ascend"),
        (lambda: RetainedLayers(layers=(1, 0)), "ascend"),
    ],
)
def test_malformed_indices_are_refused(make, why):
    with pytest.raises(ValidationError, match=why):
        make()


@pytest.mark.parametrize(
    ("cut", "why"),
    [
        (Cut(hidden=RetainedHidden(channels=(8,))), "hidden channel 8"),
        (Cut(layers=RetainedLayers(layers=(2,))), "layer 2"),
        (Cut(mlp=RetainedNeurons(neurons=((0,),))), "1 layers, but the model has 2"),
        (Cut(mlp=RetainedNeurons(neurons=((0,), (6,)))), "neuron 6"),
        (Cut(heads=RetainedHeads(query=((4,), (0,)), key_value=((0,), (0,)))), "query head 4"),
        (
            Cut(heads=RetainedHeads(query=((0,), (0,)), key_value=((0,), (1,)))),
            "layer 1: query head 0 would read key/value head 1, but belongs to 0",
        ),
    ],
)
def test_indices_that_do_not_fit_the_model(cut, why):
    with pytest.raises(RecipeError, match=why):
        cut.applied_to(SHAPE)
