"""The training loop: Hugging Face's `Trainer` on token-budget batches, resumable after `kill -9`.

    FOLDER/checkpoint-N/   the Trainer's own checkpoint, whole once it holds the file `whole`
    FOLDER/runs/           learning curves for TensorBoard

The Trainer writes a checkpoint file by file, so a killed process can leave half of one. The marker is
written last and removed first; what lacks it is cleared away before a run goes on.
"""

from __future__ import annotations

import functools
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from accelerate.data_loader import DataLoaderShard
from pydantic import BaseModel, ConfigDict, Field
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import (
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer import TRAINER_STATE_NAME

from pruning import processes
from pruning.errors import TrainingError
from pruning.models import quiet_transformers
from pruning.progress import Reporter
from pruning.training.batches import Batch, TokenBudgetSampler, WindowIndices, collate
from pruning.training.callbacks import RANKING, Report, SaveInBetween, StopAt, StopWhenStale, is_stale
from pruning.training.logits import target_logits
from pruning.training.lora import Trainable, load_adapters
from pruning.training.objective import Objective
from pruning.training.precision import Precision, attending_in_float32, multiplying_in
from pruning.training.windows import Window
from recommender.storage import write_file

_MARKER = "whole"
_SECONDS_BETWEEN_SAVES = 600.0
Validate = Callable[[Any], dict[str, float]]
"""Measures a model; the result has `loss` (nats per title), what `best_by` names, and may have `hr10`."""


class TrainingConfig(BaseModel):
    """How long and how fast to train.

    Attributes:
        epochs: at most this many passes over the windows.
        tokens_per_batch: padded tokens of a step.
        learning_rate: the peak of a cosine schedule with a linear warm-up over `warmup` of the steps.
        patience: stop after this many validations in a row that improve nothing.
        validations: how often in an epoch to validate and save; the last step always is. What takes long
            is also saved in between, every ten minutes.
        best_by: which validation figure chooses the checkpoint that is kept.
        max_steps: stop here whatever the epochs say (for a short try).
        stop_after: end after so many of the epochs, though the learning rate falls over all of them: for a
            schedule of which an early pass was found to be the best.
        precision: what the forward and backward passes multiply in; weights, gradients and the loss
            stay float32.
        gradient_checkpointing: whether to keep only each layer's input for the backward pass and compute
            the rest again: less memory, more time, the same result; so it is no part of what a run is
            bound to.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: Annotated[int, Field(ge=1)]
    tokens_per_batch: Annotated[int, Field(ge=16)] = 2048
    learning_rate: Annotated[float, Field(gt=0)] = 3e-4
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    adam_beta2: Annotated[float, Field(gt=0, lt=1)] = 0.95
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.05
    gradient_clip: Annotated[float, Field(gt=0)] = 1.0
    patience: Annotated[int, Field(ge=1)] = 3
    validations: Annotated[int, Field(ge=1)] = 1
    best_by: Literal["loss", "catalogue_loss", "hr10", "ndcg10"] = "loss"
    max_steps: Annotated[int, Field(ge=1)] | None = None
    stop_after: Annotated[int, Field(ge=1)] | None = None
    precision: Precision = "float32"
    gradient_checkpointing: Annotated[bool, Field(exclude=True)] = False
    seed: Annotated[int, Field(ge=0)] = 0


class Validation(BaseModel):
    """The figures of one validation."""

    model_config = ConfigDict(frozen=True)

    step: int
    epoch: float
    figures: dict[str, float]


class FitResult(BaseModel):
    """What a training came to: every validation, and the one whose weights are kept."""

    model_config = ConfigDict(frozen=True)

    steps: int
    best_step: int
    validations: tuple[Validation, ...]

    @property
    def best(self) -> Validation:
        return next(v for v in self.validations if v.step == self.best_step)


def fit(
    model: Trainable,
    windows: Sequence[Window],
    objective: Objective,
    validate: Validate,
    config: TrainingConfig,
    folder: Path,
    reporter: Reporter,
) -> FitResult:
    """Trains `model` in place and leaves it with the weights of the best validation.

    Run again on the same folder it goes on from the last whole checkpoint; the caller sees to it
    that model, windows and config are the same.

    Raises:
        TrainingError: the loss is not finite, or there is nothing to train on.
    """
    if not windows:
        raise TrainingError("the training split has no interaction; prepare a larger data set")
    sampler = TokenBudgetSampler(windows, config.tokens_per_batch, config.seed)
    steps = min(config.epochs * len(sampler), config.max_steps or math.inf)
    last_step = min(steps, (config.stop_after or config.epochs) * len(sampler))
    interval = max(1, len(sampler) // config.validations)
    trainer = _WindowTrainer(
        windows=windows,
        sampler=sampler,
        objective=objective,
        validate=validate,
        precision=config.precision,
        model=model,
        args=_arguments(config, folder, int(steps), min(interval, int(last_step))),
        callbacks=[
            StopAt(int(last_step)),
            StopWhenStale(config.patience, config.best_by),
            SaveInBetween(_SECONDS_BETWEEN_SAVES),
            Report(reporter, int(last_step)),
        ],
    )
    trainer.remove_callback(PrinterCallback)  # it writes to standard output, which is the user's
    last = processes.once(lambda: _last_whole_checkpoint(folder))
    state = TrainerState.load_from_json(str(last / TRAINER_STATE_NAME)) if last else None
    # The Trainer forgets that it had stopped, and would train on.
    if state is None or not (
        state.global_step >= last_step or is_stale(state.log_history, config.patience, config.best_by)
    ):
        # Quiet, or each checkpoint draws a bar of its own.
        with quiet_transformers(), attending_in_float32(model.config):
            trainer.train(resume_from_checkpoint=str(last) if last else None)
        state = trainer.state
    assert state.best_global_step is not None  # the last step is validated whatever the interval
    best = folder / f"checkpoint-{state.best_global_step}"
    _load_weights(model, best)
    return FitResult(
        steps=state.global_step,
        best_step=state.best_global_step,
        validations=tuple(_validations(state)),
    )


class _WindowTrainer(Trainer):
    """The Trainer with our batches, losses and validation, and whole checkpoints."""

    def __init__(
        self,
        *,
        windows: Sequence[Window],
        sampler: TokenBudgetSampler,
        objective: Objective,
        validate: Validate,
        precision: Precision,
        **trainer: Any,
    ) -> None:
        self._windows = windows
        self._sampler = sampler
        self._objective = objective
        self._validate = validate
        self._precision = precision
        indices = WindowIndices(windows)
        # It refuses to validate without a data set, though `evaluate` brings its own.
        super().__init__(train_dataset=indices, eval_dataset=indices, **trainer)

    def get_train_dataloader(self) -> DataLoader[Any]:
        # Not `accelerator.prepare`: it would deal whole batches to the processes, not shares of each.
        loader: DataLoader[Any] = DataLoaderShard(
            WindowIndices(self._windows), batch_sampler=self._sampler, collate_fn=self._share
        )
        return loader

    def _share(self, indices: list[int]) -> dict[str, Any]:
        """What this process takes of a batch, and the weight of its mean loss in the batch's.

        Gradients are averaged over processes, so means over shares of unlike size are weighted: the
        sum is then the mean over all target tokens of the batch. A mapping, since the Trainer looks
        for labels in it by name; ours are inside the batch.
        """
        mine = processes.share(indices)
        batch = collate(self._windows, mine or indices[:1])  # a share may be empty; a step may not
        targets = sum(self._windows[window].target_tokens for window in indices)
        weight = processes.count() * len(batch.labels_P) / targets if mine else 0.0
        return {"batch": batch, "weight": weight}

    def compute_loss(self, model: torch.nn.Module, inputs: dict[str, Any], *_: Any, **__: Any) -> Tensor:
        batch: Batch = inputs["batch"].to(self.args.device)
        # Not the Trainer's own switch: it leaves the model's forward wrapped for whoever uses it next.
        with multiplying_in(self._precision, self.args.device):
            logits_PV = target_logits(model, batch)
        loss = self._objective(logits_PV.float(), batch)
        if not torch.isfinite(loss):
            raise TrainingError(
                f"the loss is {loss.item()} at step {self.state.global_step + 1}; lower the learning rate"
            )
        weight: float = inputs["weight"]
        return loss * weight

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        assert self.model is not None
        self.model.eval()
        found = processes.once(functools.partial(self._validate, self.model))
        figures = {f"eval_{name}": value for name, value in found.items()}
        if not math.isfinite(figures["eval_loss"]):
            raise TrainingError(
                f"the validation loss is {figures['eval_loss']} at step {self.state.global_step}; "
                "lower the learning rate"
            )
        self.log(figures)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, figures)
        return figures

    def floating_point_ops(self, inputs: Mapping[str, Any]) -> int:  # noqa: ARG002 - the Trainer's hook
        return 0

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        processes.wait()  # each has written a part
        processes.once(self._mark_and_clear)

    def _mark_and_clear(self) -> None:
        """Marks the new checkpoint as whole, and removes all but it and the best."""
        assert self.args.output_dir is not None  # `_arguments` sets it
        folder = Path(self.args.output_dir)
        write_file(folder / f"checkpoint-{self.state.global_step}" / _MARKER, "")
        kept = {self.state.global_step, self.state.best_global_step}
        for checkpoint in folder.glob("checkpoint-*"):
            if _step_of(checkpoint) not in kept:
                _remove(checkpoint)


def _arguments(config: TrainingConfig, folder: Path, steps: int, interval: int) -> TrainingArguments:
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        adam_beta2=config.adam_beta2,
        max_grad_norm=config.gradient_clip,
        gradient_checkpointing=config.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        lr_scheduler_type="cosine",
        warmup_steps=round(config.warmup * steps),
        eval_strategy="steps",
        eval_steps=interval,
        save_strategy="steps",
        save_steps=interval,
        logging_steps=max(1, min(10, interval)),
        metric_for_best_model=config.best_by,
        greater_is_better=config.best_by in RANKING,
        report_to=["tensorboard"],
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        use_cpu=not torch.accelerator.is_available(),
        ddp_find_unused_parameters=False,
        seed=config.seed,
        data_seed=config.seed,
    )
    # Several GPUs are for a launcher's processes. Alone with several, the Trainer would wrap the model in
    # `DataParallel`, which deals rows of a batch whose places we count through.
    arguments._n_gpu = min(1, arguments.n_gpu)
    return arguments


def _last_whole_checkpoint(folder: Path) -> Path | None:
    whole = []
    for checkpoint in folder.glob("checkpoint-*"):
        if (checkpoint / _MARKER).exists():
            whole.append(checkpoint)
        else:
            shutil.rmtree(checkpoint)
    return max(whole, key=_step_of, default=None)


def _remove(checkpoint: Path) -> None:
    (checkpoint / _MARKER).unlink(missing_ok=True)
    shutil.rmtree(checkpoint)


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def _load_weights(model: Trainable, checkpoint: Path) -> None:
    if not isinstance(model, PreTrainedModel):
        load_adapters(model, checkpoint)
        return
    missing, unexpected = model.load_state_dict(load_file(checkpoint / "model.safetensors"), strict=False)
    tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
    assert set(missing) <= tied, missing
    assert not unexpected, unexpected


def _validations(state: TrainerState) -> list[Validation]:
    return [
        Validation(
            step=entry["step"],
            epoch=entry["epoch"],
            figures={k.removeprefix("eval_"): v for k, v in entry.items() if k.startswith("eval_")},
        )
        for entry in state.log_history
        if "eval_loss" in entry
    ]
