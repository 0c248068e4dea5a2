"""Legal targets, and the proposals that an illegal one is answered with."""

import pytest

from pruning.errors import RecipeError
from pruning.surgery.plan import HeadForm, check_target, head_form, legal_key_value_heads
from pruning.surgery.shape import Shape

QWEN = Shape(
    model_type="llama",
    vocab_size=100,
    hidden_size=896,
    intermediate_size=4864,
    num_hidden_layers=24,
    num_attention_heads=14,
    num_key_value_heads=2,
    head_dim=64,
    tie_word_embeddings=True,
    attention_bias=True,
    mlp_bias=False,
)


@pytest.mark.parametrize(
    ("query", "key_value", "form"),
    [
        (14, 2, HeadForm.GROUPS),
        (7, 1, HeadForm.GROUPS),
        (8, 2, HeadForm.GROUPS),
        (2, 2, HeadForm.GROUPS),
        (1, 1, HeadForm.GROUPS),
        (7, 7, HeadForm.COPIED),
        (14, 14, HeadForm.COPIED),
    ],
)
def test_form_of_legal_heads(query, key_value, form):
    target = QWEN.resized(num_attention_heads=query, num_key_value_heads=key_value)
    assert head_form(QWEN, target) is form


@pytest.mark.parametrize(
    ("query", "key_value", "proposals"),
    [(7, 2, "legal are 7/1, 7/7"), (8, 1, "legal are 8/2, 8/8"), (8, 4, "legal are 8/2, 8/8")],
)
def test_illegal_heads_name_the_legal_ones(query, key_value, proposals):
    target = QWEN.resized(num_attention_heads=query, num_key_value_heads=key_value)
    with pytest.raises(RecipeError, match=proposals):
        head_form(QWEN, target)


def test_legal_key_value_heads():
    assert legal_key_value_heads(QWEN, 6) == (1, 2, 6)
    assert legal_key_value_heads(QWEN, 9) == (9,)


def test_llama_width_must_divide():
    target = QWEN.resized(num_attention_heads=7, num_key_value_heads=1, hidden_size=450)
    with pytest.raises(RecipeError, match=r"450 .* nearest are 448 and 455"):
        check_target(QWEN, target)
    as_qwen3 = QWEN.resized().model_copy(update={"model_type": "qwen3"})
    check_target(as_qwen3, target.model_copy(update={"model_type": "qwen3"}))


@pytest.mark.parametrize("key", ["hidden_size", "intermediate_size", "num_hidden_layers"])
def test_pruning_only_removes(key):
    with pytest.raises(RecipeError, match=f"{key} .* exceeds"):
        check_target(QWEN, QWEN.resized(**{key: getattr(QWEN, key) * 2}))


def test_more_heads_than_there_are():
    target = QWEN.resized(num_attention_heads=28, num_key_value_heads=2)
    with pytest.raises(RecipeError, match="28 exceeds the model's 14"):
        head_form(QWEN, target)


def test_what_pruning_does_not_change():
    with pytest.raises(RecipeError, match="head_dim from 64 to 32"):
        check_target(QWEN, QWEN.resized(head_dim=32))
