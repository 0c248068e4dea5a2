"""A synthetic data set and the smallest whole pipeline on it: seconds, not minutes."""

import csv
import random
from pathlib import Path

from pruning.data.prepare import PrepareOptions, prepare
from pruning.pipeline.recipe import Recipe
from pruning.pipeline.run import PruneConfig
from pruning.teacher.scratch import ScratchConfig
from pruning.teacher.train import TeacherConfig
from pruning.training.loop import TrainingConfig

TITLES = tuple(
    f"{adjective} {noun}"
    for adjective in ("Red", "Quiet", "Broken", "Golden", "Last")
    for noun in ("River", "Mirror", "Garden", "Station", "Winter", "Letter")
)


class Silent:
    """A reporter that keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)

    def counter(self, title: str):
        return lambda *_: None


def write_source(folder: Path, users: int = 40, seed: int = 0) -> Path:
    """Users who mostly go on to the next title of the list, so that there is something to learn."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = random.Random(seed)
    with (folder / "items.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("item_id", "title"), *enumerate(TITLES)])
    rows: list[tuple[str, int, int]] = []
    for user in range(users):
        item, time = draw.randrange(len(TITLES)), 1_000_000 + 1000 * user
        for _ in range(draw.randint(3, 36)):
            rows.append((f"u{user}", item, time))
            item = (item + 1) % len(TITLES) if draw.random() < 0.8 else draw.randrange(len(TITLES))
            time += draw.randint(1, 900)
    with (folder / "interactions.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("user_id", "item_id", "timestamp"), *rows])
    return folder


def write_dataset(folder: Path, users: int = 40, seed: int = 0) -> Path:
    source = write_source(folder / "source", users, seed)
    prepare(source, folder / "dataset", PrepareOptions(name="rivers"), lambda _: None)
    return folder / "dataset"


def teacher_config(**training: object) -> TeacherConfig:
    return TeacherConfig(
        scratch=ScratchConfig(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            vocab_size=320,
        ),
        training=TrainingConfig(
            **{"epochs": 2, "learning_rate": 3e-3, "tokens_per_batch": 1024, "best_by": "hr10", **training}
        ),
        validation_rows=20,
    )


RECIPE = """
name = "small"
description = "Three short stages."

[calibration]
windows = 4

[[stages]]
name = "width"
importance = "paper"
keep = { heads = 0.5, hidden = 0.5 }
training = { epochs = 1, learning_rate = 3e-3, tokens_per_batch = 1024 }

[[stages]]
name = "mlp"
importance = "activation"
keep = { mlp = 0.5 }
training = { epochs = 1, learning_rate = 3e-3, tokens_per_batch = 1024 }

[[stages]]
name = "depth"
importance = "paper"
keep = { layers = 0.34 }
training = { epochs = 2, learning_rate = 3e-3, tokens_per_batch = 1024 }
distillation = { cross_entropy = 0.2, forward_kl = 0.8, signal = { kind = "cached", top_k = 8 } }
"""


def recipe(text: str = RECIPE) -> Recipe:
    import tomllib

    return Recipe.model_validate(tomllib.loads(text))


def prune_config(text: str = RECIPE, **changes: object) -> PruneConfig:
    """The recipe on few rows."""
    return PruneConfig(recipe=recipe(text), **{"validation_rows": 20, **changes})
