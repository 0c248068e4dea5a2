"""The root of every error Espalier raises on purpose.

    EspalierError                 something failed, and we know what
    ├── InputError                what the user gave is wrong; the message says what would be right
    │   ├── CatalogueError        an item without id or title, a duplicate id
    │   ├── DatasetError          a prepared data set that is missing, foreign or damaged
    │   ├── PromptError           a template or tokenizer that cannot carry the append-only prompt
    │   ├── ArtifactError         an artifact that is refused, and why
    │   └── UnsupportedModelError a model family or configuration we cannot read
    └── (pruning.errors and service.errors hang their own trees here)

The command line prints one line and exits 2 for an `InputError`, 1 for any other `EspalierError`.
"""

from __future__ import annotations

from pydantic import ValidationError


class EspalierError(Exception):
    """The root: whoever catches this catches all that Espalier raises on purpose."""


class InputError(EspalierError):
    """What the user gave is wrong; the message names the input and the remedy."""


class CatalogueError(InputError):
    """The catalogue cannot be used."""


class DatasetError(InputError):
    """The prepared data set cannot be used."""


class PromptError(InputError):
    """The template and the tokenizer do not fit together."""


class ArtifactError(InputError):
    """The artifact is refused."""


class UnsupportedModelError(InputError):
    """The model's family or configuration is none that we can read exactly."""


def first_problem(error: ValidationError) -> str:
    """Where the first thing wrong stands and what it is, on one line: `lineage.seed: Field required`."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"]) or "the document"
    return f"{where}: {first['msg']}"
