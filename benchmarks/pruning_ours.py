"""Our pipeline as contenders of `pruning.py`: its own training loop, cache and scores, nothing copied.

The loop hands its turn on where it reports a finished step, so a turn is all that a step takes: reading
the batch, both passes, clipping, the optimizer, logging. Validation and checkpoints lie outside.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from benchmarks.pruning_subjects import TOKENS_PER_BATCH, Subject, read_teacher, shapes_of, student_after
from benchmarks.turns import Turns
from pruning.distill.objective import Distillation, DistillationConfig, among_vocabulary
from pruning.distill.sources import CachedSignal, CachedTeacher, cache_signals
from pruning.importance.activation import ActivationImportance
from pruning.importance.paper import PaperImportance
from pruning.importance.selection import select
from pruning.pipeline.recipe import Recipe, Stage
from pruning.pipeline.run import calibration_batches
from pruning.progress import Counter
from pruning.surgery.adapter import CausalModel
from pruning.surgery.canonical import canonical
from pruning.surgery.shape import Shape
from pruning.surgery.slicing import apply_cut
from pruning.training.batches import Batch
from pruning.training.loop import TrainingConfig, fit
from pruning.training.objective import NextToken, Objective
from pruning.training.precision import Precision
from pruning.training.windows import Window

SIGNAL = CachedSignal(kind="cached")


class _Stepwise:
    """The loop's objective and reporter in one: counts a step's titles, and hands the turn on."""

    def __init__(self, objective: Objective, turns: Turns) -> None:
        self._objective = objective
        self._turns = turns
        self._titles = 0

    def __call__(self, logits_PV: Tensor, batch: Batch) -> Tensor:
        self._titles += batch.titles
        return self._objective(logits_PV, batch)

    def say(self, text: str) -> None:
        """Nobody reads it."""

    def counter(self, title: str) -> Counter:  # noqa: ARG002
        def stepped(done: int, of: int) -> None:
            self._turns.end(self._titles)
            self._titles = 0
            if done < of:
                self._turns.begin()

        return stepped


def _train(
    turns: Turns,
    model: CausalModel,
    windows: Sequence[Window],
    objective: Objective,
    precision: Precision,
    steps: int,
) -> None:
    config = TrainingConfig(
        epochs=steps, tokens_per_batch=TOKENS_PER_BATCH, max_steps=steps, precision=precision
    )
    stepwise = _Stepwise(objective, turns)
    turns.begin()
    with tempfile.TemporaryDirectory() as folder:
        fit(model, windows, stepwise, lambda _: {"loss": 0.0}, config, Path(folder), stepwise)


def teach(turns: Turns, subject: Subject, precision: Precision, steps: int) -> None:
    """Fine-tunes the teacher; a turn gives the step's titles."""
    _train(turns, read_teacher(subject), subject.windows, NextToken(), precision, steps)


def cache(turns: Turns, subject: Subject) -> None:
    """Caches the teacher's signals of all sampled windows, twice; a turn gives the titles."""
    teacher = read_teacher(subject)
    for _ in range(2):
        with tempfile.TemporaryDirectory() as folder:
            turns.begin()
            cache_signals(teacher, subject.windows, among_vocabulary, SIGNAL, Path(folder), lambda *_: None)
            turns.end(sum(len(window.target_from) for window in subject.windows))


def restore(
    turns: Turns, subject: Subject, recipe: Recipe, stage: int, precision: Precision, steps: int
) -> None:
    """Restores what the stage (counted from 1) leaves, from cached signals; a turn gives its titles."""
    teacher = read_teacher(subject)
    student = student_after(teacher, shapes_of(recipe, teacher)[: stage + 1])
    with tempfile.TemporaryDirectory() as folder:
        cache_signals(teacher, subject.windows, among_vocabulary, SIGNAL, Path(folder), lambda *_: None)
        objective = Distillation(
            DistillationConfig(), CachedTeacher(Path(folder), subject.windows), among_vocabulary
        )
        _train(turns, student, subject.windows, objective, precision, steps)


def calibrate(turns: Turns, subject: Subject, recipe: Recipe, windows: int, rounds: int) -> None:
    """Scores what every stage cuts, on so many windows; a turn gives seconds by stage."""
    teacher = read_teacher(subject)
    shapes = shapes_of(recipe, teacher)
    calibration = calibration_batches(subject.windows, windows, seed=0)
    before = [student_after(teacher, shapes[: number + 1]) for number in range(len(recipe.stages))]
    for _ in range(rounds):
        turns.begin()
        seconds = {}
        for model, stage, target in zip(before, recipe.stages, shapes[1:], strict=True):
            start = time.perf_counter()
            _method(stage).score(model, calibration, list(stage.keep), target, lambda *_: None)
            seconds[stage.name] = time.perf_counter() - start
        turns.end(seconds)


def prune_in_steps(turns: Turns, subject: Subject, recipe: Recipe, windows: int, steps: int) -> None:
    """The whole of a recipe, each restoration only `steps` long; a turn gives a step's titles."""
    teacher = read_teacher(subject)
    shapes = shapes_of(recipe, teacher)
    calibration = calibration_batches(subject.windows, windows, seed=0)
    with tempfile.TemporaryDirectory() as folder:
        cache_signals(teacher, subject.windows, among_vocabulary, SIGNAL, Path(folder), lambda *_: None)
        student = canonical(teacher)
        for stage, target in zip(recipe.stages, shapes[1:], strict=True):
            shape = Shape.of(student.config)
            scores = _method(stage).score(student, calibration, list(stage.keep), target, lambda *_: None)
            student = apply_cut(student, select(scores, shape, target))
            objective = Distillation(
                stage.distillation, CachedTeacher(Path(folder), subject.windows), among_vocabulary
            )
            if stage.training is not None:
                _train(turns, student, subject.windows, objective, stage.training.precision, steps)


def _method(stage: Stage) -> PaperImportance | ActivationImportance:
    return PaperImportance() if stage.importance == "paper" else ActivationImportance()
