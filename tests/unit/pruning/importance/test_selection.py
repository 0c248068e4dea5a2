"""Selection by hand: legal head forms, ties, layer orders."""

from itertools import combinations

import pytest
import torch

from pruning.errors import RecipeError
from pruning.importance.scores import Scores
from pruning.importance.selection import (
    select,
    select_heads,
    select_hidden,
    select_layer_heads,
    select_layers,
    select_neurons,
)
from pruning.surgery.shape import Shape

SHAPE = Shape(
    model_type="qwen3",
    vocab_size=9,
    hidden_size=8,
    intermediate_size=6,
    num_hidden_layers=2,
    num_attention_heads=6,
    num_key_value_heads=2,
    head_dim=4,
    tie_word_embeddings=True,
    attention_bias=False,
    mlp_bias=False,
)
# Heads 0-2 read the first key/value head, 3-5 the second.
SCORES_H = torch.tensor([0.9, 0.1, 0.8, 0.7, 0.95, 0.6])


@pytest.mark.parametrize(
    ("query", "key_value", "kept", "sources"),
    [
        (6, 2, (0, 1, 2, 3, 4, 5), (0, 1)),
        (4, 2, (0, 2, 3, 4), (0, 1)),
        (2, 2, (0, 4), (0, 1)),
        (3, 1, (3, 4, 5), (1,)),  # 2.25 beats 1.8
        (2, 1, (0, 2), (0,)),  # 1.7 beats 1.65
        (1, 1, (4,), (1,)),
        (3, 3, (0, 2, 4), (0, 0, 1)),
        (4, 4, (0, 2, 3, 4), (0, 0, 1, 1)),
    ],
)
def test_heads_in_every_legal_form(query, key_value, kept, sources):
    target = SHAPE.resized(num_attention_heads=query, num_key_value_heads=key_value)
    assert select_layer_heads(SCORES_H, SHAPE, target) == (kept, sources)


def test_groups_are_the_best_of_all_legal_choices():
    target = SHAPE.resized(num_attention_heads=2, num_key_value_heads=1)
    for seed in range(20):
        scores_H = torch.rand(6, generator=torch.Generator().manual_seed(seed))
        query, _ = select_layer_heads(scores_H, SHAPE, target)
        best = max(
            float(scores_H[list(pair)].sum())
            for group in ((0, 1, 2), (3, 4, 5))
            for pair in combinations(group, 2)
        )
        assert float(scores_H[list(query)].sum()) == pytest.approx(best)


def test_each_layer_chooses_for_itself():
    target = SHAPE.resized(num_attention_heads=1, num_key_value_heads=1)
    heads = select_heads(torch.stack([SCORES_H, -SCORES_H]), SHAPE, target)
    assert heads.query == ((4,), (1,))
    assert heads.key_value == ((1,), (0,))


def test_illegal_heads():
    with pytest.raises(RecipeError, match="legal are"):
        select_heads(torch.zeros(2, 6), SHAPE, SHAPE.resized(num_attention_heads=3))


def test_channels_ascend_and_ties_go_to_the_lower_index():
    assert select_hidden(torch.tensor([1.0, 3.0, 2.0, 3.0, 2.0]), 3).channels == (1, 2, 3)
    many_C = (torch.arange(1000) % 2).float()
    assert select_hidden(many_C, 300).channels == tuple(range(1, 600, 2))


def test_neurons_per_layer():
    scores_LF = torch.tensor([[0.1, 0.5, 0.3], [0.9, 0.2, 0.4]])
    assert select_neurons(scores_LF, 2).neurons == ((1, 2), (0, 2))


@pytest.mark.parametrize(("count", "left"), [(4, (0, 1, 2, 3)), (2, (0, 3)), (1, (3,))])
def test_layers_go_in_their_order(count, left):
    scores = Scores("paper", "layers", torch.zeros(4), torch.tensor([2, 1, 0]))
    assert select_layers(scores, count).layers == left


def test_only_scored_axes_are_cut():
    target = SHAPE.resized(intermediate_size=3)
    scores = {"mlp": Scores("paper", "mlp", torch.rand(2, 6))}
    cut = select(scores, SHAPE, target)
    assert cut.heads is None
    assert cut.hidden is None
    assert cut.layers is None
    assert cut.applied_to(SHAPE) == target
    with pytest.raises(RecipeError, match="exceeds"):
        select(scores, SHAPE, SHAPE.resized(intermediate_size=7))
