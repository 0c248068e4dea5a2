"""Equal training tokens: how many steps a budget buys, and how many tokens so many steps have read.

Tokens are those that a model reads, padding left out.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from pruning.pipeline.recipe import Recipe
from pruning.pipeline.results import StageResult
from pruning.training.batches import TokenBudgetSampler
from pruning.training.loop import TrainingConfig
from pruning.training.windows import Augmentation, UserPacker, Window
from recommender.dataset import Dataset
from recommender.prompt import PromptEncoder


def training_windows(
    dataset: Dataset, encoder: PromptEncoder, augmentation: Augmentation | None = None, seed: int = 0
) -> list[Window]:
    """What a recipe with this augmentation trains on; without one, the training histories as they are."""
    packer = UserPacker(encoder, dataset.catalogue.titles)
    windows = packer.training(dataset)
    return windows if augmentation is None else [*windows, *packer.augmented(dataset, augmentation, seed)]


def tokens_of(windows: Sequence[Window]) -> int:
    """One reading of them all."""
    return sum(len(window.tokens) for window in windows)


def steps_of_pass(windows: Sequence[Window], training: TrainingConfig) -> int:
    """The steps of one reading."""
    return len(TokenBudgetSampler(windows, training.tokens_per_batch, training.seed))


def steps_for(tokens: int, windows: Sequence[Window], training: TrainingConfig) -> int:
    """The steps that read as nearly so many tokens as whole batches can."""
    return max(1, round(tokens * steps_of_pass(windows, training) / tokens_of(windows)))


def tokens_read(windows: Sequence[Window], training: TrainingConfig, steps: int) -> int:
    """What a training's first steps read, to the token: the batches are drawn again as it drew them."""
    sampler = TokenBudgetSampler(windows, training.tokens_per_batch, training.seed)
    passes, rest = divmod(steps, len(sampler))
    sampler.set_epoch(passes)
    begun = itertools.chain.from_iterable(itertools.islice(sampler, rest))
    return passes * tokens_of(windows) + sum(len(windows[index].tokens) for index in begun)


def tokens_restored(
    dataset: Dataset, encoder: PromptEncoder, recipe: Recipe, results: Sequence[StageResult], seed: int
) -> int:
    """What the restorations of a recipe's stages read."""
    windows = training_windows(dataset, encoder, recipe.augmentation, seed)
    return sum(
        tokens_read(windows, stage.training.model_copy(update={"seed": seed}), result.restoration_steps)
        for stage, result in zip(recipe.stages, results, strict=True)
        if stage.training is not None
    )
