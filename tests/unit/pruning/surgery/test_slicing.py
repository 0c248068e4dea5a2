"""Proves surgery: what is cut is exactly what was masked or skipped, and it loads again."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen3ForCausalLM

from pruning.errors import RecipeError
from pruning.surgery.adapter import Dimension, locate, modules_of
from pruning.surgery.canonical import canonical
from pruning.surgery.retained import (
    Cut,
    RetainedHeads,
    RetainedHidden,
    RetainedLayers,
    RetainedNeurons,
)
from pruning.surgery.shape import Shape
from pruning.surgery.slicing import (
    apply_cut,
    slice_heads,
    slice_hidden,
    slice_layers,
    slice_mlp,
)
from recommender.errors import UnsupportedModelError

# 4 query heads read 2 key/value heads: heads 0 and 1 the first, 2 and 3 the second.
ONE_OF_EACH_GROUP = RetainedHeads(query=((0, 3), (1, 2), (1, 3)), key_value=((0, 1),) * 3)
WHOLE_GROUP = RetainedHeads(query=((0, 1), (2, 3), (0, 1)), key_value=((0,), (1,), (0,)))
ONE_OF_ONE_GROUP = RetainedHeads(query=((3,), (0,), (2,)), key_value=((1,), (0,), (1,)))
COPIED_THREE = RetainedHeads(
    query=((0, 1, 3), (0, 2, 3), (1, 2, 3)), key_value=((0, 0, 1), (0, 1, 1), (0, 1, 1))
)
HIDDEN = RetainedHidden(channels=(0, 3, 4, 7, 8, 11, 15, 16, 20, 22, 27, 31))
NEURONS = RetainedNeurons(neurons=((0, 1, 5, 23), (2, 3, 8, 9), (7, 11, 12, 20)))


@pytest.fixture(params=["llama", "qwen2", "qwen3"])
def family(request):
    return request.param


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def model(request, family, make_model):
    return canonical(make_model(family, tie_word_embeddings=request.param))


def everything(shape: Shape) -> Cut:
    layers = shape.num_hidden_layers
    return Cut(
        heads=RetainedHeads(
            query=(tuple(range(shape.num_attention_heads)),) * layers,
            key_value=(tuple(range(shape.num_key_value_heads)),) * layers,
        ),
        hidden=RetainedHidden(channels=tuple(range(shape.hidden_size))),
        mlp=RetainedNeurons(neurons=(tuple(range(shape.intermediate_size)),) * layers),
        layers=RetainedLayers(layers=tuple(range(layers))),
    )


def masked_logits(model, tokens_BT, heads=None, neurons=None):
    """The model with the inputs of o and down zeroed wherever something is not kept."""
    head_dim = model.config.head_dim

    def keeping(kept):
        def hook(module, args):
            mask = torch.zeros(args[0].shape[-1])
            mask[list(kept)] = 1
            return (args[0] * mask, *args[1:])

        return hook

    with ExitStack() as stack:
        for index, layer in enumerate(modules_of(model).layers):
            if heads is not None:
                entries = [h * head_dim + i for h in heads.query[index] for i in range(head_dim)]
                handle = layer.attention_output.register_forward_pre_hook(keeping(entries))
                stack.callback(handle.remove)
            if neurons is not None:
                handle = layer.down.register_forward_pre_hook(keeping(neurons.neurons[index]))
                stack.callback(handle.remove)
        return model(tokens_BT).logits


def assert_config_agrees(model):
    """Shapes of all tensors are those of a fresh model of the same configuration."""
    fresh = AutoModelForCausalLM.from_config(model.config)
    fresh.load_state_dict(model.state_dict(), strict=True)
    counted = sum(parameter.numel() for parameter in model.parameters())
    assert Shape.of(model.config).total_parameters == counted


def test_keeping_everything_gives_identical_logits(model, tokens_BT):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    same = apply_cut(model, everything(Shape.of(model.config)))
    assert same is not model
    assert type(same) is type(model)
    assert torch.equal(same(tokens_BT).logits, model(tokens_BT).logits)
    with torch.no_grad():
        for parameter in same.parameters():
            parameter.zero_()
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("heads", [ONE_OF_EACH_GROUP, WHOLE_GROUP, ONE_OF_ONE_GROUP])
def test_pruned_heads_equal_masked_heads(model, tokens_BT, heads):
    pruned = slice_heads(model, heads)
    assert_config_agrees(pruned)
    assert pruned.config.num_attention_heads == len(heads.query[0])
    assert pruned.config.num_key_value_heads == len(heads.key_value[0])
    masked = masked_logits(model, tokens_BT, heads=heads)
    assert (masked - model(tokens_BT).logits).abs().max() > 1e-2
    torch.testing.assert_close(pruned(tokens_BT).logits, masked, rtol=0, atol=1e-5)


def test_copied_keys_and_values_change_nothing(model, tokens_BT):
    copied = slice_heads(model, RetainedHeads(query=((0, 1, 2, 3),) * 3, key_value=((0, 0, 1, 1),) * 3))
    assert copied.config.num_key_value_heads == 4
    torch.testing.assert_close(copied(tokens_BT).logits, model(tokens_BT).logits, rtol=0, atol=1e-6)


def test_any_heads_go_after_copying(family, make_model, tokens_BT):
    model = canonical(make_model(family, hidden_size=24))
    pruned = slice_heads(model, COPIED_THREE)
    assert_config_agrees(pruned)
    masked = masked_logits(model, tokens_BT, heads=COPIED_THREE)
    torch.testing.assert_close(pruned(tokens_BT).logits, masked, rtol=0, atol=1e-5)


def test_pruned_neurons_equal_masked_neurons(model, tokens_BT):
    pruned = slice_mlp(model, NEURONS)
    assert_config_agrees(pruned)
    assert pruned.config.intermediate_size == 4
    masked = masked_logits(model, tokens_BT, neurons=NEURONS)
    assert (masked - model(tokens_BT).logits).abs().max() > 1e-2
    torch.testing.assert_close(pruned(tokens_BT).logits, masked, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kept", [(0, 2), (1,), (1, 2)])
def test_removed_layers_equal_skipped_layers(model, tokens_BT, kept):
    pruned = slice_layers(model, RetainedLayers(layers=kept))
    assert_config_agrees(pruned)
    assert pruned.config.num_hidden_layers == len(kept)

    def skip(module, args, output):
        return args[0]

    with ExitStack() as stack:
        for index, layer in enumerate(modules_of(model).layers):
            if index not in kept:
                stack.callback(layer.whole.register_forward_hook(skip).remove)
        skipped = model(tokens_BT).logits
    assert torch.equal(pruned(tokens_BT).logits, skipped)


def test_hidden_slice_holds_exactly_the_kept_channels(model, tokens_BT):
    pruned = slice_hidden(model, HIDDEN)
    assert_config_agrees(pruned)
    assert pruned.config.hidden_size == 12
    assert pruned.config.head_dim == model.config.head_dim
    sliced = pruned.state_dict()
    for name, tensor in model.state_dict().items():
        expected = tensor
        for axis, dimension in enumerate(locate(name).dimensions):
            if dimension is Dimension.HIDDEN:
                expected = expected[(slice(None),) * axis + (list(HIDDEN.channels),)]
        assert torch.equal(sliced[name], expected), name
    assert pruned(tokens_BT).logits.isfinite().all()


def test_silent_channels_go_up_to_the_norms_denominator(family, make_model, tokens_BT):
    """With channels that nothing writes and a norm rescaled for their share, the cut is exact."""
    model = canonical(make_model(family, rms_norm_eps=1e-12))
    gone = [channel for channel in range(32) if channel not in HIDDEN.channels]
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            dimensions = locate(name).dimensions
            if dimensions == (Dimension.HIDDEN,) and "bias" not in name:
                continue
            for axis, dimension in enumerate(dimensions):
                if dimension is Dimension.HIDDEN:
                    tensor.index_fill_(axis, torch.tensor(gone), 0.0)
    pruned = slice_hidden(model, HIDDEN)
    with torch.no_grad():
        for name, tensor in pruned.state_dict().items():
            if locate(name).dimensions == (Dimension.HIDDEN,) and "bias" not in name:
                tensor.mul_((32 / 12) ** 0.5)
    torch.testing.assert_close(pruned(tokens_BT).logits, model(tokens_BT).logits, rtol=0, atol=1e-4)


def test_all_axes_at_once_equal_one_after_the_other(model, tokens_BT, tmp_path):
    cut = Cut(heads=ONE_OF_EACH_GROUP, hidden=HIDDEN, mlp=NEURONS, layers=RetainedLayers(layers=(0, 2)))
    joint = apply_cut(model, cut)
    one_by_one = slice_layers(
        slice_mlp(slice_hidden(slice_heads(model, cut.heads), cut.hidden), cut.mlp), cut.layers
    )
    assert joint.config.to_dict() == one_by_one.config.to_dict()
    logits = joint(tokens_BT).logits
    assert torch.equal(logits, one_by_one(tokens_BT).logits)
    assert_config_agrees(joint)

    joint.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    assert type(again) is type(model)
    assert torch.equal(again(tokens_BT).logits, logits)


def test_a_joint_cut_may_pass_through_a_shape_no_llama_has(make_model):
    model = make_model("llama")
    with pytest.raises(RecipeError, match="hidden_size 32 is no multiple of num_attention_heads 3"):
        slice_heads(model, COPIED_THREE)
    pruned = apply_cut(model, Cut(heads=COPIED_THREE, hidden=HIDDEN))
    assert (pruned.config.hidden_size, pruned.config.num_attention_heads) == (12, 3)


def test_biases_of_the_mlp_are_cut_too(make_model, tokens_BT):
    model = make_model("llama", mlp_bias=True)
    pruned = slice_mlp(model, NEURONS)
    masked = masked_logits(model, tokens_BT, neurons=NEURONS)
    torch.testing.assert_close(pruned(tokens_BT).logits, masked, rtol=0, atol=1e-5)


def test_type_mode_and_generation_defaults_descend(make_model):
    model = make_model("qwen3").to(torch.bfloat16).train()
    model.generation_config.max_new_tokens = 17
    state = torch.get_rng_state()
    pruned = slice_layers(model, RetainedLayers(layers=(0,)))
    assert torch.equal(torch.get_rng_state(), state)
    assert isinstance(pruned, Qwen3ForCausalLM)
    assert {parameter.dtype for parameter in pruned.parameters()} == {torch.bfloat16}
    assert pruned.model.rotary_emb.inv_freq.dtype == torch.float32
    assert pruned.training
    assert pruned.generation_config.max_new_tokens == 17
    assert all(parameter.requires_grad for parameter in pruned.parameters())


def test_tied_embeddings_stay_tied(make_model):
    for tied in (True, False):
        pruned = slice_hidden(make_model("llama", tie_word_embeddings=tied), HIDDEN)
        assert (pruned.lm_head.weight is pruned.model.embed_tokens.weight) is tied


def test_entries_per_layer_follow_the_layers(make_model):
    model = make_model("qwen3", use_sliding_window=True, sliding_window=4, max_window_layers=3)
    pruned = slice_layers(model, RetainedLayers(layers=(0, 2)))
    assert pruned.config.layer_types == ["full_attention"] * 2
    assert pruned.config.max_window_layers == 2


def test_a_raw_qwen2_is_sent_through_canonical(make_model):
    with pytest.raises(UnsupportedModelError, match="canonical"):
        slice_layers(make_model("qwen2"), RetainedLayers(layers=(0,)))
