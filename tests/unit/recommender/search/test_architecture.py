import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from recommender.errors import UnsupportedModelError
from recommender.search.architecture import Architecture
from recommender.search.reading import prompts_reading
from recommender.search.transformer import LeanTransformer

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,  # puts frequencies below, above and between the bounds
}

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_type": "default", "rope_theta": 5_000.0},
    "tie_word_embeddings": True,
    "max_position_embeddings": 512,
}


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("tied", [True, False])
def test_reads_the_files_that_transformers_writes(
    tmp_path: Path, make_model: Any, family: str, tied: bool
) -> None:
    reference = make_model(family, tie_word_embeddings=tied).reference
    reference.save_pretrained(tmp_path)
    architecture = Architecture.from_config(json.loads((tmp_path / "config.json").read_bytes()))
    assert architecture.family == family
    assert architecture.tie_word_embeddings == tied
    lean = LeanTransformer(architecture, load_file(tmp_path / "model.safetensors"), torch.float32)
    prompt = [3, 1, 4, 1, 5]
    cache = lean.new_cache()
    cache.reserve(1, len(prompt))
    hidden_BH = torch.from_numpy(lean.read(prompts_reading([prompt], 0), cache))
    with torch.inference_mode():
        expected_V = reference(torch.tensor([prompt])).logits[0, -1]
    torch.testing.assert_close(hidden_BH[0] @ lean.head_VH.T, expected_V, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("rope", [{"rope_type": "default", "rope_theta": 5_000.0}, LLAMA3])
def test_frequencies_are_those_of_transformers(make_model: Any, rope: dict[str, Any]) -> None:
    model = make_model("llama", head_dim=32, rope_parameters=rope)
    expected = model.reference.model.rotary_emb.inv_freq
    torch.testing.assert_close(model.lean.architecture.inverse_frequencies(), expected, rtol=1e-6, atol=0)


def test_llama3_stretches_slow_frequencies_leaves_fast_ones_and_blends_between() -> None:
    wide = {**CONFIG, "head_dim": 32}
    plain = Architecture.from_config(wide | {"rope_parameters": {"rope_theta": 10_000.0}})
    stretched = Architecture.from_config(wide | {"rope_parameters": LLAMA3})
    ratio = plain.inverse_frequencies() / stretched.inverse_frequencies()
    assert ratio[0] == 1
    assert ratio[-1] == 8
    assert any(1 < value < 8 for value in ratio.tolist())


def test_a_config_of_an_older_transformers() -> None:
    older = {key: value for key, value in CONFIG.items() if key != "rope_parameters"}
    assert Architecture.from_config(older).rope_theta == 10_000.0
    older["rope_theta"] = 7.0
    assert Architecture.from_config(older).rope_theta == 7.0
    scaled = Architecture.from_config(older | {"rope_scaling": LLAMA3}).llama3_rope
    assert scaled is not None
    assert scaled.factor == 8.0


def test_defaults_of_absent_keys() -> None:
    bare = {k: v for k, v in CONFIG.items() if k not in ("num_key_value_heads", "tie_word_embeddings")}
    architecture = Architecture.from_config(bare)
    assert architecture.num_key_value_heads == 4
    assert architecture.head_dim == 4
    assert not architecture.tie_word_embeddings
    assert not architecture.attention_bias


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "'GPT2LMHeadModel' is not supported; use one of Llama"),
        ({"architectures": None}, "'none' is not supported"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu': only silu"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"use_sliding_window": True}, "use_sliding_window"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1.0}}, "rope_type 'yarn'"),
        ({"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 2.0}}, "'linear'"),
        ({"rope_parameters": {"rope_type": "default"}}, "incomplete: it lacks 'rope_theta'"),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 1.0}}, "incomplete"),
        ({"hidden_size": None, "head_dim": 8}, "incomplete"),
    ],
)
def test_refuses_what_it_cannot_compute_exactly(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        Architecture.from_config(CONFIG | changes)


@pytest.mark.parametrize("key", ["num_attention_heads", "hidden_size", "vocab_size", "rms_norm_eps"])
def test_refuses_an_incomplete_config(key: str) -> None:
    with pytest.raises(UnsupportedModelError, match=f"incomplete: .*{key}"):
        Architecture.from_config({k: v for k, v in CONFIG.items() if k != key})
