"""A Qwen2 becomes the same function as a Llama; the others pass; the rest is refused."""

import pytest
import torch
from transformers import LlamaForCausalLM, MistralConfig, MistralForCausalLM

from pruning.errors import RecipeError
from pruning.surgery.adapter import locate
from pruning.surgery.canonical import canonical
from recommender.errors import UnsupportedModelError


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("tied", [True, False])
def test_qwen2_becomes_a_llama_with_the_same_logits(make_model, tokens_BT, tied, attention):
    model = make_model("qwen2", tie_word_embeddings=tied, attn_implementation=attention)
    same = canonical(model)
    assert type(same) is LlamaForCausalLM
    assert same.config.head_dim == 8
    assert same.config.attention_bias is True
    assert same.config._attn_implementation == model.config._attn_implementation
    assert not same.training
    assert (same.lm_head.weight is same.model.embed_tokens.weight) is tied
    assert same.config.rope_parameters == model.config.rope_parameters
    torch.testing.assert_close(same(tokens_BT).logits, model(tokens_BT).logits, rtol=0, atol=1e-6)


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_the_others_pass(make_model, family):
    model = make_model(family)
    assert canonical(model) is model


def test_sliding_windows_are_refused_only_when_used(make_model):
    used = make_model("qwen3", use_sliding_window=True, sliding_window=4, max_window_layers=1)
    with pytest.raises(UnsupportedModelError, match="use_sliding_window false"):
        canonical(used)
    unused = make_model("qwen3", use_sliding_window=True, sliding_window=4, max_window_layers=3)
    assert canonical(unused) is unused


def test_other_classes_are_refused():
    config = MistralConfig(
        vocab_size=8,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    with pytest.raises(UnsupportedModelError, match="MistralForCausalLM cannot be pruned"):
        canonical(MistralForCausalLM(config))


def test_tensors_nobody_knows_are_refused(make_model):
    model = make_model("llama")
    model.model.layers[0].self_attn.adapter = torch.nn.Linear(2, 2)
    with pytest.raises(UnsupportedModelError, match=r"self_attn\.adapter\.weight"):
        canonical(model)


def test_quantised_weights_are_refused(make_model):
    model = make_model("llama")
    model.is_quantized = True
    with pytest.raises(UnsupportedModelError, match="quantised"):
        canonical(model)


def test_a_qwen2_whose_heads_do_not_divide_its_width(make_model):
    with pytest.raises(RecipeError, match="nearest are 32 and 36"):
        canonical(make_model("qwen2", hidden_size=33, head_dim=8))


def test_names_round_trip(make_model):
    for name in make_model("llama", attention_bias=True, mlp_bias=True).state_dict():
        place = locate(name)
        assert place.name(place.layer) == name
