"""The results page's first table: NDCG@10 of all methods at a glance, and how to read what follows."""

from __future__ import annotations

from benchmarks.quality.comparison import CONTROLS, SETS, SIZES, Results
from benchmarks.quality.rows import Method
from benchmarks.records import table

HOW_TO_READ = """\
- SmolLM2-135M-Instruct is fine-tuned on each data set, pruned, and ranked over the whole test split and
  the whole catalogue (`quality.json`). A hit is a title match; histories have at most ten items.
- Intervals hold 95 % of bootstrap samples over users, retention and differences in pairs; each is of one
  comparison, not corrected for there being many. A test row's value is averaged over the seeds first, and
  differences are of seeds that both have. No interval tells of other seeds: three of `espalier` differ by
  up to .004 on movies_and_tv.
- Every choice was made on the validation split of movies_and_tv, those of decisions 18 and 19 (1,024
  tokens a signal, the mixture, the repair at an even size) on that of cds_and_vinyl. Trials stand in
  `quality_trials.csv`, where there is one, and in `first_cuts_movies_202611.md`.
- All methods of a size have one final shape (`depth-only`: whole layers of full width under the same
  limit) and read equally many training tokens. Budget 1 is twelve readings of the training histories.
- `scratch-distilled` and `random` differ from `espalier` in one thing each: drawn weights, which warm up
  longer; what is kept. `scratch` lacks the teacher, too. `depth-only` keeps whole layers: at 95 % one fits,
  so it has a third fewer parameters.
- `paper` is restored among the catalogue, since the teacher is trained at decisions. Its scores are the
  published ones, which read all tokens and suit such a teacher less. Its objective, histories, 64 tokens a
  signal and learning rate are the published method's, its batches as large as ours.
- Where their recipe says `collaborative`, all that are distilled but `paper` are shown a mixture of the
  teacher and of a sequence model like `sasrec` (decision 18), so they can keep more than all of the
  teacher. `sasrec` is what such a model ranks by itself.
- Teachers learn beside a sequence model, too, by half of their loss (decision 18).
- A row is of its recipe and its teacher as they stood at the commit beside its command. Students learn in
  batches of 1,024 tokens since 1 December 2026, those of older rows of 2,048. All products of a set,
  the teacher's too, are float32's, or bfloat16's where the commands at the end say so."""
"""What was done, what a method is and what an interval means."""
_BUDGETS = (1.0, 0.25)
_BESIDE: tuple[Method, ...] = ("teacher", "sasrec")


def in_short(results: Results) -> list[str]:
    """A line for each set, size and deciding budget that has a row of `espalier`; none without one."""
    lines = [
        line
        for size in SIZES
        for budget in _BUDGETS
        for name in SETS
        if (line := _line(results, name, size, budget))
    ]
    if not lines:
        return []
    head = ["data set", "gone", "budget", *_BESIDE, "espalier", "keeps HR@10", "keeps NDCG@10", *CONTROLS]
    return [
        "NDCG@10 over the whole test split and the whole catalogue. `keeps` is the share of the teacher's. "
        "A star: `espalier` is above that control, and the interval of the difference over users leaves "
        "zero out. `—`: no row yet.",
        table(head, lines),
    ]


def _line(results: Results, name: str, size: int, budget: float) -> list[str] | None:
    rows = results.of(name, "espalier", size, budget)
    if not rows:
        return None
    ours = results.averaged(rows)
    cells = [_value(results, name, method, None, None) for method in _BESIDE]
    kept = ["—" if one is None else f"{one.value:.1%}" for one in (ours.keeps_hr10, ours.keeps_ndcg10)]
    controls = []
    for control in CONTROLS:
        pair = results.paired(control, size, budget, [name])
        star = " *" if pair and pair.above else ""
        controls.append(_value(results, name, control, size, budget) + star)
    return [name, f"{size} %", f"{budget:g}", *cells, f"**{ours.ndcg10.value:.4f}**", *kept, *controls]


def _value(results: Results, name: str, method: Method, size: int | None, budget: float | None) -> str:
    rows = results.of(name, method, size, budget)
    return f"{results.averaged(rows).ndcg10.value:.4f}" if rows else "—"
