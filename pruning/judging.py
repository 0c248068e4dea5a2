"""`espalier evaluate`: any model of ours, ranked over a whole split, with popularity beside it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from pydantic import BaseModel, ConfigDict

from pruning.checkpoint import load_checkpoint
from pruning.evaluation import RankingTask, lean_transformer
from pruning.export import read_report
from pruning.pipeline.quality import contender
from pruning.pipeline.results import Contender
from pruning.pipeline.run import REPORT_FILE
from pruning.pipeline.stage import STUDENT_FOLDER, stage_folder
from pruning.progress import Reporter
from pruning.teacher.folder import MODEL_FOLDER, RECORD_FILE
from recommender.artifact import MANIFEST, Artifact
from recommender.dataset import Dataset, Split
from recommender.errors import InputError
from recommender.prompt import PromptEncoder
from recommender.ranking import Interval, Metrics, UserBootstrap, gains
from recommender.search.transformer import LeanTransformer


class Judgement(BaseModel):
    """A model and popularity on the same rows; `gain_ndcg10` is the ratio of their NDCG@10."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    dataset: str
    split: Split
    model: Contender
    popularity: Contender
    gain_ndcg10: Interval

    def by_model(self) -> dict[str, tuple[Metrics, Interval, Interval]]:
        """What `metrics_table` shows."""
        return {
            name: (one.metrics, one.hr10, one.ndcg10)
            for name, one in ((self.name, self.model), ("popularity", self.popularity))
        }


@dataclass(frozen=True)
class _Contestant:
    name: str
    encoder: PromptEncoder
    model: LeanTransformer


def evaluate(model: Path, dataset_path: Path, split: str, reporter: Reporter) -> Judgement:
    """Ranks every row of a split over the data set's whole catalogue.

    Raises:
        InputError: no model there, no such split, or a data set that cannot be read.
    """
    if split not in get_args(Split):
        raise InputError(f"no split {split!r}; choose one of {', '.join(get_args(Split))}")
    dataset = Dataset(dataset_path)
    contestant = _open(model)
    rows = dataset.rows(split)  # type: ignore[arg-type]  # it was checked above
    task = RankingTask(dataset.catalogue, contestant.encoder, rows)
    reporter.say(f"ranking {len(rows):,} rows with {contestant.name}")
    ranks_R = task.ranks(contestant.model, reporter.counter("ranking"))
    popular_R = task.popularity_ranks()
    bootstrap = UserBootstrap(rows.user_ids)
    return Judgement(
        name=contestant.name,
        dataset=dataset.card.name,
        split=split,
        model=contender(ranks_R, bootstrap),
        popularity=contender(popular_R, bootstrap),
        gain_ndcg10=bootstrap.ratio(gains(ranks_R, 10), gains(popular_R, 10)),
    )


def _open(path: Path) -> _Contestant:
    """Finds out what a folder is, and loads its model."""
    if (path / MANIFEST).is_file():
        artifact = Artifact.open(path)
        artifact.verify()
        return _Contestant(artifact.identity, artifact.load_encoder(), artifact.load_transformer())
    folder = path
    if (path / REPORT_FILE).is_file():
        report = read_report(path)
        folder = stage_folder(path, len(report.stages), report.stages[-1]) / STUDENT_FOLDER
    elif (path / RECORD_FILE).is_file():
        folder = path / MODEL_FOLDER
    if not (folder / "config.json").is_file():
        raise InputError(
            f"{path}: neither an artifact nor a finished teacher, run or checkpoint; give one of these"
        )
    checkpoint = load_checkpoint(folder)
    encoder = PromptEncoder(checkpoint.template, checkpoint.tokenizer)
    return _Contestant(path.resolve().name, encoder, lean_transformer(checkpoint.model))
