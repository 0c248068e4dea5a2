import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from pruning.errors import RecipeError
from pruning.pipeline.plan import Target, key_value_heads_for, plan_shapes
from pruning.pipeline.recipe import Recipe, Stage, load_recipe, packaged_recipes
from pruning.surgery.plan import check_target
from pruning.surgery.shape import Shape
from pruning.training.loop import TrainingConfig

TRAINING = TrainingConfig(epochs=1)


def shape(family: str = "llama", **sizes: int) -> Shape:
    smollm2 = {
        "vocab_size": 4000,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "head_dim": 64,
    }
    return Shape.model_validate(
        {
            "model_type": family,
            "tie_word_embeddings": True,
            "attention_bias": family == "qwen2",
            "mlp_bias": False,
            **smollm2,
            **sizes,
        }
    )


TEACHERS = {
    "smollm2": shape(),
    "qwen2-0.5b as llama": shape(
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
    ),
    "qwen3": shape("qwen3", hidden_size=1024, num_attention_heads=16, num_key_value_heads=8, head_dim=128),
    "tiny": shape(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
    ),
}


def recipe(*stages: dict[str, float]) -> Recipe:
    return Recipe(
        name="r",
        description="",
        stages=tuple(
            Stage(name=f"s{number}", keep=keep, importance="activation", training=TRAINING)
            for number, keep in enumerate(stages)
        ),
    )


@pytest.mark.parametrize("teacher", TEACHERS.values(), ids=TEACHERS)
@pytest.mark.parametrize("name", packaged_recipes())
@pytest.mark.parametrize("removed", [None, 0.5, 0.95])
def test_every_stage_is_a_legal_cut_of_the_one_before(
    teacher: Shape, name: str, removed: float | None
) -> None:
    before = teacher
    for after in plan_shapes(teacher, load_recipe(name), Target(removed_share=removed)):
        check_target(before, after)
        assert after.nonembedding_parameters < before.nonembedding_parameters
        before = after
    if removed is not None:
        assert before.nonembedding_parameters <= (1 - removed) * teacher.nonembedding_parameters


def test_a_number_of_parameters_is_a_bound() -> None:
    for budget in (5_310_172, 2_124_069):
        target = Target(nonembedding_parameters=budget)
        final = plan_shapes(TEACHERS["smollm2"], load_recipe("activation"), target)[-1]
        assert 0.9 * budget < final.nonembedding_parameters <= budget


@pytest.mark.parametrize(
    ("heads", "key_value"),
    [(7, 7), (14, 2)],
)
def test_key_value_heads_keep_the_group_size_nearest(heads: int, key_value: int) -> None:
    # 14 heads in 2 groups: 7 heads go in one group of 7 or in 7 of one; a group of 7 is the same size.
    expected = {7: 1, 14: 2}[heads]
    assert key_value_heads_for(TEACHERS["qwen2-0.5b as llama"], heads) == expected
    assert expected <= key_value


def test_sizes_by_hand() -> None:
    target = Target(sizes={"hidden_size": 288, "num_attention_heads": 3, "num_hidden_layers": 9})
    shapes = plan_shapes(TEACHERS["smollm2"], load_recipe("activation"), target)
    final = shapes[-1]
    assert (final.hidden_size, final.num_attention_heads, final.num_key_value_heads) == (288, 3, 1)
    assert [s.num_hidden_layers for s in shapes] == [30, 30, 9]


def test_gradual_cuts_end_where_the_last_stage_says() -> None:
    shapes = plan_shapes(
        TEACHERS["smollm2"], recipe({"mlp": 0.5}, {"layers": 0.5}, {"mlp": 0.25}), Target()
    )
    assert [s.intermediate_size for s in shapes] == [768, 768, 384]
    assert [s.num_hidden_layers for s in shapes] == [30, 15, 15]


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (Target(sizes={"hidden": 288}), "no size 'hidden'"),
        (Target(sizes={"hidden_size": 290}), "multiple of num_attention_heads"),
        (Target(sizes={"num_hidden_layers": 31}), "only removes"),
        (Target(sizes={"num_attention_heads": 7, "num_key_value_heads": 2}), "7/7"),
        (Target(nonembedding_parameters=100), "no legal shape"),
        (Target(nonembedding_parameters=10**6, sizes={"hidden_size": 288}), "not both"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(target: Target, words: str) -> None:
    with pytest.raises(RecipeError, match=words) as caught:
        plan_shapes(TEACHERS["smollm2"], load_recipe("activation"), target)
    assert "\n" not in str(caught.value)


def test_a_size_that_no_stage_cuts_is_refused() -> None:
    with pytest.raises(RecipeError, match="no stage of recipe r cuts hidden_size"):
        plan_shapes(TEACHERS["smollm2"], recipe({"mlp": 0.5}), Target(sizes={"hidden_size": 288}))


def test_a_width_on_the_way_fits_its_heads_and_the_final_width() -> None:
    # 5 heads on the way round .3281 of 896 to 280, which is below the final 288, and do not divide that.
    teacher = TEACHERS["qwen2-0.5b as llama"]
    gradual = recipe({"heads": 0.3281, "hidden": 0.3281}, {"heads": 0.3, "hidden": 0.32})
    shapes = plan_shapes(teacher, gradual, Target())
    assert [(s.num_attention_heads, s.hidden_size) for s in shapes] == [(5, 290), (4, 288)]


@pytest.mark.parametrize("teacher", TEACHERS.values(), ids=TEACHERS)
@settings(max_examples=40, deadline=None, derandomize=True)
@given(shares=st.lists(st.floats(0.05, 1), min_size=2, max_size=4).map(lambda s: sorted(s, reverse=True)))
def test_heads_and_width_may_go_little_by_little(teacher: Shape, shares: list[float]) -> None:
    gradual = recipe(*({"heads": share, "hidden": share} for share in shares))
    before = teacher
    for after in plan_shapes(teacher, gradual, Target()):
        check_target(before, after)
        before = after
    assert before == plan_shapes(teacher, recipe({"heads": shares[-1], "hidden": shares[-1]}), Target())[0]


def test_heads_on_the_way_can_still_become_the_final_ones() -> None:
    # 9 heads of 14 go with 9 keys and values only, which lead to no 4 heads over 1; 10 do not divide 896.
    teacher = TEACHERS["qwen2-0.5b as llama"]
    shapes = plan_shapes(teacher, recipe({"heads": 9 / 14}, {"heads": 4 / 14}), Target())
    assert [(s.num_attention_heads, s.num_key_value_heads) for s in shapes] == [(8, 2), (4, 1)]


def test_a_stage_that_does_not_fit_is_named() -> None:
    with pytest.raises(RecipeError, match=r"stage s0: hidden_size 288 is no multiple of .* 14"):
        plan_shapes(TEACHERS["qwen2-0.5b as llama"], recipe({"hidden": 0.32}, {"heads": 0.285}), Target())


def test_heads_by_hand_move_the_recipes_width_to_one_that_they_divide() -> None:
    target = Target(sizes={"num_attention_heads": 7})
    final = plan_shapes(shape(num_attention_heads=9), load_recipe("activation"), target)[-1]
    assert final.num_attention_heads == 7
    assert final.hidden_size % 7 == 0


ODD = shape(
    hidden_size=100,
    intermediate_size=300,
    num_hidden_layers=12,
    num_attention_heads=4,
    num_key_value_heads=2,
)


@settings(deadline=None)
@given(
    teacher=st.sampled_from([*TEACHERS.values(), ODD]),
    keep=st.dictionaries(
        st.sampled_from(["heads", "hidden", "mlp", "layers"]), st.floats(0.1, 1), min_size=1
    ),
    removed=st.floats(0, 0.95),
)
def test_what_no_stage_cuts_stays_and_a_budget_holds(
    teacher: Shape, keep: dict[str, float], removed: float
) -> None:
    target = Target(removed_share=removed)
    budget = target.budget(teacher.nonembedding_parameters)
    assert budget is not None
    try:
        (final,) = plan_shapes(teacher, recipe(keep), target)
    except RecipeError as error:
        if "no legal shape of this teacher has at most" not in str(error):
            raise
        return
    assert final.nonembedding_parameters <= budget
    if "heads" not in keep:
        assert final.num_attention_heads == teacher.num_attention_heads
        assert final.num_key_value_heads == teacher.num_key_value_heads
    uncut = {"hidden": "hidden_size", "mlp": "intermediate_size", "layers": "num_hidden_layers"}
    for axis, size in uncut.items():
        if axis not in keep:
            assert getattr(final, size) == getattr(teacher, size), axis


def test_heads_that_a_width_that_stays_allows() -> None:
    (final,) = plan_shapes(shape(), recipe({"heads": 0.6, "layers": 0.2}), Target())
    assert (final.hidden_size, final.num_attention_heads) == (576, 6)  # not 5, which does not divide it


def test_a_share_counts_the_parameters_of_the_teacher_as_it_was() -> None:
    teacher = TEACHERS["tiny"]
    whole = teacher.nonembedding_parameters - 900
    target = Target(removed_share=0.5)
    final = plan_shapes(teacher, load_recipe("paper"), target, whole)[-1]
    assert final.nonembedding_parameters <= 0.5 * whole


def test_neurons_with_biases_fill_the_budget_and_no_more() -> None:
    teacher = TEACHERS["smollm2"].model_copy(update={"mlp_bias": True})
    target = Target(nonembedding_parameters=teacher.nonembedding_parameters * 2 // 3)
    final = plan_shapes(teacher, recipe({"mlp": 0.9}), target)[-1]
    one_step_more = final.resized(intermediate_size=final.intermediate_size + 8)
    assert final.nonembedding_parameters <= target.nonembedding_parameters
    assert one_step_more.nonembedding_parameters > target.nonembedding_parameters


@pytest.mark.parametrize(
    "nonsense",
    [
        {"sizes": {"hidden_size": 0}},
        {"nonembedding_parameters": 0},
        {"removed_share": 1.0},
        {"removed_share": float("nan")},
    ],
)
def test_targets_that_are_none(nonsense: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Target.model_validate(nonsense)
