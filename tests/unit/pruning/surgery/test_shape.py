"""The parameter formula against what the modules really hold."""

import pytest
from pydantic import ValidationError
from transformers import GPT2Config, LlamaConfig

from pruning.surgery.shape import Shape
from recommender.errors import UnsupportedModelError


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    ("family", "overrides"),
    [
        ("llama", {}),
        ("llama", {"attention_bias": True, "mlp_bias": True, "head_dim": 10}),
        ("qwen2", {}),
        ("qwen3", {}),
        ("qwen3", {"attention_bias": True, "num_key_value_heads": 4}),
    ],
)
def test_formula_counts_what_the_modules_hold(make_model, family, overrides, tied):
    model = make_model(family, tie_word_embeddings=tied, **overrides)
    shape = Shape.of(model.config)
    counts = {name: parameter.numel() for name, parameter in model.named_parameters()}
    vocabulary = sum(count for name, count in counts.items() if "embed_tokens" in name or "lm_head" in name)
    assert shape.total_parameters == sum(counts.values())
    assert shape.nonembedding_parameters == sum(counts.values()) - vocabulary


def test_smollm2_has_its_published_size():
    shape = Shape.of(
        LlamaConfig(
            vocab_size=49152,
            hidden_size=576,
            intermediate_size=1536,
            num_hidden_layers=30,
            num_attention_heads=9,
            num_key_value_heads=3,
            tie_word_embeddings=True,
        )
    )
    assert shape.nonembedding_parameters == 106_203_456
    assert shape.total_parameters == 106_203_456 + 49152 * 576


def test_shape_survives_json_and_resizing(make_model):
    shape = Shape.of(make_model("qwen3").config)
    assert Shape.model_validate_json(shape.model_dump_json()) == shape
    assert shape.resized(hidden_size=16).hidden_size == 16
    with pytest.raises(ValidationError):
        shape.resized(hidden_size=0)


def test_other_families_are_refused():
    with pytest.raises(UnsupportedModelError, match="gpt2"):
        Shape.of(GPT2Config())
