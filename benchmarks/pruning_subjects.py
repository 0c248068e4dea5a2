"""What the contenders of `pruning.py` work on: the same users and the same weights, twice.

Ours has the vocabulary trimmed, as `espalier train` does it; the plain contenders have all of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pruning.checkpoint import load_checkpoint, save_checkpoint
from pruning.importance.random_choice import RandomImportance
from pruning.importance.selection import select
from pruning.pipeline.plan import Target, plan_shapes
from pruning.pipeline.recipe import Recipe
from pruning.surgery.adapter import CausalModel
from pruning.surgery.canonical import canonical
from pruning.surgery.shape import Shape
from pruning.surgery.slicing import apply_cut
from pruning.teacher.base import Base, load_base
from pruning.teacher.scratch import ScratchConfig, base_from_scratch
from pruning.teacher.vocabulary import trim_vocabulary
from pruning.training.batches import TokenBudgetSampler
from pruning.training.windows import UserPacker, Window
from recommender.dataset import Dataset
from recommender.prompt import SEPARATOR, PromptEncoder, PromptTemplate

REMOVED_SHARE = 0.95
# Of ours. The plain loop has as many windows in a batch, and of them all padded logits over the whole
# vocabulary: with twice as many it takes more than 13 GB, and 24 do not suffice for all that take turns.
TOKENS_PER_BATCH = 1024


@dataclass(frozen=True)
class Subject:
    """A teacher on disk and the sampled windows in its tokens."""

    folder: Path
    windows: tuple[Window, ...]
    vocab_size: int


@dataclass(frozen=True)
class Subjects:
    """The same users for both sides.

    Attributes:
        windows_per_batch: what a token budget comes to, over all windows: the plain batch size.
        all_titles, all_windows: what an epoch has.
    """

    trimmed: Subject
    whole: Subject
    windows_per_batch: int
    all_titles: int
    all_windows: int


def prepare_subjects(dataset: Dataset, base: Base, folder: Path, sampled: int) -> Subjects:
    """Writes both teachers under `folder`, and packs the same `sampled` windows for each."""
    titles, template = dataset.catalogue.titles, PromptTemplate()
    trimmed = trim_vocabulary(base.model, base.tokenizer, [*titles, template.instruction, SEPARATOR])
    sides: list[Subject] = []
    for name, model, tokenizer in (
        ("trimmed", trimmed.model, trimmed.tokenizer),
        ("whole", base.model, base.tokenizer),
    ):
        (folder / name).mkdir()
        save_checkpoint(folder / name, model, tokenizer, template)
        windows = UserPacker(PromptEncoder(template, tokenizer), titles).training(dataset)
        drawn = np.random.default_rng(0).permutation(len(windows))[:sampled]
        sides.append(Subject(folder / name, tuple(windows[i] for i in drawn), model.config.vocab_size))
    batches = len(TokenBudgetSampler(windows, TOKENS_PER_BATCH, seed=0))
    return Subjects(
        trimmed=sides[0],
        whole=sides[1],
        windows_per_batch=round(len(windows) / batches),
        all_titles=sum(len(window.target_from) for window in windows),
        all_windows=len(windows),
    )


def base_of(text: str, dataset: Dataset) -> Base:
    """A pretrained base by its path, or a random one by its shape, `hidden_size=896,…`."""
    if "=" not in text:
        return load_base(Path(text))
    sizes = dict(pair.split("=", 1) for pair in text.split(","))
    return base_from_scratch(
        ScratchConfig.model_validate(sizes), dataset.catalogue.titles, PromptTemplate()
    )


def shapes_of(recipe: Recipe, teacher: CausalModel) -> tuple[Shape, ...]:
    """The canonical teacher's shape, and the one after each stage."""
    whole = Shape.of(canonical(teacher).config)
    return whole, *plan_shapes(whole, recipe, Target(removed_share=REMOVED_SHARE))


def student_after(teacher: CausalModel, shapes: Sequence[Shape]) -> CausalModel:
    """The teacher cut to each shape in turn. What goes is drawn: no time depends on it."""
    student = canonical(teacher)
    for target in shapes[1:]:
        shape = Shape.of(student.config)
        scores = RandomImportance(0).score(
            student, [], ("heads", "hidden", "mlp", "layers"), target, lambda *_: None
        )
        student = apply_cut(student, select(scores, shape, target))
    return student


def read_teacher(subject: Subject) -> CausalModel:
    """The subject's teacher, float32."""
    return load_checkpoint(subject.folder).model
