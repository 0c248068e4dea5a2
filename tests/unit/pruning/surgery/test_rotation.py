"""A rotated stream gives the same logits, and its slices are exact where nothing was cut off."""

import pytest
import torch

from pruning.importance.calibration import CalibrationBatch
from pruning.importance.directions import principal_directions
from pruning.repair import repair
from pruning.surgery.canonical import canonical
from pruning.surgery.retained import Cut, RetainedHidden
from pruning.surgery.rotation import rotated, rotated_shape
from pruning.surgery.shape import Shape
from pruning.surgery.slicing import apply_cut


def drawn_basis(channels: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    drawn = torch.randn(channels, channels, generator=generator, dtype=torch.float64)
    return torch.linalg.qr(drawn).Q


def batches(tokens_BT: torch.Tensor) -> list[CalibrationBatch]:
    real_BT = torch.ones_like(tokens_BT, dtype=torch.bool)
    real_BT[0, 7:] = False
    target_BT = real_BT.clone()
    target_BT[:, 0] = False
    return [CalibrationBatch(tokens_BT, real_BT, target_BT)]


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("llama", {"tie_word_embeddings": True}),
        ("llama", {"attention_bias": True, "mlp_bias": True}),
        ("qwen3", {"attention_bias": True}),
        ("qwen3", {"tie_word_embeddings": True}),
        ("qwen2", {}),
    ],
)
def test_the_function_stays(make_model, tokens_BT, family, options):
    model = canonical(make_model(family, **options))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    turned = rotated(model, drawn_basis(32))
    torch.testing.assert_close(turned(tokens_BT).logits, model(tokens_BT).logits, rtol=1e-5, atol=1e-5)
    assert Shape.of(turned.config) == rotated_shape(Shape.of(model.config))
    assert turned.lm_head.weight is not turned.model.embed_tokens.weight
    assert (turned.model.norm.weight == 1).all()
    assert (turned.model.layers[1].input_layernorm.weight == 1).all()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_directions_are_orthonormal_and_the_first_carry_most(make_model, tokens_BT):
    model = make_model("llama")
    told = []
    basis_CC = principal_directions(model, batches(tokens_BT), lambda *count: told.append(count))
    assert told == [(1, 1)]
    torch.testing.assert_close(basis_CC.T @ basis_CC, torch.eye(32, dtype=torch.float64))
    assert torch.equal(basis_CC, principal_directions(model, batches(tokens_BT), lambda *_: None))

    energy = torch.zeros(32, dtype=torch.float64)

    def add(_: object, arguments: tuple[torch.Tensor, ...]) -> None:
        real = arguments[0][batches(tokens_BT)[0].attention_mask_BT].double()
        unit = real / real.square().mean(-1, keepdim=True).sqrt()
        energy.add_((unit @ basis_CC).square().sum(0))

    norms = [model.model.norm]
    for layer in model.model.layers:
        norms += [layer.input_layernorm, layer.post_attention_layernorm]
    for norm in norms:
        norm.register_forward_pre_hook(add)
    model(tokens_BT)
    assert (energy.diff() <= 1e-9).all()


def test_a_stream_of_few_dimensions_is_cut_to_them_without_loss(make_model, tokens_BT):
    model = make_model("llama")
    room_CK = drawn_basis(32)[:, :20].float()
    into_CC = room_CK @ room_CK.T
    with torch.no_grad():  # all that is written into the stream lies in 20 dimensions
        model.model.embed_tokens.weight.copy_(model.model.embed_tokens.weight @ into_CC)
        for layer in model.model.layers:
            for writer in (layer.self_attn.o_proj, layer.mlp.down_proj):
                writer.weight.copy_(into_CC @ writer.weight)
    calibration = batches(tokens_BT)
    turned = rotated(model, principal_directions(model, calibration, lambda *_: None))
    cut = Cut(hidden=RetainedHidden(channels=tuple(range(20))))
    small = apply_cut(turned, cut)
    assert not torch.allclose(small(tokens_BT).logits, model(tokens_BT).logits, atol=1e-2)
    repair(turned, small, cut, calibration, 0.01, lambda *_: None)
    torch.testing.assert_close(small(tokens_BT).logits, model(tokens_BT).logits, rtol=1e-3, atol=1e-3)


def test_a_token_that_enters_as_nothing_spoils_nothing(make_model, tokens_BT):
    model = make_model("llama")
    with torch.no_grad():
        model.model.embed_tokens.weight[tokens_BT[0, 0]] = 0
    calibration = batches(tokens_BT)
    turned = rotated(model, principal_directions(model, calibration, lambda *_: None))
    torch.testing.assert_close(turned(tokens_BT).logits, model(tokens_BT).logits, rtol=1e-5, atol=1e-5)
    cut = Cut(hidden=RetainedHidden(channels=tuple(range(20))))
    small = apply_cut(turned, cut)
    repair(turned, small, cut, calibration, 0.01, lambda *_: None)
    assert small(tokens_BT).logits.isfinite().all()
