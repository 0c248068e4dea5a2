from recommender.artifact import Artifact
from service.engine.vllm.reserve import kv_cache_bytes


def test_a_small_model_gets_the_least(served_artifact: Artifact) -> None:
    assert kv_cache_bytes(served_artifact.architecture, 512, 16) == 64 << 20


def test_it_holds_one_long_prompt_and_a_batch_of_usual_ones(served_artifact: Artifact) -> None:
    shape = served_artifact.architecture.model_copy(update={"num_hidden_layers": 1000})
    # Keys and values, 1,000 layers, one head of 8, float32.
    assert kv_cache_bytes(shape, 512, 16) == 2 * 1000 * 1 * 8 * 4 * (512 + 16 * 512)
