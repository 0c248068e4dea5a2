"""Channel scores against autograd, one prediction at a time."""

import torch

from pruning.importance.channel_gradient import score_channels


def test_the_closed_form_is_the_gradient(make_model, calibration, steps):
    model = make_model("qwen2")
    squares_C = torch.zeros(24, dtype=torch.float64)
    for batch in calibration:
        with torch.no_grad():
            hidden_BTC = model.model(
                batch.tokens_BT, attention_mask=batch.attention_mask_BT
            ).last_hidden_state
        for row, column in batch.target_mask_BT.nonzero().tolist():
            state_C = hidden_BTC[row, column - 1].clone().requires_grad_()
            chosen = model.lm_head(state_C).log_softmax(-1)[batch.tokens_BT[row, column]]
            (gradient_C,) = torch.autograd.grad(chosen, state_C)
            squares_C += (gradient_C * state_C.detach()).double().square()
    found_C = score_channels(model, calibration, steps)
    torch.testing.assert_close(found_C, squares_C.sqrt(), rtol=1e-4, atol=1e-5)
    assert steps.seen == [(1, 2), (2, 2)]


def test_a_channel_that_the_head_does_not_read_scores_zero(make_model, calibration, steps):
    model = make_model(tie_word_embeddings=False)
    with torch.no_grad():
        model.lm_head.weight[:, 5] = 0
    scores_C = score_channels(model, calibration, steps)
    assert scores_C[5] == 0
    assert (scores_C > 0).sum() == 23


def test_padding_changes_nothing(make_model, calibration, padded, steps):
    model = make_model("qwen3")
    torch.testing.assert_close(
        score_channels(model, padded, steps),
        score_channels(model, calibration, steps),
        rtol=0,
        atol=1e-5,
    )
