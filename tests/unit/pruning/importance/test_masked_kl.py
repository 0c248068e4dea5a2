"""Head scores against a naive loop over whole forward passes, and by hand."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
import torch

from pruning.errors import RecipeError
from pruning.importance import masked_kl
from pruning.importance.masked_kl import min_max, score_heads
from pruning.importance.selection import select_layer_heads
from pruning.surgery.shape import Shape


def naive_scores(model, calibration, target):
    """The definition: every masked model in whole, one at a time."""
    shape = Shape.of(model.config)
    head_dim = shape.head_dim
    gone = {layer: set() for layer in range(shape.num_hidden_layers)}

    def log_probabilities(extra=None):
        found = []
        with ExitStack() as stack, torch.no_grad():
            for index, layer in enumerate(model.model.layers):
                masked = gone[index] | ({extra[1]} if extra and extra[0] == index else set())

                def hook(module, args, masked=frozenset(masked)):
                    heads = args[0].clone()
                    for head in masked:
                        heads[..., head * head_dim : (head + 1) * head_dim] = 0
                    return (heads,)

                handle = layer.self_attn.o_proj.register_forward_pre_hook(hook)
                stack.callback(handle.remove)
            for batch in calibration:
                logits = model(batch.tokens_BT, attention_mask=batch.attention_mask_BT).logits
                for row, column in batch.target_mask_BT.nonzero().tolist():
                    found.append(logits[row, column - 1].log_softmax(-1))
        return torch.stack(found).double()

    intact = log_probabilities()
    scores = []
    for layer in range(shape.num_hidden_layers):
        harm = torch.stack(
            [
                (intact.exp() * (intact - log_probabilities((layer, head)))).sum(-1).mean()
                for head in range(shape.num_attention_heads)
            ]
        )
        scaled = (harm - harm.min()) / (harm.max() - harm.min())
        scores.append(0.7 * scores[-1] + 0.3 * scaled if scores else scaled)
        kept, _ = select_layer_heads(scores[-1], shape, target)
        gone[layer] = set(range(shape.num_attention_heads)) - set(kept)
    return torch.stack(scores)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("kept", [(2, 1), (2, 2), (3, 3)])
def test_cached_passes_equal_whole_passes(make_model, calibration, steps, family, attention, kept):
    model = make_model(family, attn_implementation=attention)
    target = Shape.of(model.config).resized(num_attention_heads=kept[0], num_key_value_heads=kept[1])
    found = score_heads(model, calibration, target, steps)
    torch.testing.assert_close(found, naive_scores(model, calibration, target), rtol=0, atol=1e-4)
    assert steps.seen == [(1, 3), (2, 3), (3, 3)]


def test_how_much_runs_at_once_changes_nothing(make_model, calibration, steps, monkeypatch):
    model = make_model()
    target = Shape.of(model.config).resized(num_attention_heads=2, num_key_value_heads=1)
    whole = score_heads(model, calibration, target, steps)
    monkeypatch.setattr(masked_kl, "_TOKENS_AT_ONCE", 60)
    monkeypatch.setattr("pruning.importance.forward._LOGITS_AT_ONCE", 200)
    torch.testing.assert_close(score_heads(model, calibration, target, steps), whole, rtol=0, atol=1e-6)


def test_a_silent_head_scores_zero_and_goes_first(make_model, calibration, steps):
    model = make_model()
    shape = Shape.of(model.config)
    with torch.no_grad():
        model.model.layers[0].self_attn.o_proj.weight[:, 6:12] = 0
    target = shape.resized(num_attention_heads=3, num_key_value_heads=3)
    scores_LH = score_heads(model, calibration, target, steps)
    assert scores_LH[0, 1] == 0
    assert (scores_LH[0, [0, 2, 3]] > 0.01).all()
    assert select_layer_heads(scores_LH[0], shape, target)[0] == (0, 2, 3)


def test_padding_changes_nothing(make_model, calibration, padded, steps):
    model = make_model("qwen3")
    target = Shape.of(model.config).resized(num_attention_heads=2, num_key_value_heads=1)
    torch.testing.assert_close(
        score_heads(model, padded, target, steps),
        score_heads(model, calibration, target, steps),
        rtol=0,
        atol=1e-5,
    )


def test_the_model_is_left_as_it_was(make_model, calibration, steps):
    model = make_model().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    score_heads(model, calibration, Shape.of(model.config), steps)
    assert model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_min_max_by_hand():
    assert min_max(torch.tensor([1.0, 3.0, 2.0])).tolist() == [0.0, 1.0, 0.5]
    assert min_max(torch.tensor([2.0, 2.0])).tolist() == [0.0, 0.0]


def test_an_illegal_target_is_refused(make_model, calibration, steps):
    model = make_model()
    with pytest.raises(RecipeError, match="legal are"):
        score_heads(model, calibration, Shape.of(model.config).resized(num_attention_heads=3), steps)
