"""The small pipeline's run folders, for what reads them: made once, copied by each test."""

from pathlib import Path

from small_run import RECIPE, Silent, recipe, teacher_config, write_dataset

from pruning.pipeline.run import PruneConfig, prune
from pruning.teacher.train import train_teacher


class StoppedError(Exception):
    """Somebody pressed Ctrl-C."""


class StoppingAt(Silent):
    """A reporter whose person gives up at a certain line."""

    def __init__(self, words: str) -> None:
        super().__init__()
        self._words = words

    def say(self, text: str) -> None:
        super().say(text)
        if self._words in text:
            raise StoppedError


def small_config(text: str = RECIPE, **changes: object) -> PruneConfig:
    return PruneConfig(recipe=recipe(text), **{"validation_rows": 20, **changes})


def make_runs(folder: Path) -> Path:
    """FOLDER/{dataset,teacher}, FOLDER/run finished, and FOLDER/other with one layer more."""
    write_dataset(folder)
    train_teacher(folder / "dataset", folder / "teacher", teacher_config(), Silent())
    prune(folder / "dataset", folder / "teacher", folder / "run", small_config(), Silent())
    more = small_config(RECIPE.replace("layers = 0.34", "layers = 0.67"))
    prune(folder / "dataset", folder / "teacher", folder / "other", more, Silent())
    return folder
