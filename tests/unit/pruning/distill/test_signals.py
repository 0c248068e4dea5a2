import math

import pytest
import torch

from pruning.distill.objective import Distillation, DistillationConfig, among_vocabulary
from pruning.distill.signals import DenseSignal, TopSignal
from pruning.distill.sources import CachedSignal
from pruning.training.batches import collate
from pruning.training.windows import Window


def dense(*rows: list[float]) -> DenseSignal:
    return DenseSignal(torch.tensor(rows).log())


def test_forward_kl_by_hand() -> None:
    student = torch.tensor([[0.25, 0.25, 0.5]]).log()
    divergence = dense([0.5, 0.25, 0.25]).forward_kl(student)
    by_hand = 0.5 * math.log(0.5 / 0.25) + 0.25 * math.log(0.25 / 0.25) + 0.25 * math.log(0.25 / 0.5)
    assert divergence.item() == pytest.approx(by_hand, abs=1e-6)


def test_top_signal_puts_the_rest_into_one_bucket() -> None:
    student = torch.tensor([[0.2, 0.3, 0.1, 0.4]]).log()
    signal = TopSignal.of(torch.tensor([[0.6, 0.2, 0.15, 0.05]]).log(), 2)
    assert signal.ids_PK.tolist() == [[0, 1]]
    by_hand = 0.6 * math.log(0.6 / 0.2) + 0.2 * math.log(0.2 / 0.3) + 0.2 * math.log(0.2 / 0.5)
    assert signal.forward_kl(student).item() == pytest.approx(by_hand, abs=1e-5)


def test_top_signal_is_a_lower_bound_and_exact_with_the_whole_vocabulary() -> None:
    torch.manual_seed(0)
    teacher, student = torch.randn(20, 11), torch.randn(20, 11).log_softmax(-1)
    whole = DenseSignal(teacher.log_softmax(-1)).forward_kl(student)
    torch.testing.assert_close(
        TopSignal.of(teacher.log_softmax(-1), 11).forward_kl(student), whole, atol=1e-5, rtol=0
    )
    for k in (1, 4, 8):
        assert (TopSignal.of(teacher.log_softmax(-1), k).forward_kl(student) <= whole + 1e-5).all()


def test_equal_distributions_diverge_by_nothing_and_pull_nowhere() -> None:
    torch.manual_seed(0)
    logits = torch.randn(5, 9, requires_grad=True)
    for signal in (
        DenseSignal(logits.detach().log_softmax(-1)),
        TopSignal.of(logits.detach().log_softmax(-1), 3),
    ):
        loss = signal.forward_kl(logits.log_softmax(-1)).sum()
        (gradient,) = torch.autograd.grad(loss, logits)
        assert loss.item() == pytest.approx(0, abs=1e-5)
        assert gradient.abs().max().item() < 1e-5


def test_a_certain_teacher_gives_a_finite_loss_and_gradient() -> None:
    teacher = torch.tensor([[60.0, 0.0, 0.0, -60.0]])
    student = torch.tensor([[-40.0, 40.0, 0.0, 0.0]], requires_grad=True)
    loss = TopSignal.of(teacher.log_softmax(-1), 2).forward_kl(student.log_softmax(-1)).sum()
    loss.backward()
    assert torch.isfinite(loss)
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()


def test_the_objective_weighs_truth_and_teacher() -> None:
    batch = collate([Window((0, 1, 2), (1,), (3,))], [0])
    logits_PV = torch.tensor([[0.1, 0.7, 0.2], [0.2, 0.2, 0.6]]).log()
    signal = dense([0.1, 0.8, 0.1], [0.3, 0.3, 0.4])

    class Fixed:
        def signal(self, batch: object) -> DenseSignal:
            return signal

    config = DistillationConfig(cross_entropy=0.3, forward_kl=0.5, signal=CachedSignal(kind="cached"))
    truth = -(math.log(0.7) + math.log(0.6)) / 2
    divergence = signal.forward_kl(logits_PV).mean().item()
    loss = Distillation(config, Fixed(), among_vocabulary)(logits_PV, batch).item()
    assert loss == pytest.approx(0.3 * truth + 0.5 * divergence, abs=1e-6)


def test_the_truth_alone_asks_nobody() -> None:
    """What a control learns from the data alone is cross-entropy, and no teacher is there to be asked."""
    batch = collate([Window((0, 1, 2), (1,), (3,))], [0])
    logits_PV = torch.tensor([[0.1, 0.7, 0.2], [0.2, 0.2, 0.6]]).log()
    config = DistillationConfig(cross_entropy=1.0, forward_kl=0.0)
    loss = Distillation(config, None, among_vocabulary)(logits_PV, batch).item()
    assert loss == pytest.approx(-(math.log(0.7) + math.log(0.6)) / 2, abs=1e-6)
