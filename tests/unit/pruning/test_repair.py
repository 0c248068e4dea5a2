"""Closed-form repair: exact where nothing is missing, nearer to the teacher where something is."""

import copy

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from pruning.importance.activation import ActivationImportance
from pruning.importance.calibration import CalibrationBatch
from pruning.importance.random_choice import RandomImportance
from pruning.importance.selection import select
from pruning.repair import repair, ridge_fit
from pruning.surgery.adapter import redrawn
from pruning.surgery.retained import Cut, RetainedHidden, RetainedLayers, RetainedNeurons
from pruning.surgery.shape import Shape
from pruning.surgery.slicing import apply_cut


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=24,
        intermediate_size=32,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.2,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def calibration() -> list[CalibrationBatch]:
    torch.manual_seed(1)
    batches = []
    for width in (17, 23):
        tokens_BT = torch.randint(0, 50, (12, width))
        real_BT = torch.arange(width) < torch.randint(5, width, (12, 1))
        target_BT = real_BT.clone()
        target_BT[:, 0] = False
        batches.append(CalibrationBatch(tokens_BT, real_BT, target_BT))
    return batches


def error(model, other, calibration: list[CalibrationBatch]) -> float:
    """Mean squared difference of the final hidden states on real tokens."""
    squares, count = 0.0, 0
    with torch.no_grad():
        for batch in calibration:
            a, b = (
                m.model(batch.tokens_BT).last_hidden_state[batch.attention_mask_BT] for m in (model, other)
            )
            squares += ((a - b) ** 2).sum().item()
            count += a.numel()
    return squares / count


def test_ridge_fit_is_least_squares_with_a_penalty() -> None:
    torch.manual_seed(0)
    x, residual = torch.randn(40, 6, dtype=torch.float64), torch.randn(40, 3, dtype=torch.float64)
    gram, cross = x.T @ x, x.T @ residual
    exact = torch.linalg.lstsq(x, residual).solution
    torch.testing.assert_close(ridge_fit(gram, cross, 1e-12), exact, atol=1e-8, rtol=1e-6)
    ridge = 0.3
    strengths = ridge * gram.diagonal()[:, None]
    gradient = gram @ ridge_fit(gram, cross, ridge) - cross + strengths * ridge_fit(gram, cross, ridge)
    assert gradient.abs().max().item() < 1e-9
    # An input in other units is worth the same.
    units = torch.tensor([1.0, 1e4, 1, 1, 1e-3, 1], dtype=torch.float64)
    scaled = ridge_fit(gram * units * units[:, None], cross * units[:, None], ridge)
    torch.testing.assert_close(scaled * units[:, None], ridge_fit(gram, cross, ridge))


def test_keeping_everything_changes_nothing(model, calibration) -> None:
    cut = Cut(mlp=RetainedNeurons(neurons=(tuple(range(32)),) * 4))
    after = apply_cut(model, cut)
    repair(model, after, cut, calibration, 0.01, lambda *_: None)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(after.state_dict()[name], tensor, atol=1e-5, rtol=0)


def test_a_neuron_that_another_one_doubles_is_replaced_by_it(calibration) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        initializer_range=0.3,
    )
    model = LlamaForCausalLM(config).eval()
    mlp = model.model.layers[0].mlp
    with torch.no_grad():
        for projection in (mlp.gate_proj, mlp.up_proj):
            projection.weight[1] = projection.weight[0]
    cut = Cut(mlp=RetainedNeurons(neurons=((0, *range(2, 8)),)))
    after = apply_cut(model, cut)
    assert error(model, after, calibration) > 1e-4
    repair(model, after, cut, calibration, 1e-9, lambda *_: None)
    assert error(model, after, calibration) < 1e-8


@pytest.mark.parametrize(
    "sizes",
    [
        {"num_attention_heads": 2, "num_key_value_heads": 1},
        {"intermediate_size": 16},
        {"num_hidden_layers": 2},
        {"hidden_size": 16},
        {"num_attention_heads": 2, "num_key_value_heads": 1, "hidden_size": 16},
    ],
    ids=lambda sizes: "+".join(sizes),
)
def test_repair_brings_the_student_nearer(model, calibration, sizes: dict[str, int]) -> None:
    target = Shape.of(model.config).resized(**sizes)
    axes = {"num_attention_heads": "heads", "hidden_size": "hidden", "intermediate_size": "mlp"}
    axes |= {"num_hidden_layers": "layers"}
    wanted = [axes[size] for size in sizes if size in axes]
    scores = ActivationImportance().score(model, calibration, wanted, target, lambda *_: None)
    cut = select(scores, Shape.of(model.config), target)
    plain, repaired = apply_cut(model, cut), apply_cut(model, cut)
    told: list[tuple[int, int]] = []
    repair(model, repaired, cut, calibration, 0.01, lambda *count: told.append(count))
    layers = repaired.config.num_hidden_layers
    assert told[-1] == (layers, layers)

    def distance(student) -> float:
        kept = torch.tensor(cut.hidden.channels) if cut.hidden else torch.arange(24)
        total = 0.0
        with torch.no_grad():
            for batch in calibration:
                real = batch.attention_mask_BT
                whole_SC, small_SC = _last(model, batch)[real][:, kept], _last(student, batch)[real]
                total += ((whole_SC - small_SC) ** 2).mean().item()
        return total

    assert distance(repaired) < 0.8 * distance(plain)


def _last(model, batch: CalibrationBatch) -> torch.Tensor:
    """The stream before the final norm, whose denominator depends on the width."""
    seen: list[torch.Tensor] = []
    handle = model.model.norm.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    model.model(batch.tokens_BT)
    handle.remove()
    return seen[0]


def test_a_narrower_norm_gives_what_comes_nearest_to_the_wider_one(model, calibration) -> None:
    channels = torch.arange(0, 24, 2)
    cut = Cut(hidden=RetainedHidden(channels=tuple(channels.tolist())))
    plain, matched = apply_cut(model, cut), apply_cut(model, cut)
    repair(model, matched, cut, calibration, 1e9, lambda *_: None)  # so nothing is refitted
    with torch.no_grad():
        tokens_S = torch.cat([batch.tokens_BT[batch.attention_mask_BT] for batch in calibration])
        stream_SC = model.model.embed_tokens(tokens_S)
        wanted_SC = model.model.layers[0].input_layernorm(stream_SC)[:, channels]
        given_SC = plain.model.layers[0].input_layernorm(stream_SC[:, channels])
    best = (wanted_SC * given_SC).sum() / given_SC.square().sum()
    assert abs(best - 1) > 1e-3
    gain_C = matched.model.layers[0].input_layernorm.weight
    torch.testing.assert_close(gain_C, best.expand(12), rtol=1e-4, atol=0)
    assert not torch.equal(matched.model.norm.weight, plain.model.norm.weight)


def test_huge_streams_become_like_the_embeddings_and_point_the_same_way(model, calibration) -> None:
    growing = copy.deepcopy(model)
    with torch.no_grad():
        growing.model.layers[1].mlp.down_proj.weight.mul_(200)
    cut = Cut(layers=RetainedLayers(layers=(0, 1, 3)))
    as_it_is, limited = apply_cut(growing, cut), apply_cut(growing, cut)
    repair(growing, as_it_is, cut, calibration, 0.01, lambda *_: None)
    repair(growing, limited, cut, calibration, 0.01, lambda *_: None, largest=4)
    with torch.no_grad():
        for batch in calibration:
            real = batch.attention_mask_BT
            wanted, huge, small = (_last(m, batch)[real] for m in (growing, as_it_is, limited))
            embeddings = growing.model.embed_tokens(batch.tokens_BT)[real]
            limit = 4 * embeddings.square().mean(-1).sqrt().mean()
            assert huge.square().mean(-1).sqrt().median() > 5 * limit
            sizes, teachers = (stream.square().mean(-1).sqrt() for stream in (small, wanted))
            assert 0.8 * limit < sizes.median() < 1.2 * limit
            assert torch.cosine_similarity(small, wanted, dim=-1).mean() > 0.6
            assert sizes.std() / sizes.mean() < teachers.std() / teachers.mean()


def test_before_is_untouched(model, calibration) -> None:
    stood = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    cut = Cut(layers=RetainedLayers(layers=(0, 3)))
    repair(model, apply_cut(model, cut), cut, calibration, 0.01, lambda *_: None)
    assert all(torch.equal(tensor, stood[name]) for name, tensor in model.state_dict().items())


def test_random_scores_repeat_by_seed(model, calibration) -> None:
    axes, target = ("heads", "hidden", "mlp", "layers"), Shape.of(model.config)
    first, again, other = (
        RandomImportance(seed).score(model, calibration, axes, target, lambda *_: None)
        for seed in (0, 0, 1)
    )
    for axis in axes:
        assert torch.equal(first[axis].values, again[axis].values)
        assert not torch.equal(first[axis].values, other[axis].values)
    assert len(first["layers"].removal_order) == 3


def test_drawn_weights_forget_the_teacher_and_leave_the_generator_alone(model) -> None:
    state = torch.random.get_rng_state()
    fresh, again = redrawn(model, 3), redrawn(model, 3)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert Shape.of(fresh.config) == Shape.of(model.config)
    name = "model.layers.0.mlp.down_proj.weight"
    assert torch.equal(fresh.state_dict()[name], again.state_dict()[name])
    assert not torch.equal(fresh.state_dict()[name], model.state_dict()[name])
