"""How fast the pipeline is: ours beside a plain loop over the published method, on the same users.

    python -m benchmarks.pruning DATASET --base BASE_OR_SHAPE [--steps 8] [--recipes paper activation]
        [--half-billion] [--out docs/results/pruning.json]

BASE_OR_SHAPE is a Hugging Face folder, a GGUF file, or the shape of a random model
(`hidden_size=576,num_hidden_layers=30,…`). All runs on the CPU. The contenders, each in a process of its
own, take turns step by step; those named apart do so among themselves afterwards, which spares memory.
`pruning_ours.py` and `pruning_plain.py` hold them. Measured are training steps of the teacher, steps
of each stage's restoration (at 95 % removed), caching the teacher's signals, and calibration on a few
windows. Epochs, whole calibrations and whole recipes are *extrapolated* from these; validation, the same
for both sides, is in none of them. `--half-billion` also prunes a random 0.5B-class teacher, each
restoration a few steps long, and says how much memory it took.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import torch

from benchmarks import pruning_ours as ours
from benchmarks import pruning_plain as plain
from benchmarks.pruning_report import page
from benchmarks.pruning_subjects import (
    REMOVED_SHARE,
    TOKENS_PER_BATCH,
    Subjects,
    base_of,
    prepare_subjects,
    read_teacher,
    shapes_of,
)
from benchmarks.records import Record, described, publish
from benchmarks.turns import Contender, Course, alternate
from pruning.pipeline.recipe import Recipe, load_recipe
from recommender.dataset import Dataset

SAMPLED_WINDOWS = 512
CALIBRATION_WINDOWS = 4
CALIBRATION_ROUNDS = 2
HALF_BILLION = (  # in the shape of Qwen2 0.5B
    "hidden_size=896,num_hidden_layers=24,num_attention_heads=14,num_key_value_heads=2,"
    "intermediate_size=4864"
)
GOALS = {"training": 1.3, "whole": 5.0, "half_billion_peak_gb": 16.0}
ROWS = "plain, a row per target"
_PACKAGES = ("espalier", "torch", "transformers", "numpy")


def compared(
    side_by_side: Mapping[str, Contender], apart: Mapping[str, Contender], steps: int, all_titles: int
) -> Record:
    """Each contender's rate, what that makes an epoch, its peak memory, and how it compares to `plain`."""
    together = alternate(side_by_side, steps)
    courses = together | alternate(apart, steps)
    plain_rate = statistics.median(rates(together["plain"]))
    record: Record = {}
    for name, course in courses.items():
        rate = statistics.median(rates(course))
        times = ratio(course, together["plain"]) if name in together else rate / plain_rate
        record[name] = {
            **summary(course, all_titles),
            "times_plain": round(times, 2),
        }
    return record


def summary(course: Course, all_titles: int) -> Record:
    """Titles a second, seconds of a step and of an epoch, and peak memory."""
    rate = statistics.median(rates(course))
    return {
        "titles_per_s": round(rate, 2),
        "step_p50_s": round(statistics.median(course.seconds), 3),
        "epoch_s": round(all_titles / rate, 1),
        "peak_rss_mb": round(course.peak_rss_mb),
    }


def rates(course: Course) -> list[float]:
    """Titles a second of every turn."""
    return [titles / seconds for titles, seconds in zip(course.done, course.seconds, strict=True)]


def ratio(course: Course, other: Course) -> float:
    """The median over the rounds of one contender's rate to the other's in the same round."""
    return statistics.median(one / two for one, two in zip(rates(course), rates(other), strict=True))


def training(subjects: Subjects, steps: int) -> Record:
    """Fine-tuning the teacher: ours and a plain `Trainer`."""
    whole = subjects.whole
    mine = partial(ours.teach, subject=subjects.trimmed, steps=steps + 1)
    trainer = partial(plain.teach, subject=whole, batch=subjects.windows_per_batch, steps=steps + 1)
    return compared(
        {
            "ours, bfloat16": partial(mine, precision="bfloat16"),
            "ours, float32": partial(mine, precision="float32"),
            "plain": partial(trainer, windows=whole.windows, bf16=False),
        },
        {
            "plain, bf16": partial(trainer, windows=whole.windows, bf16=True),
            ROWS: partial(trainer, windows=plain.one_row_per_target(whole.windows), bf16=False),
        },
        steps,
        subjects.all_titles,
    )


def restoration(subjects: Subjects, recipe: Recipe, steps: int) -> list[Record]:
    """Each stage's restoration: ours from cached signals, the plain loop with its teacher in every step."""
    whole = subjects.whole
    rows = plain.one_row_per_target(whole.windows)
    shapes = shapes_of(recipe, read_teacher(subjects.trimmed))
    stages: list[Record] = []
    for number, (stage, shape) in enumerate(zip(recipe.stages, shapes[1:], strict=True), start=1):
        if stage.training is None:
            continue
        mine = partial(ours.restore, subject=subjects.trimmed, recipe=recipe, stage=number, steps=steps + 1)
        looped = partial(
            plain.restore,
            subject=whole,
            batch=subjects.windows_per_batch,
            recipe=recipe,
            stage=number,
            steps=steps + 1,
        )
        contenders = compared(
            {
                "ours, bfloat16": partial(mine, precision="bfloat16"),
                "ours, float32": partial(mine, precision="float32"),
                "plain": partial(looped, windows=whole.windows),
            },
            {ROWS: partial(looped, windows=rows)},
            steps,
            subjects.all_titles,
        )
        stages.append(
            {
                "stage": stage.name,
                "nonembedding_parameters": shape.nonembedding_parameters,
                "epochs": stage.training.epochs,
                "precision": stage.training.precision,
                "contenders": contenders,
            }
        )
    return stages


def calibration(subjects: Subjects, recipe: Recipe) -> Record:
    """Seconds of every stage's scores on the recipe's windows, extrapolated from a few."""
    windows, rounds = CALIBRATION_WINDOWS, CALIBRATION_ROUNDS + 1
    courses = alternate(
        {
            "ours": partial(
                ours.calibrate, subject=subjects.trimmed, recipe=recipe, windows=windows, rounds=rounds
            ),
            "plain": partial(
                plain.calibrate, subject=subjects.whole, recipe=recipe, windows=windows, rounds=rounds
            ),
        },
        CALIBRATION_ROUNDS,
    )
    asked = min(recipe.calibration.windows, subjects.all_windows)
    record: Record = {"windows": asked}
    for name, course in courses.items():
        seconds = {}
        for stage in recipe.stages:
            measured = statistics.median(done[stage.name] for done in course.done)
            seconds[stage.name] = round(asked / windows * measured, 2)
        record[name] = {"seconds": seconds, "peak_rss_mb": round(course.peak_rss_mb)}
    return record


def whole_run(stages: Sequence[Record], calibrated: Record, caching_s: float) -> Record:
    """Seconds of all stages: the recipe's epochs and scores, and the cache once where there is one."""

    def total(side: str, contender: Mapping[str, str]) -> float:
        epochs = sum(
            stage["epochs"] * stage["contenders"][contender[stage["stage"]]]["epoch_s"] for stage in stages
        )
        return float(epochs + sum(calibrated[side]["seconds"].values()))

    as_packaged = {stage["stage"]: f"ours, {stage['precision']}" for stage in stages}
    mine = total("ours", as_packaged) + caching_s
    others = {name: total("plain", dict.fromkeys(as_packaged, name)) for name in ("plain", ROWS)}
    return {
        "ours_s": round(mine),
        **{f"{name}_s": round(seconds) for name, seconds in others.items()},
        "ratio": round(others["plain"] / mine, 2),
    }


def half_billion(dataset: Dataset, steps: int) -> Record:
    """A random 0.5B-class teacher through the recipe `activation`, each restoration a few steps long."""
    recipe = load_recipe("activation")
    with tempfile.TemporaryDirectory() as folder:
        subjects = prepare_subjects(dataset, base_of(HALF_BILLION, dataset), Path(folder), 64)
        shapes = shapes_of(recipe, read_teacher(subjects.trimmed))
        pruned = partial(
            ours.prune_in_steps,
            subject=subjects.trimmed,
            recipe=recipe,
            windows=CALIBRATION_WINDOWS,
            steps=steps,
        )
        course = alternate({"ours": pruned}, len(recipe.stages) * steps - 1)["ours"]
    return {
        "teacher_parameters": shapes[0].total_parameters,
        "student_nonembedding_parameters": shapes[-1].nonembedding_parameters,
        "peak_rss_gb": round(course.peak_rss_mb / 1024, 2),
        "steps": len(course.seconds) + 1,
    }


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--base", required=True, help="a model folder, a GGUF file, or KEY=VALUE,…")
    parser.add_argument("--steps", type=int, default=8, help="measured steps, after one that warms up")
    parser.add_argument("--recipes", nargs="+", default=["paper", "activation"])
    parser.add_argument("--half-billion", action="store_true", help="heavy: up to 16 GB")
    parser.add_argument("--out", type=Path, help="the JSON record; its page goes beside it")
    given = parser.parse_args()
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the children's: both sides on the CPU
    dataset = Dataset(given.dataset)
    base = base_of(given.base, dataset)
    lineage = base.lineage
    with tempfile.TemporaryDirectory() as folder:
        subjects = prepare_subjects(dataset, base, Path(folder), SAMPLED_WINDOWS)
        del base  # the children read it from the folder
        record: Record = {
            **described(_PACKAGES),
            "dataset": dataset.card.name,
            "base": lineage.name if "=" not in given.base else given.base,
            "parameters": lineage.parameters,
            "threads": torch.get_num_threads(),
            "steps": given.steps,
            "sampled_windows": len(subjects.trimmed.windows),
            "windows": subjects.all_windows,
            "titles": subjects.all_titles,
            "tokens_per_batch": TOKENS_PER_BATCH,
            "windows_per_batch": subjects.windows_per_batch,
            "vocabulary": {"ours": subjects.trimmed.vocab_size, "plain": subjects.whole.vocab_size},
            "removed_share": REMOVED_SHARE,
            "goals": GOALS,
            "training": training(subjects, given.steps),
        }
        caching = alternate({"ours": partial(ours.cache, subject=subjects.trimmed)}, 1)
        record["caching"] = summary(caching["ours"], subjects.all_titles)
        record["recipes"] = {}
        for name in given.recipes:
            recipe = load_recipe(name)
            stages, calibrated = restoration(subjects, recipe, given.steps), calibration(subjects, recipe)
            record["recipes"][name] = {
                "restoration": stages,
                "calibration": calibrated,
                "whole": whole_run(stages, calibrated, record["caching"]["epoch_s"]),
            }
    record["half_billion"] = half_billion(dataset, min(3, given.steps)) if given.half_billion else None
    publish(record, given.out, page)


if __name__ == "__main__":
    main()
