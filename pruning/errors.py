"""What can go wrong offline; the root and the exit codes are in `recommender.errors`.

EspalierError
├── InputError
│   ├── SourceError       raw data that cannot be prepared: names file, row, column and remedy
│   ├── BaseModelError    a pretrained base that cannot be loaded or trimmed
│   ├── RecipeError       a recipe or target that is not a legal shape for this teacher
│   └── RunError          a run folder that belongs to other inputs, or to another command
├── DownloadError         public data that the package client could not fetch
├── MissingPackageError   an optional package that the command needs
├── TrainingError         a training that cannot go on (no finite loss, say)
└── ProcessError          one of several processes ended, so the others cannot go on
"""

from recommender.errors import EspalierError, InputError


class SourceError(InputError):
    """Raw data that cannot be prepared."""


class BaseModelError(InputError):
    """A pretrained base that cannot be loaded or trimmed."""


class RecipeError(InputError):
    """A recipe or target that is not a legal shape for this teacher."""


class RunError(InputError):
    """A run folder that belongs to other inputs."""


class DownloadError(EspalierError):
    """Public data that the package client could not fetch."""


class MissingPackageError(EspalierError):
    """An optional package that the command needs."""


class TrainingError(EspalierError):
    """A training that cannot go on."""


class ProcessError(EspalierError):
    """One of several processes ended, so the others cannot go on."""
