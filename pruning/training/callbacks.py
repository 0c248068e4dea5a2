"""What watches a training: the rules that end it early or save it in between, and the one who reports."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from pruning import processes
from pruning.progress import Reporter

_STEPS_BETWEEN_LOOKS = 10


class StopAt(TrainerCallback):
    """Validates, saves and stops at a step that is the last, though the schedule may be longer."""

    def __init__(self, last_step: int) -> None:
        self._last_step = last_step

    def on_step_end(
        self,
        args: TrainingArguments,  # noqa: ARG002 - the Trainer's signature
        state: TrainerState,
        control: TrainerControl,
        **_: Any,
    ) -> None:
        if state.global_step >= self._last_step:
            control.should_evaluate = True
            control.should_save = True
            control.should_training_stop = True


class StopWhenStale(TrainerCallback):
    """Stops when neither the loss nor HR@10 has improved for `patience` validations (see `is_stale`)."""

    def __init__(self, patience: int, best_by: str) -> None:
        self._patience = patience
        self._best_by = best_by

    def on_evaluate(
        self,
        args: TrainingArguments,  # noqa: ARG002 - the Trainer's signature
        state: TrainerState,
        control: TrainerControl,
        **_: Any,
    ) -> None:
        if is_stale(state.log_history, self._patience, self._best_by):
            control.should_training_stop = True


class SaveInBetween(TrainerCallback):
    """Saves when the newest checkpoint is older than `seconds`; to the next validation it may be hours."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._saved_at = time.monotonic()

    def on_save(
        self,
        args: TrainingArguments,  # noqa: ARG002 - the Trainer's signature
        state: TrainerState,  # noqa: ARG002
        control: TrainerControl,  # noqa: ARG002
        **_: Any,
    ) -> None:
        self._saved_at = time.monotonic()

    def on_step_end(
        self,
        args: TrainingArguments,  # noqa: ARG002 - the Trainer's signature
        state: TrainerState,
        control: TrainerControl,
        **_: Any,
    ) -> None:
        # All processes save together, so one clock decides; asked for at every step, it would slow them.
        if state.global_step % _STEPS_BETWEEN_LOOKS == 0 and processes.once(self._is_due):
            control.should_save = True

    def _is_due(self) -> bool:
        return time.monotonic() - self._saved_at > self._seconds


RANKING = ("hr10", "ndcg10")
"""What a checkpoint may be chosen by that is the better the greater it is."""


def nats_of(figures: Mapping[str, float], prefix: str = "") -> float:
    """A validation's loss: among the catalogue's titles, where that was measured."""
    return figures.get(f"{prefix}catalogue_loss", figures[f"{prefix}loss"])


def is_stale(log_history: Sequence[dict[str, float]], patience: int, best_by: str) -> bool:
    """Whether the last `patience` validations of the log improved neither the loss nor the ranking.

    Of both it is the figure that the best checkpoint is chosen by; else `nats_of`, and HR@10.
    """
    history = [entry for entry in log_history if "eval_loss" in entry]
    if not history:
        return False
    ranking = f"eval_{best_by if best_by in RANKING else 'hr10'}"
    losses = [
        nats_of(entry, "eval_") if best_by in RANKING else entry[f"eval_{best_by}"] for entry in history
    ]
    newest_gain = losses.index(min(losses))
    ranks = [entry[ranking] for entry in history if ranking in entry]
    if ranks:
        newest_gain = max(newest_gain, ranks.index(max(ranks)))
    return len(history) - 1 - newest_gain >= patience


class Report(TrainerCallback):
    """Hands steps and validations to whoever is watching."""

    def __init__(self, reporter: Reporter, last_step: int) -> None:
        self._reporter = reporter
        self._last_step = last_step
        self._count = reporter.counter("training")

    def on_step_end(
        self,
        args: TrainingArguments,  # noqa: ARG002 - the Trainer's signature
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        **_: Any,
    ) -> None:
        self._count(state.global_step, self._last_step)

    def on_evaluate(
        self,
        args: TrainingArguments,  # noqa: ARG002 - the Trainer's signature
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        **_: Any,
    ) -> None:
        entry = state.log_history[-1]
        hits = f", HR@10 {entry['eval_hr10']:.4f}" if "eval_hr10" in entry else ""
        self._reporter.say(
            f"step {state.global_step}/{self._last_step}, epoch {entry['epoch']:.2f}: "
            f"validation {nats_of(entry, 'eval_'):.3f} nats per title{hits}"
        )

    def on_train_end(
        self,
        args: TrainingArguments,  # noqa: ARG002 - the Trainer's signature
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        **_: Any,
    ) -> None:
        if state.global_step < self._last_step:  # it ended early: what was done is all there is
            self._count(state.global_step, state.global_step)
