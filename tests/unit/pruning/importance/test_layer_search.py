"""The greedy order against rebuilding the model for every candidate."""

import pytest
import torch

from pruning.importance.layer_search import search_layers
from pruning.surgery.retained import RetainedLayers
from pruning.surgery.slicing import slice_layers


def loss_of(model, calibration):
    """Mean negative log-likelihood of all target tokens, from whole forward passes."""
    losses = []
    with torch.no_grad():
        for batch in calibration:
            logits = model(batch.tokens_BT, attention_mask=batch.attention_mask_BT).logits
            for row, column in batch.target_mask_BT.nonzero().tolist():
                logprobs = logits[row, column - 1].log_softmax(-1)
                losses.append(-float(logprobs[batch.tokens_BT[row, column]]))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_skipping_equals_rebuilding(make_model, calibration, steps, family):
    model = make_model(family, num_hidden_layers=4)
    alive, order, losses = [0, 1, 2, 3], [], [loss_of(model, calibration)]
    while len(alive) > 1:
        candidates = {}
        for layer in alive:
            rest = tuple(index for index in alive if index != layer)
            candidates[layer] = loss_of(slice_layers(model, RetainedLayers(layers=rest)), calibration)
        worst = min(candidates, key=candidates.__getitem__)
        order.append(worst)
        losses.append(candidates[worst])
        alive.remove(worst)
    found_order, found_losses = search_layers(model, calibration, steps)
    assert found_order.tolist() == order
    torch.testing.assert_close(found_losses, torch.tensor(losses, dtype=torch.float64), rtol=0, atol=1e-5)
    assert steps.seen == [(1, 3), (2, 3), (3, 3)]


def test_a_layer_that_writes_nothing_goes_first(make_model, calibration, steps):
    model = make_model()
    with torch.no_grad():
        model.model.layers[1].self_attn.o_proj.weight.zero_()
        model.model.layers[1].mlp.down_proj.weight.zero_()
    # Taught on the calibration users, the other layers have something to lose.
    optimiser = torch.optim.Adam(
        [*model.model.layers[0].parameters(), *model.model.layers[2].parameters()], lr=0.02
    )
    for _ in range(30):
        for batch in calibration:
            rows_N, columns_N, labels_N = batch.predictions()
            logits_NV = model(batch.tokens_BT).logits[rows_N, columns_N]
            torch.nn.functional.cross_entropy(logits_NV, labels_N).backward()
            optimiser.step()
            model.zero_grad()
    order, losses = search_layers(model, calibration, steps)
    assert order[0] == 1
    assert losses[1] == pytest.approx(float(losses[0]), abs=1e-9)
    assert losses[2] > losses[1] + 0.1


def test_padding_changes_nothing(make_model, calibration, padded, steps):
    model = make_model("qwen3")
    order, losses = search_layers(model, calibration, steps)
    padded_order, padded_losses = search_layers(model, padded, steps)
    assert torch.equal(order, padded_order)
    torch.testing.assert_close(padded_losses, losses, rtol=0, atol=1e-5)


def test_one_layer_has_no_order(make_model, calibration, steps):
    order, losses = search_layers(make_model(num_hidden_layers=1), calibration, steps)
    assert order.tolist() == []
    assert len(losses) == 1
