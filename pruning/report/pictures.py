"""The report's pictures, each with the sentence that stands for it where it is not seen."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from markupsafe import Markup
from torch import Tensor

from pruning.importance.scores import Axis, Scores
from pruning.report.fates import fates_of
from pruning.report.maps import head_map, head_similarities, heatmap, layer_map, strip
from pruning.report.plots import Band, Line, interval_chart, line_chart, stacked_bars
from pruning.report.reading import RunView
from pruning.report.redundancy import Redundancy, mean_similarity
from pruning.surgery.retained import Cut
from pruning.surgery.shape import Shape
from pruning.teacher.folder import TeacherRecord
from pruning.training.callbacks import nats_of

_POINTS = 120  # of a sorted curve; more than anybody sees


def anatomy(view: RunView) -> dict[str, Markup]:
    """What went where, by axis, as far as the stages have chosen; empty before the first."""
    cuts = []
    for stage in view.stages:
        if stage.cut is None:
            break
        cuts.append(stage.cut)
    if not cuts:
        return {}
    fates = fates_of(view.plan.whole_shape, cuts)
    names = [stage.name for stage in view.stages]
    layers, heads = fates.heads_LH.shape
    pictures = {}
    if any(cut.heads for cut in cuts):
        kept = int((fates.heads_LH[fates.layers_L == 0] == 0).sum())
        alt = f"Map of {layers} layers by {heads} query heads; {kept} heads were chosen to stay."
        pictures["heads"] = head_map(fates, _head_scores(view, cuts), names, alt)
    if any(cut.hidden for cut in cuts):
        kept = int((fates.hidden_C == 0).sum())
        where = (
            "the strongest direction first" if view.plan.recipe.rotate else "spread over the whole width"
        )
        alt = f"{kept} of {len(fates.hidden_C)} hidden channels stay, {where}."
        pictures["hidden"] = strip(fates.hidden_C, alt)
    if any(cut.mlp for cut in cuts):
        pictures["mlp"] = _kept_importance(view, fates.mlp_LF.shape[1])
    if any(cut.layers for cut in cuts):
        order = _first_scores(view, "layers")
        removal = None if order is None else order.removal_order
        stay = ", ".join(str(index + 1) for index in (fates.layers_L == 0).nonzero()[0])
        alt = f"Of {layers} layers these stay: {stay}."
        # A search in a model that has lost layers before counts in that model.
        known = removal is not None and len(removal) == layers - 1
        pictures["layers"] = layer_map(
            fates, removal.tolist() if known and removal is not None else None, names, alt
        )
    return pictures


def importance_curves(view: RunView, found: Redundancy | None) -> dict[str, Markup]:
    """How unevenly importance is spread: sorted scores and their cumulative share."""
    if found is None:
        return {}
    final, whole = view.plan.shapes[-1], view.plan.whole_shape
    hidden = final.hidden_size / whole.hidden_size
    mlp = final.intermediate_size / whole.intermediate_size
    return {
        "hidden": _sorted_curve(found.hidden_C[None], hidden, "channels"),
        "mlp": _sorted_curve(found.mlp_LF, mlp, "neurons"),
        "hidden_share": _cumulative(found.hidden_C[None], hidden, "channels"),
        "mlp_share": _cumulative(found.mlp_LF, mlp, "neurons"),
    }


def redundancy_pictures(found: Redundancy | None) -> dict[str, Markup]:
    """Which heads of a layer say the same, which layers leave the stream as it was."""
    if found is None:
        return {}
    layers, heads = found.heads_LHH.shape[:2]
    similar = [mean_similarity(one) for one in found.heads_LHH]
    places = ["input", *(f"after {layer + 1}" for layer in range(layers))]
    pictures = {
        "stream": heatmap(
            found.stream_MM,
            places,
            f"Similarity of the residual stream between {layers + 1} places of the model.",
        ),
        "influence": line_chart(
            [
                Line(
                    "1 − cos(input, output) of the layer",
                    _by_layer(found.influence_L.tolist()),
                    0,
                    dots=True,
                ),
                Line("mean similarity of its heads", _by_layer(similar), 1, dots=True),
            ],
            "layer",
            "0 … 1",
            "Block Influence and mean similarity of heads, by layer.",
            from_zero=True,
        ),
    }
    if heads > 1:
        alt = f"Similarity of the {heads} heads of each of {layers} layers, as one square a layer."
        pictures["heads"] = head_similarities(found.heads_LHH, alt)
    return pictures


def journey(view: RunView) -> Markup | None:
    """The loss after each cut and after each restoration, one after the other."""
    if view.teacher is None:
        return None
    moments = [("teacher", view.teacher.nats)]
    for stage in view.stages:
        if stage.after_cut is not None:
            moments.append((f"{stage.name} cut", stage.after_cut.nats))
        if stage.result is not None and stage.result.restored:
            moments.append((f"{stage.name} restored", stage.result.after_restoration.nats))
    told = ", ".join(f"{name} {loss:.2f}" for name, loss in moments)
    return line_chart(
        [Line("", [(float(place), loss) for place, (_, loss) in enumerate(moments)], 0, dots=True)],
        "",
        "nats per title",
        f"Validation loss in nats per title: {told}.",
        size=(1060, 260),
        places=[name for name, _ in moments],
        level=("teacher", view.teacher.nats),
        from_zero=True,
    )


def curves(view: RunView, teacher: TeacherRecord | None) -> list[tuple[str, list[Markup]]]:
    """Learning curves: the teacher's, then each stage's; the first point is the loss after the cut."""
    drawn: list[tuple[str, list[Markup]]] = []
    if teacher is not None:
        points = [(float(v.step), nats_of(v.figures)) for v in teacher.fit.validations]
        drawn.append(("The teacher", [_curve("teacher", points, None)]))
    for stage in view.stages:
        if stage.curve is None:
            continue
        start = [] if stage.after_cut is None else [(0.0, stage.after_cut.nats)]
        level = None if view.teacher is None else ("teacher", view.teacher.nats)
        pictures = [_curve(stage.name, [*start, *stage.curve.validation], level)]
        if len(stage.curve.training) > 1:
            picture = line_chart(
                [Line("", stage.curve.training, 0)],
                "step",
                "restoration loss, nats per token",
                f"Training loss of stage {stage.name}.",
            )
            pictures.append(picture)
        drawn.append((f"Stage {stage.name}", pictures))
    return drawn


def quality_picture(view: RunView) -> dict[str, Markup]:
    """HR@10 and NDCG@10 on the test split, with intervals; empty until the run is judged."""
    if view.report is None:
        return {}
    test = view.report.test
    models = {"teacher": test.teacher, "pruned": test.student, "popularity": test.popularity}
    hr10 = {name: one.hr10 for name, one in models.items()}
    ndcg10 = {name: one.ndcg10 for name, one in models.items()}
    alt = "on the test split with 95 % intervals; the table has the figures."
    return {
        "hr10": interval_chart(hr10, "HR@10", f"HR@10 {alt}"),
        "ndcg10": interval_chart(ndcg10, "NDCG@10", f"NDCG@10 {alt}"),
    }


def size_pictures(view: RunView) -> Markup:
    """Parameters by kind: the teacher and each stage that is done."""
    shapes = {"teacher": view.plan.teacher_shape}
    shapes |= {f"after {stage.name}": stage.shape for stage in view.finished_stages}
    rows = {name: _by_kind(shape) for name, shape in shapes.items()}
    totals = ", ".join(f"{name} {shape.total_parameters:,}" for name, shape in shapes.items())
    return stacked_bars(rows, "parameters", f"Parameters by kind. In all: {totals}.")


def _by_kind(shape: Shape) -> dict[str, float]:
    return {
        "attention": shape.attention_parameters,
        "MLP": shape.mlp_parameters,
        "norms": shape.norm_parameters,
        "embedding and head": shape.embedding_parameters,
    }


def _first_scores(view: RunView, axis: Axis) -> Scores | None:
    """The scores of the first stage that cuts the axis: those of the teacher's own parts."""
    return next((stage.scores[axis] for stage in view.stages if axis in stage.scores), None)


def _head_scores(view: RunView, cuts: Sequence[Cut]) -> dict[int, Tensor]:
    """Scores (H,) of the first stage that cuts heads, by the teacher's layers that were left then."""
    for before, stage in enumerate(view.stages):
        if "heads" in stage.scores:
            left = (fates_of(view.plan.whole_shape, cuts[:before]).layers_L == 0).nonzero()[0]
            return dict(zip(left.tolist(), stage.scores["heads"].values, strict=True))
    return {}


def _kept_importance(view: RunView, width: int) -> Markup:
    """By layer: the share of the score that the neurons kept at the first MLP cut hold."""
    stage = next(one for one in view.stages if one.cut is not None and one.cut.mlp is not None)
    assert stage.cut is not None
    assert stage.cut.mlp is not None
    kept = stage.cut.mlp.neurons
    share = len(kept[0]) / width
    scores = stage.scores.get("mlp")
    if scores is None or len(scores.values) != len(kept):
        return Markup("")
    held = [
        float(values_F[list(neurons)].sum() / values_F.sum().clamp_min(1e-30))
        for values_F, neurons in zip(scores.values.double(), kept, strict=True)
    ]
    return line_chart(
        [Line("", _by_layer([100 * value for value in held]), 0, dots=True)],
        "layer (of the model that this stage cut)",
        "% of the score that is kept",
        f"{share:.0%} of the neurons hold {min(held):.0%} to {max(held):.0%} of their layer's score.",
        level=(f"{share:.0%} of the neurons", 100 * share),
        from_zero=True,
    )


def _sorted_curve(scores_LX: Tensor, kept: float, what: str) -> Markup:
    """Scores from the highest to the lowest, each layer's over its mean: median and range of layers."""
    scaled_LX = scores_LX.double() / scores_LX.double().mean(dim=1, keepdim=True).clamp_min(1e-30)
    ordered_LX = scaled_LX.sort(dim=1, descending=True).values
    return _over_share(ordered_LX, kept, what, "score over the mean", f"Sorted scores of {what}")


def _cumulative(scores_LX: Tensor, kept: float, what: str) -> Markup:
    """The share of all score that the best so many hold."""
    ordered_LX = scores_LX.double().sort(dim=1, descending=True).values.cumsum(dim=1)
    shares_LX = 100 * ordered_LX / ordered_LX[:, -1:].clamp_min(1e-30)
    return _over_share(shares_LX, kept, what, "% of all score", f"Cumulative share of the score of {what}")


def _over_share(values_LX: Tensor, kept: float, what: str, y_name: str, alt: str) -> Markup:
    count = values_LX.shape[1]
    picked = torch.linspace(0, count - 1, min(count, _POINTS)).long().tolist()
    median_X = values_LX.median(dim=0).values
    shares = [100 * (index + 1) / count for index in picked]
    line = [(share, float(median_X[index])) for share, index in zip(shares, picked, strict=True)]
    low_X, high_X = values_LX.min(dim=0).values, values_LX.max(dim=0).values
    edges = [(share, float(low_X[i]), float(high_X[i])) for share, i in zip(shares, picked, strict=True)]
    return line_chart(
        [Line("", line, 0)],
        f"% of the {what}, the most important first",
        y_name,
        f"{alt}; {kept:.0%} are kept in the end.",
        bands=[Band(edges)] if len(values_LX) > 1 else [],
        mark=None if kept == 1 else (f"{kept:.0%} kept", 100 * kept),
        from_zero=True,
    )


def _curve(name: str, points: Sequence[tuple[float, float]], level: tuple[str, float] | None) -> Markup:
    told = f"from {points[0][1]:.2f} to {points[-1][1]:.2f}" if points else "not measured yet"
    alt = f"Validation loss of {name}, {told} nats per title."
    return line_chart(
        [Line("", points, 0, dots=True)], "step", "nats per title", alt, level=level, from_zero=True
    )


def _by_layer(values: Sequence[float]) -> list[tuple[float, float]]:
    return [(float(layer), value) for layer, value in enumerate(values, start=1)]
