"""A teacher that learns beside a sequence model; all else about training is in the pipeline's tests."""

from pathlib import Path

import pytest
from pydantic import ValidationError
from small_run import Silent, teacher_config, write_dataset

from pruning.errors import RunError
from pruning.teacher.train import TeacherConfig, train_teacher


def collaborative_config(**changes: object) -> TeacherConfig:
    asked = teacher_config(max_steps=6, patience=9).model_dump()
    return TeacherConfig.model_validate(asked | {"among": "catalogue", "collaborative": 0.5} | changes)


def test_a_teacher_learns_from_a_sequence_model_and_resumes(tmp_path: Path) -> None:
    dataset, teacher = write_dataset(tmp_path), tmp_path / "teacher"
    first = Silent()
    record = train_teacher(dataset, teacher, collaborative_config(), first)
    assert any(line.startswith("sequence model: ") for line in first.lines)
    helper = teacher / "collaborative.safetensors"
    stood = helper.stat().st_mtime_ns

    (teacher / "teacher.json").unlink()
    again = Silent()
    assert train_teacher(dataset, teacher, collaborative_config(), again) == record
    assert helper.stat().st_mtime_ns == stood
    assert not any(line.startswith("sequence model: ") for line in again.lines)

    alone = train_teacher(dataset, tmp_path / "alone", collaborative_config(collaborative=None), Silent())
    assert alone.model_sha256 != record.model_sha256

    (teacher / "teacher.json").unlink()
    helper.write_bytes(b"no tensors")
    with pytest.raises(RunError, match=r"collaborative.safetensors: damaged"):
        train_teacher(dataset, teacher, collaborative_config(), Silent())


def test_without_titles_there_is_nothing_to_agree_about() -> None:
    with pytest.raises(ValidationError, match="collaborative needs among = catalogue"):
        collaborative_config(among="vocabulary")
