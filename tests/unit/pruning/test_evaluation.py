"""Ranks over the whole catalogue, against a plain list of every title's score."""

import numpy as np
import pytest
import torch
from small_run import TITLES, write_dataset

from pruning.evaluation import ModelValidation, RankingTask, lean_transformer, rank_of
from pruning.teacher.scratch import ScratchConfig, base_from_scratch
from recommender.catalogue import Catalogue
from recommender.dataset import Dataset, Rows
from recommender.prompt import PromptEncoder, PromptTemplate
from recommender.search.frontier import Query

SHAPE = ScratchConfig(
    hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return Dataset(write_dataset(tmp_path_factory.mktemp("data")))


@pytest.fixture(scope="module")
def base():
    base = base_from_scratch(SHAPE, TITLES, PromptTemplate())
    base.model.model.embed_tokens.weight.data.mul_(20)  # far from uniform
    return base


def test_ranks_are_places_in_the_full_list(dataset: Dataset, base) -> None:
    encoder = PromptEncoder(PromptTemplate(), base.tokenizer)
    rows = dataset.rows("test")
    task = RankingTask(dataset.catalogue, encoder, rows)
    lean = lean_transformer(base.model)
    told: list[tuple[int, int]] = []
    ranks_R = task.ranks(lean, lambda *count: told.append(count), batch=3)
    assert told[-1] == (len(rows), len(rows))
    ranker = task.ranker(lean)
    for row, history in enumerate(rows.histories):
        query = Query(ranker.prompt(history), len(TITLES))
        (found,) = ranker.search.rank([query])
        everything = [item.index for item in ranker.items(found, query)]
        assert len(everything) == len(TITLES)
        place = everything.index(int(rows.targets_R[row])) + 1
        assert ranks_R[row] == (place if place <= 20 else 0)


def test_popularity_ranks_titles_by_their_best_item(base) -> None:
    catalogue = Catalogue.create(
        ["a", "b", "c", "d", "e"],
        ["Red River", "Red Mirror", "Red River", "Red Garden", "Red Winter"],
        [1, 5, 9, 5, 0],
    )
    encoder = PromptEncoder(PromptTemplate(), base.tokenizer)
    rows = Rows(
        tuple("uuuuu"),
        tuple(() for _ in range(5)),
        np.arange(5, dtype=np.int32),
        np.arange(5, dtype=np.int64),
    )
    # Both Red Rivers rank by the more popular one; equals stand in catalogue order.
    task = RankingTask(catalogue, encoder, rows)
    assert task.popularity_ranks().tolist() == [1, 2, 1, 3, 4]
    # What was trained on is the title, whichever of its items was.
    assert task.popularity_of_titles()[task.target_leaves_R].tolist() == [10, 5, 10, 5, 0]


def test_rank_of_looks_no_deeper_than_the_metrics() -> None:
    leaves = tuple(range(100, 140))
    assert rank_of(100, leaves) == 1
    assert rank_of(119, leaves) == 20
    assert rank_of(120, leaves) == 0
    assert rank_of(7, leaves) == 0


def test_validation_is_the_splits_loss_and_a_sample_of_its_ranking(dataset: Dataset, base) -> None:
    encoder = PromptEncoder(PromptTemplate(), base.tokenizer)
    whole = ModelValidation(dataset, encoder, 10**6, seed=0)(base.model)
    sampled = ModelValidation(dataset, encoder, 5, seed=0)(base.model)
    assert sampled["loss"] == whole["loss"]
    assert 0 <= whole["ndcg10"] <= whole["hr10"] <= 1
    torch.manual_seed(1)  # nothing here depends on the global generator
    assert ModelValidation(dataset, encoder, 5, seed=0)(base.model) == sampled
