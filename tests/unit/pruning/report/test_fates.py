"""Cuts of several stages, told in the teacher's own indices."""

from pruning.report.fates import fates_of
from pruning.surgery.retained import Cut, RetainedHeads, RetainedHidden, RetainedLayers, RetainedNeurons
from pruning.surgery.shape import Shape

TEACHER = Shape(
    model_type="llama",
    vocab_size=50,
    hidden_size=8,
    intermediate_size=4,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=4,
    head_dim=4,
    tie_word_embeddings=True,
    attention_bias=False,
    mlp_bias=False,
)


def test_later_cuts_count_in_what_the_earlier_left() -> None:
    width = Cut(
        heads=RetainedHeads(query=((0, 1), (1, 3), (2, 3)), key_value=((0, 1), (1, 3), (2, 3))),
        hidden=RetainedHidden(channels=(1, 3, 5, 7)),
    )
    depth = Cut(layers=RetainedLayers(layers=(0, 2)))
    again = Cut(
        heads=RetainedHeads(query=((1,), (0,)), key_value=((1,), (0,))),
        hidden=RetainedHidden(channels=(0, 3)),
        mlp=RetainedNeurons(neurons=((0, 2), (1, 3))),
    )
    fates = fates_of(TEACHER, [width, depth, again])
    assert fates.layers_L.tolist() == [0, 2, 0]
    assert fates.heads_LH.tolist() == [[3, 0, 1, 1], [1, 0, 1, 0], [1, 1, 0, 3]]
    assert fates.hidden_C.tolist() == [1, 0, 1, 3, 1, 3, 1, 0]
    assert fates.mlp_LF.tolist() == [[0, 3, 0, 3], [0, 0, 0, 0], [3, 0, 3, 0]]


def test_nothing_cut_is_all_there() -> None:
    fates = fates_of(TEACHER, [])
    assert not fates.layers_L.any()
    assert not fates.heads_LH.any()
    assert fates.hidden_C.shape == (8,)
