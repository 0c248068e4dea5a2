"""Recipes: which axes go when, by which scores, and whether and how the student is restored then.

A recipe is a TOML file. Those that come with Espalier are in `pruning/recipes/`.
"""

from __future__ import annotations

import tomllib
from importlib import resources
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pruning.distill.objective import DistillationConfig
from pruning.errors import RecipeError
from pruning.importance.scores import Axis
from pruning.training.loop import TrainingConfig
from pruning.training.windows import Augmentation
from recommender.errors import first_problem

Share = Annotated[float, Field(gt=0, le=1)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Calibration(_Part):
    """How many packed training windows the importance scores look at."""

    windows: Annotated[int, Field(ge=1)] = 64


class Repair(_Part):
    """Refit what writes to the residual stream after the cut (`pruning/repair.py`).

    Attributes:
        ridge: how strongly the fit holds on to the cut weights.
        largest: aim at a stream that is equally large for all tokens of a place, at most so many times as
            large as the embeddings; None: at the stream as it is.
    """

    ridge: Annotated[float, Field(gt=0)] = 0.01
    largest: Annotated[float, Field(gt=0)] | None = None


class Stage(_Part):
    """One cut and its restoration, if it has one.

    Attributes:
        keep: for each axis that is cut, which share of the *teacher's* size is left. The plan
            rounds it to a legal size.
        importance: the family of scores that says what goes; `random` is a control.
        repair: refit in closed form before the restoration; None: leave the cut as it is.
        weights: `drawn` throws the cut weights away and starts from random ones of the same shape:
            the control that shows what is inherited.
        training: how to restore; None: not at all, the next stage goes on from the cut as it is.
        rounding: what the weights are rounded to, and kept as, at the stage's end; None: they stay float32.
    """

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]*$")]
    keep: Annotated[dict[Axis, Share], Field(min_length=1)]
    importance: Literal["paper", "activation", "random"]
    repair: Repair | None = None
    weights: Literal["inherited", "drawn"] = "inherited"
    distillation: DistillationConfig = DistillationConfig()
    training: TrainingConfig | None = None
    rounding: Literal["bfloat16"] | None = None


class Recipe(_Part):
    """A list of stages.

    Attributes:
        rotate: turn the teacher's residual stream into its principal directions before the first cut
            (`pruning/importance/directions.py`). A tied vocabulary head is untied by it.
        augmentation: more histories for all restorations; None: the training split's as they are.
    """

    name: str
    description: str
    calibration: Calibration = Calibration()
    rotate: bool = False
    augmentation: Augmentation | None = None
    stages: Annotated[tuple[Stage, ...], Field(min_length=1)]

    @property
    def distils_vocabulary(self) -> bool:
        """Whether a restoration asks the teacher about tokens that cannot follow in the catalogue."""
        return any(
            stage.training is not None
            and stage.distillation.forward_kl > 0
            and stage.distillation.among == "vocabulary"
            for stage in self.stages
        )

    @property
    def restores_among_catalogue(self) -> bool:
        """Whether the last restoration chooses among the catalogue's titles alone."""
        return self.stages[-1].distillation.among == "catalogue"

    @model_validator(mode="after")
    def _names_and_shares_make_sense(self) -> Recipe:
        names = [stage.name for stage in self.stages]
        if len(set(names)) < len(names):
            raise ValueError("two stages bear the same name")
        if self.stages[-1].training is None:
            raise ValueError("the last stage has no training, without which the cuts' loss stays")
        left: dict[Axis, float] = {}
        for stage in self.stages:
            for axis, share in stage.keep.items():
                if share > left.get(axis, 1.0):
                    raise ValueError(
                        f"stage {stage.name} keeps {share} of {axis}, more than an earlier one left"
                    )
                left[axis] = share
        return self


def packaged_recipes() -> tuple[str, ...]:
    """The names that `load_recipe` knows without a file."""
    folder = resources.files("pruning.recipes")
    names = (file.name for file in folder.iterdir())
    return tuple(sorted(name.removesuffix(".toml") for name in names if name.endswith(".toml")))


def load_recipe(name_or_file: str) -> Recipe:
    """A packaged recipe by its name, or any by its file.

    Raises:
        RecipeError: no such recipe or file, or one that does not read as a recipe.
    """
    if name_or_file in packaged_recipes():
        text = (resources.files("pruning.recipes") / f"{name_or_file}.toml").read_text("utf-8")
    elif Path(name_or_file).is_file():
        text = _text_of(Path(name_or_file))
    else:
        known = ", ".join(packaged_recipes())
        raise RecipeError(f"no recipe {name_or_file!r}; take one of {known}, or a TOML file")
    try:
        return Recipe.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{name_or_file}: not TOML ({error})") from error
    except ValidationError as error:
        raise RecipeError(f"{name_or_file}: {first_problem(error)}") from error


def _text_of(file: Path) -> str:
    try:
        return file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{file}: cannot be read ({error}); give a TOML file in UTF-8") from error
