"""A whole artifact that can be served in milliseconds: real files, random weights, thirty titles."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from recommender.artifact import (
    Artifact,
    Description,
    Lineage,
    ParameterCounts,
    Quality,
    ReferenceAnswer,
    write_artifact,
)
from recommender.catalogue import Catalogue
from recommender.prompt import PromptEncoder, PromptTemplate
from recommender.ranker import Ranker
from recommender.search.architecture import Architecture
from recommender.search.frontier import Query
from recommender.search.transformer import LeanTransformer
from recommender.trie import TitleTrie

SERVED_TITLES = (
    *(f"{game} {number}" for game in ("Portal", "Half-Life", "Myst", "Doom") for number in range(1, 7)),
    "Portal 1",  # shares its title with g0, and is more popular
    "Star Wars: Jedi Knight",
    "Stardew Valley",
    "Pokémon Émeraude",
    "The Witcher",
    "The Witcher 3: Wild Hunt",
)


def llama(**keys: object) -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(**keys))


def write_served_artifact(
    tmp_path_factory: pytest.TempPathFactory,
    name: str = "tiny",
    titles: Sequence[str] = SERVED_TITLES,
    seed: int = 7,
    make_model: Callable[..., PreTrainedModel] = llama,
    **shape: int,
) -> Artifact:
    """Items g0 … g29, g29 the most popular; g24 and g0 are both called "Portal 1".

    Other `titles` make another catalogue and vocabulary, `shape` changes the model's config, which
    `make_model` makes a model of.
    """
    checkpoint = tmp_path_factory.mktemp("checkpoint")
    tokenizer = _train_tokenizer(titles)
    torch.manual_seed(seed)
    model = make_model(
        vocab_size=tokenizer.get_vocab_size(),
        **{
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 8,
            **shape,
        },
        max_position_embeddings=512,
        initializer_range=0.3,  # far from uniform, so that scores differ
        tie_word_embeddings=True,
    )
    model.save_pretrained(checkpoint)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>").save_pretrained(checkpoint)

    catalogue = Catalogue.create([f"g{item}" for item in range(len(titles))], titles, range(len(titles)))
    encoder = PromptEncoder(PromptTemplate(), tokenizer)
    trie = TitleTrie.build(encoder.encode_titles(catalogue.titles), catalogue.popularity)
    tensors = {name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    architecture = Architecture.from_config(
        {**model.config.to_dict(), "architectures": [type(model).__name__]}
    )
    ranker = Ranker(catalogue, encoder, trie, LeanTransformer(architecture, tensors, torch.float32))
    description = Description(
        name=name,
        created=datetime(2025, 1, 2, 3, 4, 5, tzinfo=UTC),
        prompt=encoder.template,
        lineage=Lineage(
            dataset="games",
            dataset_sha256="0" * 64,
            base="scratch",
            teacher_sha256="1" * 64,
            recipe="none",
            seed=seed,
            stages=(),
        ),
        parameters=ParameterCounts(nonembedding=11, total=22, teacher_nonembedding=33, teacher_total=44),
        quality=Quality(
            split="test",
            rows=50,
            hr10=0.3,
            ndcg10=0.2,
            teacher_hr10=0.4,
            teacher_ndcg10=0.25,
            popularity_ndcg10=0.1,
        ),
        reference=(_reference_answer(ranker, (2, 5)), _reference_answer(ranker, (9,))),
    )
    return write_artifact(
        tmp_path_factory.mktemp("artifacts") / name, description, checkpoint, catalogue, trie
    )


def _train_tokenizer(titles: Sequence[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<|end|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(titles, trainer)
    return tokenizer


def _reference_answer(ranker: Ranker, history: tuple[int, ...]) -> ReferenceAnswer:
    query = Query(prompt=ranker.prompt(history), k=5)
    items = ranker.items(ranker.search.rank([query])[0], query)
    ids = ranker.catalogue.item_ids
    return ReferenceAnswer(
        history=tuple(ids[item] for item in history),
        item_ids=tuple(ids[item.index] for item in items),
        scores=tuple(item.score for item in items),
    )


def write_other_artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """Another shape, vocabulary and catalogue: it does not know g26 to g29."""
    shape = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 40}
    return write_served_artifact(tmp_path_factory, "other", SERVED_TITLES[:26], seed=8, **shape)
