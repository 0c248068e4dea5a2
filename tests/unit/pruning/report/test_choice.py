"""The reasons name what was asked, what it allowed and what came of it."""

from small_run import recipe

from pruning.pipeline.plan import Target, plan_shapes
from pruning.pipeline.record import RunPlan
from pruning.report.choice import reasons
from pruning.surgery.shape import Shape

TEACHER = Shape(
    model_type="llama",
    vocab_size=300,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=6,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    tie_word_embeddings=True,
    attention_bias=False,
    mlp_bias=False,
)


def said(target: Target) -> tuple[str, Shape]:
    asked = recipe()
    shapes = plan_shapes(TEACHER, asked, target)
    plan = RunPlan(
        dataset="films",
        base="scratch",
        recipe=asked,
        target=target,
        teacher_shape=TEACHER,
        whole_shape=TEACHER,
        shapes=shapes,
    )
    return " ".join(reasons(plan)), shapes[-1]


def test_without_a_target_the_recipe_decides() -> None:
    words, _ = said(Target())
    assert "50% of the attention heads, 50% of the hidden channels" in words
    assert "No target was given" in words
    assert "Stage 1 (width) chooses attention heads and hidden channels by the paper's scores" in words


def test_a_budget_says_what_it_allows_and_what_is_left_over() -> None:
    words, shape = said(Target(removed_share=0.9))
    budget = int(TEACHER.nonembedding_parameters * 0.1)
    assert f"At most {budget:,} non-embedding parameters may stay (90" in words
    assert f"{budget - shape.nonembedding_parameters:,} parameters are left over" in words
    assert f"keeps {shape.nonembedding_parameters:,} of {TEACHER.nonembedding_parameters:,}" in words


def test_sizes_by_hand_are_named_as_such() -> None:
    words, _ = said(Target(sizes={"num_hidden_layers": 3}))
    assert "given by hand where named: num_hidden_layers 3" in words


def test_copied_keys_and_values_are_explained() -> None:
    words, _ = said(Target(sizes={"num_attention_heads": 3, "num_key_value_heads": 3}))
    assert "keys and values are copied to one per query head" in words
