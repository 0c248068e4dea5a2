import pytest
from pydantic import BaseModel, TypeAdapter, ValidationError

from recommender.errors import first_problem


class Inner(BaseModel):
    seeds: list[int]


class Outer(BaseModel):
    inner: Inner


def test_the_first_problem_says_where_and_what_on_one_line() -> None:
    with pytest.raises(ValidationError) as refused:
        Outer.model_validate({"inner": {"seeds": [1, "x", "y"]}})
    problem = first_problem(refused.value)
    assert problem.startswith("inner.seeds.1: Input should be a valid integer")
    assert "\n" not in problem


def test_a_problem_of_the_whole_is_the_documents() -> None:
    with pytest.raises(ValidationError) as refused:
        TypeAdapter(int).validate_python("x")
    assert first_problem(refused.value).startswith("the document: ")
