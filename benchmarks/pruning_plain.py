"""The published method written plainly: what `pruning.py` measures ours against.

After arXiv 2507.07064 and its code: the teacher runs in every step, batches are padded to their longest
row, the head has the whole vocabulary, all is float32, and importance is measured one user at a time.
Nothing is made slow on purpose: batches hold as many windows as ours do on average, no step asks for a
gradient that it does not use, and the optimizer is the same fused AdamW. Users are packed as ours are;
`one_row_per_target` gives the published layout, where every title has a row of its own.
"""

from __future__ import annotations

import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from benchmarks.pruning_subjects import Subject, read_teacher, shapes_of, student_after
from benchmarks.turns import Turns
from pruning.pipeline.recipe import Recipe
from pruning.surgery.adapter import CausalModel, modules_of
from pruning.training.windows import Window

_IGNORED = -100
_LEARNING_RATE = 3e-4
Padded = dict[str, Tensor]
"""`input_ids`, `attention_mask` and `labels`, (B, T) each, for a Hugging Face model."""


def one_row_per_target(windows: Sequence[Window]) -> list[Window]:
    """The published layout: a window's titles as targets of rows of their own."""
    return [
        Window(window.tokens[:end], (begin,), (end,))
        for window in windows
        for begin, end in zip(window.target_from, window.target_to, strict=True)
    ]


def padded(windows: Sequence[Window]) -> Padded:
    """Rows padded to the longest; only targets have labels."""
    rows, labels = [], []
    for window in windows:
        row = torch.tensor(window.tokens)
        label = torch.full_like(row, _IGNORED)
        for begin, end in zip(window.target_from, window.target_to, strict=True):
            label[begin:end] = row[begin:end]
        rows.append(row)
        labels.append(label)
    return {
        "input_ids": pad_sequence(rows, batch_first=True),
        "attention_mask": pad_sequence([torch.ones_like(row) for row in rows], batch_first=True),
        "labels": pad_sequence(labels, batch_first=True, padding_value=_IGNORED),
    }


def teach(
    turns: Turns, subject: Subject, windows: Sequence[Window], batch: int, steps: int, *, bf16: bool
) -> None:
    """Hugging Face's `Trainer` as it comes; a turn gives the step's titles."""
    titles: deque[int] = deque()

    def collated(rows: list[Window]) -> Padded:
        titles.append(sum(len(row.target_from) for row in rows))  # one batch ahead of its step
        return padded(rows)

    class Stepwise(TrainerCallback):
        def on_step_end(
            self,
            args: TrainingArguments,  # noqa: ARG002 - the Trainer's signature
            state: TrainerState,
            control: TrainerControl,  # noqa: ARG002
            **_: object,
        ) -> None:
            turns.end(titles.popleft())
            if state.global_step < steps:
                turns.begin()

    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model=read_teacher(subject),
            args=TrainingArguments(
                output_dir=folder,
                per_device_train_batch_size=batch,
                max_steps=steps,
                learning_rate=_LEARNING_RATE,
                bf16=bf16,
                use_cpu=True,
                save_strategy="no",
                report_to=[],
                disable_tqdm=True,
                remove_unused_columns=False,
                dataloader_pin_memory=False,
            ),
            train_dataset=list(windows),
            data_collator=collated,
            callbacks=[Stepwise()],
        )
        trainer.remove_callback(PrinterCallback)  # it writes to standard output, which is the record's
        turns.begin()
        trainer.train()


def restore(
    turns: Turns,
    subject: Subject,
    windows: Sequence[Window],
    batch: int,
    recipe: Recipe,
    stage: int,
    steps: int,
) -> None:
    """`0.2 CE + 0.8 KL(teacher ‖ student)`, the teacher asked in every step; a turn gives its titles."""
    teacher = read_teacher(subject)
    student = student_after(teacher, shapes_of(recipe, teacher)[: stage + 1]).train()
    optimizer = torch.optim.AdamW(student.parameters(), _LEARNING_RATE, fused=True)
    drawn = torch.Generator().manual_seed(0)
    for _ in range(steps):
        turns.begin()
        chosen = [windows[i] for i in torch.randperm(len(windows), generator=drawn)[:batch].tolist()]
        inputs = padded(chosen)
        labels_BT = inputs.pop("labels")[:, 1:]
        with torch.no_grad():
            teacher_BTV = teacher(**inputs, use_cache=False).logits[:, :-1]
        student_BTV = student(**inputs, use_cache=False).logits[:, :-1]
        at_targets = labels_BT != _IGNORED
        student_PV = F.log_softmax(student_BTV[at_targets], dim=-1)
        teacher_PV = F.log_softmax(teacher_BTV[at_targets], dim=-1)
        truth = F.nll_loss(student_PV, labels_BT[at_targets])
        divergence = F.kl_div(student_PV, teacher_PV, log_target=True, reduction="batchmean")
        (0.2 * truth + 0.8 * divergence).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        turns.end(sum(len(window.target_from) for window in chosen))


def calibrate(turns: Turns, subject: Subject, recipe: Recipe, windows: int, rounds: int) -> None:
    """One user at a time. A turn gives seconds by stage, *estimated*: see `_stage_seconds`."""
    teacher = read_teacher(subject)
    shapes = shapes_of(recipe, teacher)
    users = [padded([window]) for window in subject.windows[:windows]]
    before = [student_after(teacher, shapes[: number + 1]) for number in range(len(recipe.stages))]
    for _ in range(rounds):
        turns.begin()
        seconds = {}
        for model, stage, target in zip(before, recipe.stages, shapes[1:], strict=True):
            published = stage.importance == "paper"
            seconds[stage.name] = _stage_seconds(
                model, users, sorted(stage.keep), target.num_hidden_layers, published=published
            )
        turns.end(seconds)


def _stage_seconds(
    model: CausalModel, users: Sequence[Padded], axes: Sequence[str], layers_kept: int, *, published: bool
) -> float:
    """What scoring the axes takes: passes over the users are timed once and counted.

    Heads take a pass for every head of every layer, masked; hidden channels one with a gradient; MLP
    neurons one; layers, searched down to those kept, one of the layers left for each that might go. The
    activation scores take one pass for all axes.
    """
    if not published:
        return _timed(lambda: _each(model, users, _forward))
    layers, heads = model.config.num_hidden_layers, model.config.num_attention_heads
    seconds = 0.0
    for axis in axes:
        if axis == "heads":
            with _first_head_masked(model):
                seconds += layers * heads * _timed(lambda: _each(model, users, _divergence))
        elif axis == "hidden":
            seconds += _timed(lambda: _each(model, users, _gradient))
        elif axis == "mlp":
            seconds += _timed(lambda: _each(model, users, _forward))
        else:
            layer_passes = sum(alive * (alive - 1) for alive in range(layers_kept + 1, layers + 1))
            seconds += layer_passes / layers * _timed(lambda: _each(model, users, _forward))
    return seconds


def _each(model: CausalModel, users: Sequence[Padded], read: Callable[[CausalModel, Padded], None]) -> None:
    model.eval()  # type: ignore[no-untyped-call]
    for user in users:
        read(model, user)


@torch.no_grad()
def _forward(model: CausalModel, user: Padded) -> None:
    model(**user, use_cache=False)  # with its loss


@torch.no_grad()
def _divergence(model: CausalModel, user: Padded) -> None:
    logits_1TV = model(input_ids=user["input_ids"], use_cache=False).logits
    # The distribution before masking is at hand; its place in the sum costs the same.
    F.log_softmax(logits_1TV[user["labels"] != _IGNORED], dim=-1).exp().sum(-1)


def _gradient(model: CausalModel, user: Padded) -> None:
    states_1TC = model.model(input_ids=user["input_ids"], use_cache=False).last_hidden_state.detach()
    states_1TC.requires_grad_()
    loss = F.cross_entropy(model.lm_head(states_1TC)[0, :-1], user["labels"][0, 1:])
    (gradient_1TC,) = torch.autograd.grad(loss, states_1TC)
    (gradient_1TC * states_1TC).square().sum(dim=1).sqrt()


@contextmanager
def _first_head_masked(model: CausalModel) -> Iterator[None]:
    width = model.config.head_dim

    def mask(_: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        heads_BTE = arguments[0].clone()
        heads_BTE[..., :width] = 0
        return (heads_BTE,)

    handle = modules_of(model).layers[0].attention_output.register_forward_pre_hook(mask)
    try:
        yield
    finally:
        handle.remove()


def _timed(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
