"""The loop: it learns, keeps the best, stops, resumes, and clears half-written checkpoints."""

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from small_run import TITLES, Silent, write_dataset
from transformers import PreTrainedModel

from pruning.errors import TrainingError
from pruning.evaluation import ModelValidation, losses_per_title
from pruning.teacher.scratch import ScratchConfig, base_from_scratch
from pruning.training import loop
from pruning.training.batches import Batch
from pruning.training.decisions import Children, NextDecision, at_decisions
from pruning.training.loop import TrainingConfig, fit
from pruning.training.objective import NextToken
from pruning.training.windows import UserPacker, Window
from recommender.dataset import Dataset
from recommender.prompt import PromptEncoder, PromptTemplate

SHAPE = ScratchConfig(
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
    vocab_size=320,
)


class Work:
    def __init__(self, folder: Path) -> None:
        dataset = Dataset(write_dataset(folder))
        base = base_from_scratch(SHAPE, TITLES, PromptTemplate())
        encoder = PromptEncoder(PromptTemplate(), base.tokenizer)
        self.windows = UserPacker(encoder, TITLES).training(dataset)
        self.validation = ModelValidation(dataset, encoder, 20, seed=0)

    def model(self) -> PreTrainedModel:
        return base_from_scratch(SHAPE, TITLES, PromptTemplate()).model


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Work:
    return Work(tmp_path_factory.mktemp("work"))


def config(**changes: object) -> TrainingConfig:
    return TrainingConfig(**{"epochs": 3, "learning_rate": 5e-3, "tokens_per_batch": 1024, **changes})


def test_it_learns_and_leaves_the_best_weights(work: Work, tmp_path: Path) -> None:
    model = work.model()
    before = work.validation(model)["loss"]
    result = fit(model, work.windows, NextToken(), work.validation, config(), tmp_path, Silent())
    losses = [validation.figures["loss"] for validation in result.validations]
    assert len(losses) == 3
    assert min(losses) < before
    assert result.best.figures["loss"] == min(losses)
    assert work.validation(model)["loss"] == pytest.approx(min(losses), rel=1e-6)


def test_it_learns_at_decisions(work: Work, tmp_path: Path) -> None:
    model, trie = work.model(), work.validation.trie
    before = work.validation(model)["catalogue_loss"]
    objective = NextDecision(Children(trie))
    asked = config(best_by="catalogue_loss")
    result = fit(
        model, at_decisions(work.windows, trie), objective, work.validation, asked, tmp_path, Silent()
    )
    assert result.best.figures["catalogue_loss"] < before


def test_it_stops_when_nothing_gains(work: Work, tmp_path: Path) -> None:
    losses = itertools.chain([3.0, 2.0], itertools.repeat(2.5))
    hits = itertools.chain([0.1, 0.1, 0.2], itertools.repeat(0.15))

    def validate(_: PreTrainedModel) -> dict[str, float]:
        return {"loss": next(losses), "hr10": next(hits)}

    asked = config(epochs=9, patience=2)
    result = fit(work.model(), work.windows, NextToken(), validate, asked, tmp_path, Silent())
    # The last gain is HR@10's at the third validation; two more without one end it.
    assert len(result.validations) == 5
    assert result.best_step == result.validations[1].step


@pytest.mark.parametrize("ranking", ["hr10", "ndcg10"])
def test_the_ranking_chooses_when_asked(work: Work, tmp_path: Path, ranking: str) -> None:
    figures = iter([(3.0, 0.1), (2.0, 0.3), (1.0, 0.2)])

    def validate(_: PreTrainedModel) -> dict[str, float]:
        return dict(zip(("loss", ranking), next(figures), strict=True))

    asked = config(best_by=ranking)
    result = fit(work.model(), work.windows, NextToken(), validate, asked, tmp_path, Silent())
    assert result.best.figures == {"loss": 2.0, ranking: 0.3}


def test_the_ranking_that_chooses_also_says_when_to_stop(work: Work, tmp_path: Path) -> None:
    gains = iter([0.1, 0.2, 0.1, 0.3, 0.1, 0.1])

    def validate(_: PreTrainedModel) -> dict[str, float]:
        return {"loss": 1.0, "hr10": 0.5, "ndcg10": next(gains)}

    asked = config(epochs=9, patience=2, best_by="ndcg10")
    result = fit(work.model(), work.windows, NextToken(), validate, asked, tmp_path, Silent())
    assert len(result.validations) == 6
    assert result.best_step == result.validations[3].step


def test_only_best_and_newest_checkpoints_stay_and_curves_are_logged(work: Work, tmp_path: Path) -> None:
    losses = iter([1.0, 2.0, 3.0, 4.0])
    validate = lambda _: {"loss": next(losses)}  # noqa: E731
    asked = config(epochs=4, patience=9)
    result = fit(work.model(), work.windows, NextToken(), validate, asked, tmp_path, Silent())
    kept = {int(path.name.rpartition("-")[2]) for path in tmp_path.glob("checkpoint-*")}
    assert kept == {result.best_step, result.steps}
    assert list(tmp_path.rglob("events.out.tfevents*"))


class Counting(Silent):
    def __init__(self) -> None:
        super().__init__()
        self.counted: list[tuple[int, int]] = []

    def counter(self, what: str) -> Callable[[int, int], None]:
        return lambda done, total: self.counted.append((done, total))


class InterruptionError(Exception):
    """Stands for whatever ends a process; the kills themselves are in the integration tests."""


def test_a_resumed_training_ends_where_an_uninterrupted_one_does(work: Work, tmp_path: Path) -> None:
    whole = work.model()
    expected = fit(whole, work.windows, NextToken(), work.validation, config(), tmp_path / "a", Silent())

    count = itertools.count()

    def interrupted(model: PreTrainedModel) -> dict[str, float]:
        if next(count) == 2:
            raise InterruptionError
        return work.validation(model)

    with pytest.raises(InterruptionError):
        fit(work.model(), work.windows, NextToken(), interrupted, config(), tmp_path / "b", Silent())
    half = tmp_path / "b" / f"checkpoint-{10**6}"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half a")
    model = work.model()
    resumed = fit(model, work.windows, NextToken(), work.validation, config(), tmp_path / "b", Silent())
    assert not half.exists()
    assert resumed.steps == expected.steps
    assert [v.step for v in resumed.validations] == [v.step for v in expected.validations]
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, whole.state_dict()[name], atol=1e-6, rtol=1e-5)


def test_what_takes_long_is_saved_between_validations(
    work: Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, asked = work.model(), config(tokens_per_batch=128, epochs=1)
    expected = fit(whole, work.windows, NextToken(), work.validation, asked, tmp_path / "a", Silent())
    (only,) = expected.validations
    assert only.step == expected.steps > 10

    monkeypatch.setattr(loop, "_SECONDS_BETWEEN_SAVES", 0.0)

    def interrupted(_: PreTrainedModel) -> dict[str, float]:
        raise InterruptionError

    with pytest.raises(InterruptionError):
        fit(work.model(), work.windows, NextToken(), interrupted, asked, tmp_path / "b", Silent())
    (checkpoint,) = (tmp_path / "b").glob("checkpoint-*")
    saved = int(checkpoint.name.rpartition("-")[2])
    assert 0 < expected.steps - saved <= 10

    model, counting = work.model(), Counting()
    resumed = fit(model, work.windows, NextToken(), work.validation, asked, tmp_path / "b", counting)
    assert counting.counted[0] == (saved + 1, expected.steps)
    assert resumed == expected
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, whole.state_dict()[name], atol=1e-6, rtol=1e-5)


def test_a_loss_that_is_not_finite_ends_it_with_the_step(work: Work, tmp_path: Path) -> None:
    def exploding(logits_PV: torch.Tensor, batch: object) -> torch.Tensor:
        return logits_PV.sum() * float("nan")

    with pytest.raises(TrainingError, match="nan at step 1; lower the learning rate"):
        fit(work.model(), work.windows, exploding, work.validation, config(), tmp_path, Silent())


def test_nothing_to_train_on(work: Work, tmp_path: Path) -> None:
    none: list[Window] = []
    with pytest.raises(TrainingError, match="no interaction"):
        fit(work.model(), none, NextToken(), work.validation, config(), tmp_path, Silent())


def test_loss_per_title_by_hand(work: Work) -> None:
    model = work.model()
    windows = work.validation.windows[:7]
    nats, titles = 0.0, 0
    for window in windows:
        with torch.no_grad():
            log_probs = model(torch.tensor([window.tokens])).logits[0].log_softmax(-1)
        for begin, end in zip(window.target_from, window.target_to, strict=True):
            titles += 1
            nats -= sum(log_probs[at - 1, window.tokens[at]].item() for at in range(begin, end))
    assert losses_per_title(model, windows, work.validation.trie)[0] == pytest.approx(
        nats / titles, rel=1e-5
    )


def test_a_training_that_had_stopped_early_does_not_go_on(work: Work, tmp_path: Path) -> None:
    losses = itertools.chain([2.0], itertools.repeat(2.5))
    validate = lambda _: {"loss": next(losses)}  # noqa: E731
    asked = config(epochs=9, patience=2)
    first = work.model()
    stopped = fit(first, work.windows, NextToken(), validate, asked, tmp_path, Silent())
    assert len(stopped.validations) == 3
    model = work.model()
    assert fit(model, work.windows, NextToken(), validate, asked, tmp_path, Silent()) == stopped
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, first.state_dict()[name], atol=0, rtol=0)


def test_the_last_step_is_validated_whatever_the_interval(work: Work, tmp_path: Path) -> None:
    whole = fit(
        work.model(), work.windows, NextToken(), work.validation, config(), tmp_path / "a", Silent()
    )
    asked = config(max_steps=whole.steps // 3 + 1)
    short = fit(work.model(), work.windows, NextToken(), work.validation, asked, tmp_path / "b", Silent())
    assert [v.step for v in short.validations] == [whole.steps // 3, whole.steps // 3 + 1]


def test_a_schedule_that_stops_early_is_the_longer_ones_beginning(work: Work, tmp_path: Path) -> None:
    models = {}
    for name, stop_after in (("whole", None), ("stopped", 2)):
        models[name] = work.model()
        asked = config(stop_after=stop_after)
        result = fit(
            models[name], work.windows, NextToken(), work.validation, asked, tmp_path / name, Silent()
        )
        if name == "whole":
            whole = result
    assert [v.step for v in result.validations] == [v.step for v in whole.validations[:2]]
    assert result.validations == whole.validations[:2]
    # Asked again it is done, and not one step further.
    again = work.model()
    assert (
        fit(again, work.windows, NextToken(), work.validation, asked, tmp_path / "stopped", Silent())
        == result
    )


def test_progress_counts_to_the_step_that_is_the_last(work: Work, tmp_path: Path) -> None:
    counting, asked = Counting(), config(stop_after=1, epochs=2)
    result = fit(work.model(), work.windows, NextToken(), work.validation, asked, tmp_path, counting)
    assert counting.counted == [(step, result.steps) for step in range(1, result.steps + 1)]


def test_a_validation_loss_that_is_not_finite_ends_it(work: Work, tmp_path: Path) -> None:
    validate = lambda _: {"loss": float("nan")}  # noqa: E731
    with pytest.raises(TrainingError, match="validation loss is nan at step"):
        fit(work.model(), work.windows, NextToken(), validate, config(), tmp_path, Silent())


def test_bfloat16_learns_as_far_and_leaves_float32(work: Work, tmp_path: Path) -> None:
    losses = {}
    for precision in ("float32", "bfloat16"):
        model = work.model()
        asked = config(precision=precision)
        fit(model, work.windows, NextToken(), work.validation, asked, tmp_path / precision, Silent())
        assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.float32}
        losses[precision] = work.validation(model)["loss"]
    assert losses["bfloat16"] != losses["float32"]
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.02)


def test_gradient_checkpointing_changes_no_weight_and_binds_no_run(work: Work, tmp_path: Path) -> None:
    plain = work.model()
    fit(plain, work.windows, NextToken(), work.validation, config(), tmp_path / "a", Silent())
    asked = config(gradient_checkpointing=True)
    assert asked.model_dump() == config().model_dump()  # so one may turn it on and go on

    recomputed: list[bool] = []

    def objective(logits_PV: torch.Tensor, batch: Batch) -> torch.Tensor:
        recomputed.append(model.is_gradient_checkpointing)
        return NextToken()(logits_PV, batch)

    model = work.model()
    fit(model, work.windows, objective, work.validation, asked, tmp_path / "b", Silent())
    assert all(recomputed)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, plain.state_dict()[name], atol=1e-6, rtol=1e-5)
