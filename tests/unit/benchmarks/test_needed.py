"""What has to be read of a trie is what a search reads that goes node by node, the best one first."""

import pytest
from served_artifact import write_served_artifact

from benchmarks.needed import tokens_of_nodes
from recommender.artifact import Artifact
from recommender.ranker import Ranker
from recommender.search.frontier import Query, SearchLimits


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return write_served_artifact(tmp_path_factory)


def ranker(artifact: Artifact, width: int) -> Ranker:
    return Ranker(
        artifact.load_catalogue(),
        artifact.load_encoder(),
        artifact.load_trie(),
        artifact.load_transformer(),
        SearchLimits(width=width),
    )


def test_node_by_node_nothing_is_read_in_vain_and_wider_the_same_is_needed(artifact: Artifact) -> None:
    narrow, wide = ranker(artifact, 1), ranker(artifact, 24)
    model = narrow.search.model
    queries = [Query(narrow.prompt([number, number + 1]), k=1) for number in range(8)]
    in_order, at_once = tokens_of_nodes(narrow, queries), tokens_of_nodes(wide, queries)
    assert in_order["node_tokens_read"] == in_order["node_tokens_needed"] > 0
    assert at_once["node_tokens_needed"] == in_order["node_tokens_needed"]
    assert at_once["node_tokens_read"] > in_order["node_tokens_read"]
    assert narrow.search.model is model
