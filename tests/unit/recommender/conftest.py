"""Tiny models, a small trained tokenizer and a brute-force scorer that shares no code with the search."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from recommender.artifact import Artifact, Description, Lineage, ParameterCounts, write_artifact
from recommender.catalogue import Catalogue
from recommender.prompt import PromptEncoder, PromptTemplate
from recommender.search.architecture import Architecture
from recommender.search.transformer import LeanTransformer
from recommender.trie import TitleTrie

CONFIGS = {"llama": LlamaConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config}

TITLES = (
    "Portal 2",
    "Portal",
    "Half-Life 2",
    "Half-Life 2: Episode One",
    "Half-Life",
    "The Witcher 3: Wild Hunt",
    "The Witcher",
    "Portal",
    "Pokémon Émeraude",
    "Stardew Valley",
    "Star Wars: Jedi Knight",
    "Star Wars",
)


@dataclass(frozen=True)
class TinyModel:
    """One set of random weights, in transformers and in our forward pass."""

    reference: PreTrainedModel
    lean: LeanTransformer


@pytest.fixture(scope="session")
def make_model() -> Callable[..., TinyModel]:
    """Builds a model of a family; the architecture is read from the config that transformers writes."""

    def build(family: str = "llama", *, seed: int = 0, **overrides: Any) -> TinyModel:
        shape = {
            "vocab_size": 32,
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "max_position_embeddings": 512,
            "initializer_range": 0.3,  # far from uniform, so that scores differ
            "tie_word_embeddings": False,
        }
        config = CONFIGS[family](**shape | overrides)
        torch.manual_seed(seed)
        reference = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
        with torch.no_grad():  # biases and gains start as zeros and ones, which would hide an error
            for name, parameter in reference.named_parameters():
                if name.endswith("bias") or "norm" in name:
                    parameter.add_(0.2 * torch.randn_like(parameter))
        written = {**config.to_dict(), "architectures": [type(reference).__name__]}
        tensors = dict(reference.state_dict())
        if config.tie_word_embeddings:
            del tensors["lm_head.weight"]
        lean = LeanTransformer(Architecture.from_config(written), tensors, torch.float32)
        return TinyModel(reference, lean)

    return build


@pytest.fixture(scope="session")
def tiny(make_model: Callable[..., TinyModel]) -> TinyModel:
    """A Qwen2 shape (grouped queries, biases) over 32 tokens, for the search."""
    return make_model("qwen2")


@pytest.fixture(scope="session")
def brute_force() -> Callable[..., list[float]]:
    """Scores every path with transformers alone: log-softmax over the catalogue's possible next tokens."""

    def score(
        reference: PreTrainedModel, prompt: Sequence[int], paths: Sequence[Sequence[int]]
    ) -> list[float]:
        distinct = sorted({tuple(path) for path in paths})
        if not distinct:
            return []
        follow: dict[tuple[int, ...], set[int]] = {}
        for path in distinct:
            for depth, token in enumerate(path):
                follow.setdefault(path[:depth], set()).add(token)
        longest = max(len(path) for path in distinct)
        rows = [[*prompt, *path, *[0] * (longest - len(path))] for path in distinct]
        with torch.inference_mode():
            logits_BTV = reference(torch.tensor(rows)).logits.double()
        totals = {}
        for path, logits_TV in zip(distinct, logits_BTV, strict=True):
            total = 0.0
            for depth, token in enumerate(path):
                allowed = sorted(follow[path[:depth]])
                scores = torch.log_softmax(logits_TV[len(prompt) + depth - 1, allowed], -1)
                total += float(scores[allowed.index(token)])
            totals[path] = total
        return [totals[tuple(path)] for path in paths]

    return score


@pytest.fixture(scope="session")
def bpe() -> Tokenizer:
    """A byte-level BPE trained on the titles, as a teacher from scratch has it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<|end|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TITLES, trainer)
    return tokenizer


@pytest.fixture(scope="session")
def catalogue() -> Catalogue:
    """Twelve games; item 7 shares item 1's title and is more popular."""
    popularity = [5, 1, 7, 3, 3, 9, 2, 4, 0, 6, 8, 2]
    return Catalogue.create([f"g{i}" for i in range(len(TITLES))], TITLES, popularity)


@pytest.fixture(scope="session")
def encoder(bpe: Tokenizer) -> PromptEncoder:
    return PromptEncoder(PromptTemplate(), bpe)


@pytest.fixture(scope="session")
def trie(catalogue: Catalogue, encoder: PromptEncoder) -> TitleTrie:
    return TitleTrie.build(encoder.encode_titles(catalogue.titles), catalogue.popularity)


@pytest.fixture(scope="session")
def speaker(make_model: Callable[..., TinyModel], bpe: Tokenizer) -> TinyModel:
    """A model over the trained tokenizer's vocabulary."""
    return make_model("llama", vocab_size=bpe.get_vocab_size(), seed=3)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, speaker: TinyModel, bpe: Tokenizer) -> Path:
    """The model as `save_pretrained` writes it."""
    folder = tmp_path_factory.mktemp("checkpoint")
    speaker.reference.save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|end|>").save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def description() -> Description:
    return Description(
        name="games-95",
        created=datetime(2025, 1, 2, 3, 4, 5, tzinfo=UTC),
        prompt=PromptTemplate(),
        lineage=Lineage(
            dataset="games",
            dataset_sha256="0" * 64,
            base="scratch",
            teacher_sha256="1" * 64,
            recipe="espalier",
            seed=0,
            stages=(),
        ),
        parameters=ParameterCounts(nonembedding=1, total=2, teacher_nonembedding=20, teacher_total=30),
        quality=None,
        reference=(),
    )


@pytest.fixture
def artifact(
    tmp_path: Path, checkpoint: Path, description: Description, catalogue: Catalogue, trie: TitleTrie
) -> Artifact:
    """A whole artifact of its own for every test, to be damaged at will."""
    return write_artifact(tmp_path / "artifacts" / "games-95", description, checkpoint, catalogue, trie)


@pytest.fixture(scope="session")
def random_prompt() -> Callable[[int, int], tuple[int, ...]]:
    """`random_prompt(length, seed)` over the tiny model's 32 tokens."""

    def draw(length: int, seed: int) -> tuple[int, ...]:
        return tuple(np.random.default_rng(seed).integers(1, 32, length).tolist())

    return draw
