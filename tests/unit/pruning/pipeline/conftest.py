from pathlib import Path

import pytest
from small_run import Silent, prune_config, teacher_config, write_dataset

from pruning.pipeline.run import prune
from pruning.teacher.train import train_teacher


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set, a teacher and a finished run; of each module its own, since tests go on with the run."""
    folder = tmp_path_factory.mktemp("run")
    write_dataset(folder)
    train_teacher(folder / "dataset", folder / "teacher", teacher_config(), Silent())
    prune(folder / "dataset", folder / "teacher", folder / "run", prune_config(), Silent())
    return folder
