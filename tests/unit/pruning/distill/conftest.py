import pytest
from small_run import TITLES

from pruning.teacher.base import Base
from pruning.teacher.scratch import ScratchConfig, base_from_scratch
from recommender.prompt import PromptTemplate


@pytest.fixture(scope="session")
def base() -> Base:
    shape = ScratchConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    base = base_from_scratch(shape, TITLES, PromptTemplate())
    base.model.model.embed_tokens.weight.data.mul_(20)  # far from uniform
    return base
