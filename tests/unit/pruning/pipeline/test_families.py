"""Teachers of every family through a run whose heads and width go in two stages, the teacher asked live."""

from pathlib import Path

import pytest
import torch
from small_run import TITLES, Silent, recipe, teacher_config, write_dataset
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen3Config

from pruning.checkpoint import save_checkpoint
from pruning.export import export
from pruning.pipeline.plan import Target
from pruning.pipeline.run import PruneConfig, prune
from pruning.teacher.scratch import train_tokenizer
from pruning.teacher.train import train_teacher
from recommender.prompt import PromptTemplate

GRADUAL = """
name = "gradual"
description = "Width twice, then the rest."
calibration = { windows = 2 }

[[stages]]
name = "narrow"
importance = "paper"
keep = { heads = 0.7, hidden = 0.7 }
training = { epochs = 1, max_steps = 1, learning_rate = 3e-3 }
distillation = { signal = { kind = "live" } }

[[stages]]
name = "narrower"
importance = "activation"
keep = { heads = 0.5, hidden = 0.5 }
training = { epochs = 1, max_steps = 1, learning_rate = 3e-3 }
distillation = { signal = { kind = "live" } }

[[stages]]
name = "rest"
importance = "activation"
keep = { mlp = 0.5, layers = 0.5 }
training = { epochs = 1, max_steps = 2, learning_rate = 3e-3 }
distillation = { signal = { kind = "live" } }
"""

AMONG = {"qwen2": "vocabulary", "qwen3": "catalogue"}
CONFIGS = {"qwen2": (Qwen2Config, {}), "qwen3": (Qwen3Config, {"head_dim": 8})}


@pytest.mark.parametrize("family", CONFIGS)
def test_a_base_of_the_family_goes_the_whole_way(family: str, tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path)
    tokenizer = train_tokenizer(TITLES, PromptTemplate(), 320)
    kind, extra = CONFIGS[family]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        kind(
            vocab_size=tokenizer.get_vocab_size(),
            hidden_size=48,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=6,
            num_key_value_heads=2,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=0,
            pad_token_id=0,
            **extra,
        )
    )
    (tmp_path / "base").mkdir()
    save_checkpoint(tmp_path / "base", model, tokenizer, PromptTemplate())
    changes = {"base": tmp_path / "base", "among": AMONG[family]}
    asked = teacher_config(epochs=1, max_steps=2).model_copy(update=changes)
    record = train_teacher(dataset, tmp_path / "teacher", asked, Silent())
    assert record.shape.model_type == family

    config = PruneConfig(recipe=recipe(GRADUAL), target=Target(removed_share=0.8), validation_rows=10)
    report = prune(dataset, tmp_path / "teacher", tmp_path / "run", config, Silent())
    assert report.teacher_shape == record.shape
    assert report.pruned_nonembedding >= 0.8
    sizes = [report.teacher_shape, *(stage.shape for stage in report.stages)]
    heads = [shape.num_attention_heads for shape in sizes]
    widths = [shape.hidden_size for shape in sizes]
    assert heads == sorted(heads, reverse=True)
    assert widths == sorted(widths, reverse=True)
    assert heads[0] > heads[-1]
    export(tmp_path / "run", tmp_path / "artifacts" / family).verify()
