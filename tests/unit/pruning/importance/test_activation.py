"""Activation scores against hooks read naively, token by token."""

from __future__ import annotations

import pytest
import torch

from pruning.importance.activation import ActivationImportance
from pruning.importance.selection import select_layers, select_neurons
from pruning.surgery.shape import Shape

AXES = ("heads", "hidden", "mlp", "layers")


def naive(model, calibration):
    """Every definition written out, from whole forward passes one user at a time."""
    layers = model.model.layers
    heads = torch.zeros(3, 4, dtype=torch.float64)
    neurons = torch.zeros(3, 20, dtype=torch.float64)
    hidden = torch.zeros(24, dtype=torch.float64)
    influence = torch.zeros(3, dtype=torch.float64)
    tokens = 0
    for batch in calibration:
        for row, real in zip(batch.tokens_BT, batch.attention_mask_BT, strict=True):
            seen = {}

            def keep(name, seen=seen):
                return lambda _, args, output: seen.update({name: (args[0], output)})

            handles = [model.model.norm.register_forward_hook(keep("norm"))]
            for index, layer in enumerate(layers):
                for name in (
                    "self_attn.o_proj",
                    "mlp.down_proj",
                    "mlp.gate_proj",
                    "mlp.up_proj",
                    "input_layernorm",
                    "post_attention_layernorm",
                    "",
                ):
                    module = layer.get_submodule(name)
                    handles.append(module.register_forward_hook(keep((index, name))))
            with torch.no_grad():
                model(row[real][None])
            for handle in handles:
                handle.remove()
            for token in range(int(real.sum())):
                tokens += 1
                hidden += seen["norm"][1][0, token].abs()
                for index in range(3):
                    mixed = seen[index, "self_attn.o_proj"][0][0, token]
                    for head in range(4):
                        heads[index, head] += mixed[head * 6 : head * 6 + 6].norm()
                    gate = torch.nn.functional.silu(seen[index, "mlp.gate_proj"][1][0, token])
                    neurons[index] += (gate * seen[index, "mlp.up_proj"][1][0, token]).abs()
                    hidden += seen[index, "input_layernorm"][1][0, token].abs()
                    hidden += seen[index, "post_attention_layernorm"][1][0, token].abs()
                    before, after = seen[index, ""][0][0, token], seen[index, ""][1][0, token]
                    cosine = (before @ after) / (before.norm() * after.norm())
                    influence[index] += 1 - cosine
    return heads / tokens, hidden / tokens, neurons / tokens, influence / tokens


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_one_pass_equals_the_definitions(make_model, calibration, steps, family):
    model = make_model(family)
    scores = ActivationImportance().score(model, calibration, AXES, Shape.of(model.config), steps)
    for axis, expected in zip(AXES, naive(model, calibration), strict=True):
        torch.testing.assert_close(scores[axis].values, expected, rtol=1e-4, atol=1e-5)
    influence = scores["layers"].values
    assert scores["layers"].removal_order.tolist() == influence.argsort()[:-1].tolist()
    assert steps.seen == [(1, 2), (2, 2)]


def test_only_the_axes_asked_for(make_model, calibration, steps):
    model = make_model()
    scores = ActivationImportance().score(model, calibration, ["mlp"], Shape.of(model.config), steps)
    assert set(scores) == {"mlp"}


def test_the_silent_go_first(make_model, calibration, steps):
    model = make_model()
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[7] = 0
        model.model.layers[1].self_attn.o_proj.weight.zero_()
        model.model.layers[1].mlp.down_proj.weight.zero_()
    scores = ActivationImportance().score(model, calibration, AXES, Shape.of(model.config), steps)
    assert scores["mlp"].values[0, 7] == 0
    assert 7 not in select_neurons(scores["mlp"].values, 19).neurons[0]
    assert scores["layers"].values[1] == pytest.approx(0, abs=1e-9)
    assert select_layers(scores["layers"], 2).layers == (0, 2)


def test_padding_changes_nothing(make_model, calibration, padded, steps):
    model = make_model("qwen3")
    shape = Shape.of(model.config)
    method = ActivationImportance()
    expected = method.score(model, calibration, AXES, shape, steps)
    for axis, found in method.score(model, padded, AXES, shape, steps).items():
        torch.testing.assert_close(found.values, expected[axis].values, rtol=1e-5, atol=1e-6)


def test_no_hook_stays_behind(make_model, calibration, steps):
    model = make_model()
    ActivationImportance().score(model, calibration, AXES, Shape.of(model.config), steps)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
