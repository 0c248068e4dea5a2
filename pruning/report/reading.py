"""What stands in a run folder at this moment, whether or not the run is finished.

Nothing is measured here and nothing is written. What a killed or running command has not made yet is None.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from pruning.errors import RunError
from pruning.importance.scores import Axis, Scores, load_scores
from pruning.pipeline.files import read_record
from pruning.pipeline.labels import TeachersShare, share_file
from pruning.pipeline.record import RunPlan, RunSettings, read_plan, read_settings
from pruning.pipeline.results import Figures, RunReport, StageResult
from pruning.pipeline.run import FIGURES_FILE, REPORT_FILE
from pruning.pipeline.stage import (
    AFTER_CUT_FILE,
    CUT_FILE,
    RESULT_FILE,
    STUDENT_FOLDER,
    TRAINING_FOLDER,
    PlannedStage,
)
from pruning.surgery.retained import Cut
from pruning.training.callbacks import nats_of

_TRAINER_STATE = "trainer_state.json"


@dataclass(frozen=True)
class Curve:
    """A training so far: (step, value) pairs.

    Attributes:
        training: the restoration's own loss, nats per token.
        validation: nats per title on the validation split.
    """

    training: tuple[tuple[float, float], ...]
    validation: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class StageView:
    """One stage as far as it has come.

    Attributes:
        scores: of the axes that have been scored.
        share: the teacher's in the signals, where they are a mixture and have been made.
    """

    planned: PlannedStage
    scores: dict[Axis, Scores]
    cut: Cut | None
    after_cut: Figures | None
    share: TeachersShare | None
    curve: Curve | None
    result: StageResult | None
    student: Path | None

    @property
    def name(self) -> str:
        return self.planned.stage.name


@dataclass(frozen=True)
class RunView:
    """A run as far as it has come."""

    path: Path
    settings: RunSettings
    plan: RunPlan
    teacher: Figures | None
    stages: tuple[StageView, ...]
    report: RunReport | None

    @property
    def name(self) -> str:
        """The folder's name with the one it stands in, since many runs are called `run`."""
        return "/".join(self.path.resolve().parts[-2:])

    @property
    def finished_stages(self) -> tuple[StageResult, ...]:
        """The results of the stages that are done, in order."""
        return tuple(stage.result for stage in self.stages if stage.result is not None)

    @property
    def newest(self) -> StageView | None:
        """The last stage that is done."""
        return next((stage for stage in reversed(self.stages) if stage.result is not None), None)

    @property
    def missing(self) -> tuple[str, ...]:
        """What the run has not come to, in words."""
        if self.report is not None:
            return ()
        undone = [stage for stage in self.stages if stage.result is None]
        found = [f"stage {stage.planned.number} ({stage.name}): {_progress(stage)}" for stage in undone]
        return (*found, "the test split has not been judged")


def read_run(path: Path) -> RunView:
    """Reads a run.

    Raises:
        RunError: no run there, or a damaged file in it.
    """
    settings, plan = read_settings(path), read_plan(path)
    stages = tuple(_read_stage(path, settings.seed, planned) for planned in plan.stages(settings))
    report_file, teacher_file = path / REPORT_FILE, path / FIGURES_FILE
    report = read_record(report_file, RunReport) if report_file.is_file() else None
    if report is not None and [s.key for s in report.stages] != [s.planned.key for s in stages]:
        report = None  # of another target, which the plan no longer asks for
    if report is not None:
        teacher: Figures | None = report.teacher
    else:
        teacher = read_record(teacher_file, Figures) if teacher_file.is_file() else None
    return RunView(path, settings, plan, teacher, stages, report)


def _read_stage(run: Path, seed: int, planned: PlannedStage) -> StageView:
    folder = planned.folder(run)
    cut, after_cut = folder / CUT_FILE, folder / AFTER_CUT_FILE
    result, student = folder / RESULT_FILE, folder / STUDENT_FOLDER
    files = planned.score_files(run, seed)
    share = share_file(run, planned.stage.distillation)
    return StageView(
        planned=planned,
        scores={axis: load_scores(file) for axis, file in files.items() if file.is_file()},
        cut=read_record(cut, Cut) if cut.is_file() else None,
        after_cut=read_record(after_cut, Figures) if after_cut.is_file() else None,
        share=read_record(share, TeachersShare) if share is not None and share.is_file() else None,
        curve=_read_curve(folder / TRAINING_FOLDER),
        result=read_record(result, StageResult) if result.is_file() else None,
        student=student if student.is_dir() else None,
    )


def _read_curve(folder: Path) -> Curve | None:
    """The log of the newest checkpoint, which holds all that came before it."""
    states = list(folder.glob(f"checkpoint-*/{_TRAINER_STATE}"))
    if not states:
        return None
    newest = max(states, key=lambda file: int(file.parent.name.rpartition("-")[2]))
    try:
        log = json.loads(newest.read_bytes())["log_history"]
        return Curve(
            training=tuple((entry["step"], entry["loss"]) for entry in log if "loss" in entry),
            validation=tuple(
                (entry["step"], nats_of(entry, "eval_")) for entry in log if "eval_loss" in entry
            ),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(f"{newest}: damaged ({error}); remove its folder and prune again") from error


def _progress(stage: StageView) -> str:
    if stage.curve is not None and stage.curve.validation:
        return f"cut, restored up to step {stage.curve.validation[-1][0]:,.0f}, not finished"
    if stage.after_cut is not None:
        return "cut, not restored" if stage.planned.stage.training else "cut, not kept yet"
    if stage.cut is not None:
        return "chosen what to keep, not cut"
    return "scored, nothing cut" if stage.scores else "not begun"
