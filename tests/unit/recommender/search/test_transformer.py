from typing import Any

import numpy as np
import pytest
import torch

from recommender.errors import UnsupportedModelError
from recommender.search.native import library
from recommender.search.native.transformer import NativeTransformer, fastest
from recommender.search.reading import Reading, Transformer, prompts_reading
from recommender.search.transformer import LeanTransformer
from recommender.trie import TitleTrie

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama-llama3-rope": ("llama", {"rope_parameters": LLAMA3, "head_dim": 16}),
    "llama-attention-bias": ("llama", {"attention_bias": True}),
    "llama-tied": ("llama", {"tie_word_embeddings": True}),
    "llama-one-kv-head": ("llama", {"num_key_value_heads": 1}),
    "llama-ungrouped": ("llama", {"num_key_value_heads": 4}),
    "llama-three-to-one": ("llama", {"num_attention_heads": 6, "hidden_size": 18}),
    "qwen2": ("qwen2", {}),
    "qwen2-tied-theta": (
        "qwen2",
        {"tie_word_embeddings": True, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
    ),
    "qwen3": ("qwen3", {}),
    "qwen3-wide-heads-bias": ("qwen3", {"head_dim": 32, "attention_bias": True}),
}

PROMPTS = ([5], [7, 1, 2, 9, 30, 4, 4], list(range(1, 32)) * 2)


@pytest.fixture(params=VARIANTS)
def model(request: pytest.FixtureRequest, make_model: Any) -> Any:
    family, overrides = VARIANTS[request.param]
    return make_model(family, **overrides)


@pytest.fixture(params=["torch", *library.levels()])
def computer(request: pytest.FixtureRequest, model: Any) -> Transformer:
    """The model by everything that can compute it here."""
    if request.param == "torch":
        lean: Transformer = model.lean
        return lean
    return NativeTransformer(model.lean, library.load(request.param))


@pytest.mark.kernels
def test_the_kernels_are_what_a_search_uses(make_model: Any) -> None:
    lean = make_model("llama").lean
    if not library.levels():
        assert fastest(lean) is lean
        pytest.skip("no kernels were built for this processor: install a C compiler, then `make setup`")
    assert isinstance(fastest(lean), NativeTransformer)
    half = LeanTransformer(lean.architecture, make_model("llama").reference.state_dict(), torch.bfloat16)
    assert fastest(half) is half


def expected_logits(model: Any, sequence: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        return model.reference(torch.tensor([sequence])).logits[0, -1]


def assert_logits(model: Any, hidden_WH: Any, sequences: Any) -> None:
    for hidden_H, sequence in zip(torch.from_numpy(hidden_WH), sequences, strict=True):
        logits_V = hidden_H @ model.lean.head_VH.T
        torch.testing.assert_close(logits_V, expected_logits(model, sequence), atol=2e-5, rtol=2e-5)


def test_prompts_give_the_logits_of_transformers(model: Any, computer: Transformer) -> None:
    cache = computer.new_cache()
    cache.reserve(len(PROMPTS), 64)
    assert_logits(model, computer.read(prompts_reading(PROMPTS, 0), cache), PROMPTS)


def test_a_prompt_goes_on_where_its_slot_ends(model: Any, computer: Transformer) -> None:
    cache = computer.new_cache()
    cache.reserve(len(PROMPTS) + 1, 64)
    known = [0, 3, 61]
    begun = [prompt[:length] for prompt, length in zip(PROMPTS, known, strict=True)]
    computer.read(prompts_reading(begun[1:], 2), cache)
    assert_logits(model, computer.read(prompts_reading(PROMPTS, 1, known), cache), PROMPTS)


def test_nodes_give_the_logits_of_transformers_in_every_branch(model: Any, computer: Transformer) -> None:
    """Below prompt 0 hang the nodes [8, 9] and [3], below prompt 1 [6]; then [2] hangs below [8, 9]."""
    prompts = [PROMPTS[1], PROMPTS[0]]
    cache = computer.new_cache()
    cache.reserve(2, 64)
    computer.read(prompts_reading(prompts, 0), cache)
    cache.above_SC[0, 7:11] = 6, 7, 6, 8
    cache.above_SC[1, 1] = 0

    def read(*rows: list[int], wanted: list[int]) -> Any:
        return computer.read(Reading.of(*map(np.array, rows), np.array(wanted)), cache)

    first = read([8, 9, 3, 6], [7, 8, 7, 1], [0, 0, 0, 1], [7, 8, 9, 1], [7, 7, 7, 1], wanted=[1, 2, 3])
    second = read([2], [9], [0], [10], [7], wanted=[0])
    sequences = [prompts[0] + [8, 9], prompts[0] + [3], prompts[1] + [6], prompts[0] + [8, 9, 2]]
    assert_logits(model, np.concatenate((first, second)), sequences)


@pytest.mark.parametrize("level", library.levels())
@pytest.mark.parametrize("threads", [1, 3])
def test_the_kernels_give_a_token_the_same_bits_whatever_is_read_beside_it(
    make_model: Any, level: str, threads: int
) -> None:
    lean = make_model("llama", hidden_size=48, intermediate_size=200, vocab_size=512).lean
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        native = NativeTransformer(lean, library.load(level))
    finally:
        torch.set_num_threads(before)
    draw = np.random.default_rng(0)
    prompts = [draw.integers(512, size=length).tolist() for length in (1, 2, 11, 12, 13, 40, 190, 250)]

    def states(together: list[list[int]]) -> Any:
        cache = native.new_cache()
        cache.reserve(len(together), 256)
        return native.read(prompts_reading(together, 0), cache)

    alone = np.concatenate([states([prompt]) for prompt in prompts])
    for _ in range(20):
        order = draw.permutation(len(prompts))
        np.testing.assert_array_equal(states([prompts[place] for place in order]), alone[order])


@pytest.mark.parametrize("level", library.levels())
@pytest.mark.parametrize("hidden", [16, 52])
def test_weights_that_are_bfloat16_take_half_the_room_and_give_the_same_bits(
    make_model: Any, hidden: int, level: str
) -> None:
    model = make_model("qwen2", hidden_size=hidden, num_attention_heads=2, intermediate_size=40)
    rounded = {name: value.bfloat16() for name, value in model.reference.state_dict().items()}
    lean = LeanTransformer(model.lean.architecture, rounded, torch.float32)
    trie = TitleTrie.build([[1, 2, 9], [1, 3, 9], [4, 5, 9], [30, 9]], [4, 3, 2, 1])
    found, held = [], []
    assert lean.fits_bfloat16
    assert not model.lean.fits_bfloat16
    for halves in (True, False):
        lean.__dict__["fits_bfloat16"] = halves
        native = NativeTransformer(lean, library.load(level))
        cache = native.new_cache()
        cache.reserve(len(PROMPTS), 64)
        states = native.read(prompts_reading(PROMPTS, 0), cache)
        scores = native.score(states[:1], trie, np.zeros(1, np.int32), np.zeros(1)).scores_E
        assert len(scores) == 3
        found.append((states, scores))
        held.append(native.nbytes)
    for half, full in zip(*found, strict=True):
        np.testing.assert_array_equal(half, full)
    assert held[0] < 0.6 * held[1]


def test_bfloat16_stays_near_float32(make_model: Any) -> None:
    model = make_model("qwen3", initializer_range=0.1)
    half = LeanTransformer(model.lean.architecture, model.reference.state_dict(), torch.bfloat16)
    cache = half.new_cache()
    cache.reserve(1, 64)
    hidden_BH = torch.from_numpy(half.read(prompts_reading([PROMPTS[1]], 0), cache))
    assert half.head_VH.dtype == torch.bfloat16
    logits_V = (hidden_BH[0].bfloat16() @ half.head_VH.T).float()
    torch.testing.assert_close(logits_V, expected_logits(model, PROMPTS[1]), atol=0.05, rtol=0.05)


def test_nbytes_counts_a_tied_head_once(make_model: Any) -> None:
    for tied in (True, False):
        model = make_model("llama", tie_word_embeddings=tied)
        assert model.lean.nbytes == 4 * sum(p.numel() for p in model.reference.parameters())


def test_a_repeated_head_of_a_tied_model_is_not_used(make_model: Any) -> None:
    model = make_model("llama", tie_word_embeddings=True)
    tensors = dict(model.reference.state_dict())
    tensors["lm_head.weight"] = torch.zeros(32, 16)
    lean = LeanTransformer(model.lean.architecture, tensors, torch.float32)
    assert lean.head_VH is lean.embedding_VH


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("llama", "model.layers.1.mlp.down_proj.weight"),
        ("llama", "lm_head.weight"),
        ("llama", "model.norm.weight"),
        ("qwen2", "model.layers.0.self_attn.k_proj.bias"),
        ("qwen3", "model.layers.0.self_attn.q_norm.weight"),
    ],
)
def test_a_missing_tensor_is_refused_by_name(make_model: Any, family: str, name: str) -> None:
    model = make_model(family)
    tensors = {k: v for k, v in model.reference.state_dict().items() if k != name}
    with pytest.raises(UnsupportedModelError, match=f"the weights lack {name}"):
        LeanTransformer(model.lean.architecture, tensors, torch.float32)


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("llama", "model.layers.2.input_layernorm.weight"),
        ("llama", "model.layers.0.self_attn.q_proj.bias"),
        ("llama", "model.layers.0.self_attn.q_norm.weight"),
        ("qwen2", "model.layers.0.self_attn.o_proj.bias"),
        ("qwen3", "model.layers.0.mlp.up_proj.bias"),
    ],
)
def test_a_tensor_that_transformers_would_not_use_is_refused(
    make_model: Any, family: str, name: str
) -> None:
    model = make_model(family)
    tensors = {**model.reference.state_dict(), name: torch.zeros(16)}
    with pytest.raises(UnsupportedModelError, match=f"hold {name}"):
        LeanTransformer(model.lean.architecture, tensors, torch.float32)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"vocab_size": 33}, "model.embed_tokens.weight"),
        ({"intermediate_size": 25}, "model.layers.0.mlp.gate_proj.weight"),
        ({"head_dim": 16}, "model.layers.0.self_attn.q_proj.weight"),
    ],
)
def test_weights_of_another_shape_are_refused(make_model: Any, change: dict[str, int], name: str) -> None:
    model = make_model("llama")
    architecture = model.lean.architecture.model_copy(update=change)
    with pytest.raises(UnsupportedModelError, match=f"{name} has the shape .*; the config says"):
        LeanTransformer(architecture, model.reference.state_dict(), torch.float32)


def test_the_cache_keeps_what_it_holds_when_it_grows(tiny: Any) -> None:
    cache = tiny.lean.new_cache()
    assert cache.nbytes == 0
    cache.reserve(1, 3)
    tiny.lean.read(prompts_reading([[1, 2, 3]], 0), cache)
    before = cache.buffer_SPKCD[0, :, :, :3].clone()
    cache.above_SC[0, 2], cache.positions_SC[0, 2] = 7, 8
    cache.reserve(3, 200)
    assert (cache.slots, cache.columns) == (3, 256)
    assert cache.nbytes == cache.buffer_SPKCD.nbytes
    cache.move(0, 2, 3)
    for slot in (0, 2):
        assert torch.equal(cache.buffer_SPKCD[slot, :, :, :3], before)
        assert (cache.above_SC[slot, 2], cache.positions_SC[slot, 2]) == (7, 8)
