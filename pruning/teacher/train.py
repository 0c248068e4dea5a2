"""Fine-tunes a base into a teacher: the model that the pruned one is measured against.

TEACHER/settings.json     what was asked for; another request is refused
TEACHER/collaborative.safetensors  the sequence model that helped to train it, if one did
TEACHER/training/         the Trainer's checkpoints and learning curves
TEACHER/model/            the best checkpoint, a plain Hugging Face folder
TEACHER/teacher.json      `TeacherRecord`, written last: the training is done
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator

from pruning import processes
from pruning.checkpoint import save_checkpoint
from pruning.distill.collaborative import SequenceSignal, TitleLessons, TitleSequences, kept_on_titles
from pruning.distill.objective import Distillation, DistillationConfig
from pruning.evaluation import ModelValidation, RankingTask, lean_transformer
from pruning.folder import claim
from pruning.progress import Reporter
from pruning.surgery.adapter import CausalModel
from pruning.surgery.shape import Shape
from pruning.teacher.base import Base, BaseLineage, load_base
from pruning.teacher.folder import COLLABORATIVE_FILE, MODEL_FOLDER, RECORD_FILE, TeacherRecord, read_record
from pruning.teacher.scratch import ScratchConfig, base_from_scratch
from pruning.teacher.vocabulary import trim_vocabulary
from pruning.training.decisions import Children, NextDecision, at_decisions
from pruning.training.loop import FitResult, TrainingConfig, fit
from pruning.training.lora import Trainable, merged, with_adapters
from pruning.training.objective import NextToken, Objective
from pruning.training.windows import UserPacker, Window
from recommender.dataset import Dataset
from recommender.prompt import SEPARATOR, PromptEncoder, PromptTemplate
from recommender.ranking import Metrics, UserBootstrap, gains
from recommender.storage import new_directory, sha256_of, write_file

_SETTINGS_FILE = "settings.json"


class TeacherConfig(BaseModel):
    """What to train, on which prompt, and how.

    Attributes:
        base: None: from scratch, in the shape of `scratch`.
        lora_rank: train adapters of this rank instead of all weights (`pruning.training.lora`).
        among: what the next token is chosen among: the whole vocabulary at every token of a title, or the
            catalogue's tokens at the trie's decisions, as in the search. Labels are smoothed in the first
            only: most tokens never follow in the second.
        collaborative: how much of the loss is the divergence from a sequence model of the same histories
            (`pruning/distill/collaborative.py`); the rest is the truth's cross-entropy.
        validation_rows: so many rows of the validation split are ranked at each validation.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    base: Path | None = None
    scratch: ScratchConfig = ScratchConfig()
    training: TrainingConfig
    lora_rank: Annotated[int, Field(ge=1)] | None = None
    among: Literal["vocabulary", "catalogue"] = "vocabulary"
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    collaborative: Annotated[float, Field(gt=0, lt=1)] | None = None
    prompt: PromptTemplate = PromptTemplate()
    validation_rows: Annotated[int, Field(ge=1)] = 1000

    @model_validator(mode="after")
    def _suits_what_is_chosen_among(self) -> Self:
        if self.label_smoothing and self.among == "catalogue":
            raise ValueError("label_smoothing needs among = vocabulary")
        if self.collaborative is not None and self.among == "vocabulary":
            raise ValueError("collaborative needs among = catalogue: a sequence model knows titles only")
        return self


class _Settings(BaseModel):
    """What a folder is bound to: also the base's weights, since others may come to stand at its path."""

    dataset_sha256: str
    base_sha256: str | None
    config: TeacherConfig


def train_teacher(
    dataset_path: Path, out: Path, config: TeacherConfig, reporter: Reporter
) -> TeacherRecord:
    """Trains a teacher in `out`; on the same folder it resumes, or says that it is done.

    Raises:
        InputError: a data set or base that cannot be used, or a folder that holds other work.
        TrainingError: the loss is not finite.
        MissingPackageError: `lora_rank` is set and peft is not installed.
    """
    dataset = Dataset(dataset_path)

    def claim_for(base: BaseLineage) -> None:
        settings = _Settings(dataset_sha256=dataset.digest, base_sha256=base.weights_sha256, config=config)
        claim(out, _SETTINGS_FILE, settings)

    record_file = out / RECORD_FILE
    if processes.once(record_file.exists):
        record = read_record(record_file)
        claim_for(record.base)
        reporter.say(f"{out}: trained already")
        return record

    # Before the folder is claimed: a mistyped base must not stand in the settings for ever.
    base = _prepared_base(dataset, config)
    model = _trainable(base.model, config)
    processes.once(lambda: claim_for(base.lineage))
    shape = Shape.of(base.model.config)
    reporter.say(
        f"base {base.lineage.name}: {base.lineage.architecture}, "
        f"{shape.nonembedding_parameters:,} non-embedding parameters, {shape.vocab_size:,} tokens"
    )
    if config.lora_rank is not None:
        trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        reporter.say(f"training {trained:,} parameters of adapters of rank {config.lora_rank}")
    encoder = PromptEncoder(config.prompt, base.tokenizer)
    validation = ModelValidation(dataset, encoder, config.validation_rows, config.training.seed)
    windows = UserPacker(encoder, dataset.catalogue.titles).training(dataset)
    objective: Objective = NextToken(config.label_smoothing)
    if config.among == "catalogue":
        windows = at_decisions(windows, validation.trie)
        objective = _objective_at_decisions(windows, validation, config, shape.vocab_size, out, reporter)
    result = fit(
        model,
        windows,
        objective,
        validation,
        config.training,
        out / "training",
        reporter,
    )
    base = replace(base, model=merged(model))
    base.model.eval()  # type: ignore[no-untyped-call]
    return processes.once(lambda: _finish(dataset, base, encoder, config, result, out))


def _trainable(model: CausalModel, config: TeacherConfig) -> Trainable:
    if config.lora_rank is None:
        return model
    return with_adapters(model, config.lora_rank, config.training.seed)


def _objective_at_decisions(
    windows: Sequence[Window],
    validation: ModelValidation,
    config: TeacherConfig,
    vocabulary: int,
    out: Path,
    reporter: Reporter,
) -> Objective:
    """The truth at the windows' decisions, and beside it, where asked for, what a sequence model says."""
    trie = validation.trie
    children = Children(trie)
    if config.collaborative is None:
        return NextDecision(children)
    lessons = TitleLessons(TitleSequences(trie), windows, validation.windows, config.training.seed)
    model = kept_on_titles(out / COLLABORATIVE_FILE, lessons, reporter)
    weights = DistillationConfig(
        cross_entropy=1 - config.collaborative, forward_kl=config.collaborative, among="catalogue"
    )
    source = SequenceSignal(trie, model, windows, vocabulary)
    return Distillation(weights, source, children.among_catalogue)


def _prepared_base(dataset: Dataset, config: TeacherConfig) -> Base:
    titles = dataset.catalogue.titles
    if config.base is None:
        return base_from_scratch(config.scratch, titles, config.prompt)
    base = load_base(config.base)
    texts = [*titles, config.prompt.instruction, SEPARATOR]
    trimmed = trim_vocabulary(base.model, base.tokenizer, texts)
    return Base(trimmed.model, trimmed.tokenizer, base.lineage)


def _finish(
    dataset: Dataset,
    base: Base,
    encoder: PromptEncoder,
    config: TeacherConfig,
    result: FitResult,
    out: Path,
) -> TeacherRecord:
    """Writes the model, and last the record with its figures."""
    model_folder = out / MODEL_FOLDER
    if not model_folder.exists():
        with new_directory(model_folder) as folder:
            save_checkpoint(folder, base.model, base.tokenizer, config.prompt)
    rows = dataset.rows("valid").sample(config.validation_rows, config.training.seed)
    task = RankingTask(dataset.catalogue, encoder, rows)
    with torch.inference_mode():
        ranks_R = task.ranks(lean_transformer(base.model))
    popular_R = task.popularity_ranks()
    record = TeacherRecord(
        dataset=dataset.card.name,
        dataset_sha256=dataset.digest,
        base=base.lineage,
        among=config.among,
        model_sha256=sha256_of(model_folder / "model.safetensors"),
        shape=Shape.of(base.model.config),
        fit=result,
        quality=Metrics.of(ranks_R),
        popularity=Metrics.of(popular_R),
        gain_ndcg10=UserBootstrap(rows.user_ids).ratio(gains(ranks_R, 10), gains(popular_R, 10)),
    )
    write_file(out / RECORD_FILE, record.model_dump_json(indent=2) + "\n")
    return record
