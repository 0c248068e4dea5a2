import math

import pytest
from served_artifact import write_served_artifact

from benchmarks.catalogue_answers import agreement, latencies
from recommender.artifact import Artifact
from recommender.ranker import Ranker
from recommender.search.frontier import Found, SearchLimits


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return write_served_artifact(tmp_path_factory)


def found(*titles: tuple[int, float]) -> Found:
    """Leaves with their probabilities."""
    leaves, shares = zip(*titles, strict=True)
    return Found(leaves, tuple(math.log(share) for share in shares), True, 1, 0, 1)


def test_agreement_is_the_mean_over_the_requests() -> None:
    proven = [found((1, 0.4), (2, 0.2)), found((3, 0.5), (4, 0.5))]
    mine = [found((1, 0.4), (5, 0.1)), found((4, 0.5), (3, 0.5))]
    assert agreement(mine, proven) == {"overlap10": 0.75, "probability": 0.9167, "same_first": 0.5}


def test_rankers_take_turns_and_their_answers_come_in_the_order_of_the_histories(
    artifact: Artifact,
) -> None:
    catalogue = artifact.load_catalogue()
    histories = [[catalogue.item_ids[item]] for item in range(4)]
    rankers = [
        Ranker.from_artifact(artifact, limits=limits) for limits in (None, SearchLimits(proof_nodes=-99))
    ]
    records, (proven, unproven) = latencies(rankers, histories)
    assert [record["exact_share"] for record in records] == [1.0, sum(one.exact for one in unproven) / 4]
    prompts = [rankers[0].prompt([item]) for item in range(4)]
    assert [one.prompt_tokens for one in proven] == [len(prompt) for prompt in prompts]
    assert agreement(proven, proven) == {"overlap10": 1.0, "probability": 1.0, "same_first": 1.0}
