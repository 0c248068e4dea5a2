"""Top-n frequencies against a naive count."""

from collections import Counter

import torch

from pruning.importance.neuron_frequency import score_neurons


def test_frequency_equals_a_naive_count(make_model, calibration, steps):
    model = make_model("llama")
    counts = [Counter() for _ in range(3)]
    predictions = 0
    for batch in calibration:
        outputs = {}

        def keep(index, outputs=outputs):
            return lambda _, __, found: outputs.update({index: found})

        handles = [
            layer.mlp.up_proj.register_forward_hook(keep(index))
            for index, layer in enumerate(model.model.layers)
        ]
        with torch.no_grad():
            model(batch.tokens_BT, attention_mask=batch.attention_mask_BT)
        for handle in handles:
            handle.remove()
        for row, column in batch.target_mask_BT.nonzero().tolist():
            predictions += 1
            for index, output in outputs.items():
                values = output[row, column - 1].tolist()
                order = sorted(range(len(values)), key=lambda neuron: -values[neuron])
                counts[index].update(order[:6])
    expected = torch.tensor([[count[neuron] / predictions for neuron in range(20)] for count in counts])
    found_LF = score_neurons(model, calibration, 6, steps)
    torch.testing.assert_close(found_LF, expected.double(), rtol=0, atol=1e-6)
    torch.testing.assert_close(found_LF.sum(dim=1), torch.full((3,), 6.0, dtype=torch.float64))
    assert steps.seen == [(1, 2), (2, 2)]


def test_sign_counts_as_published(make_model, calibration, steps):
    model = make_model("llama", mlp_bias=True)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.bias[4] = 1e3
        model.model.layers[1].mlp.up_proj.bias[9] = -1e3
    scores_F = score_neurons(model, calibration, 5, steps)[1]
    assert scores_F[4] == 1
    assert scores_F[9] == 0


def test_padding_changes_nothing(make_model, calibration, padded, steps):
    model = make_model("qwen3")
    assert torch.equal(score_neurons(model, padded, 6, steps), score_neurons(model, calibration, 6, steps))
