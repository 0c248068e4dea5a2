"""A guard against becoming slow: native beside transformers, in seconds, against the ratio of another day.

    python -m benchmarks.smoke [--store]

Times differ between machines, the ratio of two contenders on the same one much less. So this runs
`benchmarks/decoding.py`'s two contenders for a few requests, on a small model with random weights and made
titles, and prints native's ratios beside those in `smoke.json`. It never fails: a busy machine may halve a
ratio, and a person decides. `--store` writes today's ratios there.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import statistics
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging

from benchmarks.decoding import measure
from benchmarks.decoding_contenders import beams, native
from benchmarks.records import table
from recommender.artifact import Artifact, Description, Lineage, ParameterCounts, write_artifact
from recommender.catalogue import Catalogue
from recommender.prompt import PromptEncoder, PromptTemplate
from recommender.ranker import Ranker
from recommender.storage import write_file
from recommender.trie import TitleTrie

STORED = Path(__file__).with_name("smoke.json")
# Another machine, or a busy one, moves a ratio a little; what falls below this share is worth a look.
_WORTH_A_LOOK = 0.7
_THREADS = 1
_REQUESTS = {1: 12, 8: 16}
_WORDS = (
    ("The", "A", "My", "Last", "First", "Dark", "Silent", "Golden", "Lost", "Return of the"),
    ("Red", "Quiet", "Broken", "Northern", "Hidden", "Iron", "Little", "Burning", "Empty", "Second"),
    ("River", "Garden", "King", "Winter", "Machine", "Harbour", "Letter", "Mountain", "Song", "Road"),
    ("", "II", "III", "Revisited", "Collection"),
)


def titles() -> list[str]:
    """Every way to take one word of each kind: 5,000 titles."""
    return [" ".join(words).strip() for words in itertools.product(*_WORDS)]


def make_artifact(folder: Path) -> Artifact:
    """A model as small as a pruned one, its weights random; the same each time."""
    made = titles()
    torch.manual_seed(0)
    tokenizer = _tokenizer(made)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=tokenizer.get_vocab_size(),
            hidden_size=88,
            intermediate_size=152,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=32,
            max_position_embeddings=512,
            initializer_range=0.2,  # far from uniform, so that a search ends as early as a trained one's
            tie_word_embeddings=True,
        )
    )
    checkpoint = folder / "checkpoint"
    model.save_pretrained(checkpoint)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(checkpoint)
    catalogue = Catalogue.create([f"i{number}" for number in range(len(made))], made, [0] * len(made))
    encoder = PromptEncoder(PromptTemplate(), tokenizer)
    trie = TitleTrie.build(encoder.encode_titles(catalogue.titles), catalogue.popularity)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    description = Description(
        name="smoke",
        created=datetime(2026, 1, 1, tzinfo=UTC),
        prompt=encoder.template,
        lineage=Lineage(
            dataset="none",
            dataset_sha256="",
            base="random",
            teacher_sha256="",
            recipe="none",
            seed=0,
            stages=(),
        ),
        parameters=ParameterCounts(
            nonembedding=parameters - model.config.vocab_size * model.config.hidden_size,
            total=parameters,
            teacher_nonembedding=0,
            teacher_total=0,
        ),
        quality=None,
        reference=(),
    )
    return write_artifact(folder / "smoke", description, checkpoint, catalogue, trie)


def ratios(artifact: Artifact) -> dict[str, float]:
    """How many times faster native is: at p50 of one request at a time, and in requests a second of 8."""
    ranker = Ranker.from_artifact(artifact)
    contenders = {"native": native(ranker), "transformers": beams(artifact, ranker)}
    draw = random.Random(0)
    prompts = [ranker.prompt(draw.sample(range(len(ranker.catalogue)), 10)) for _ in range(16)]
    for contender in contenders.values():
        contender(prompts[:2])  # warm up
    found = {}
    for concurrency, requests in _REQUESTS.items():
        met = measure(contenders, prompts[:requests], concurrency)
        medians = {name: statistics.median(result["seconds"]) for name, result in met.items()}
        found[f"at {concurrency}"] = round(medians["transformers"] / medians["native"], 1)
    return found


def judged(found: dict[str, float], stored: dict[str, float]) -> str:
    """What is printed."""
    rows = [
        (
            name,
            ratio,
            stored.get(name, "–"),
            "worth a look" if ratio < _WORTH_A_LOOK * stored.get(name, 0.0) else "fine",
        )
        for name, ratio in found.items()
    ]
    return table(("requests together", "times transformers' speed", "stored", ""), rows)


def _tokenizer(texts: Sequence[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def main() -> None:
    """Runs and prints; with `--store`, writes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--store", action="store_true", help="today's ratios are what later runs compare with"
    )
    given = parser.parse_args()
    torch.set_num_threads(_THREADS)
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        found = ratios(make_artifact(Path(folder)))
    stored = json.loads(STORED.read_text()) if STORED.exists() else {}
    print(judged(found, stored))
    if given.store:
        write_file(STORED, json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
