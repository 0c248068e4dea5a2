"""A small teacher with nothing learned yet, for demos, tests and as a control.

A Llama, and a byte-level BPE learned from the catalogue's titles.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM

from pruning.teacher.base import Base, lineage_of
from recommender.prompt import SEPARATOR, PromptTemplate

END_OF_TEXT = "<|endoftext|>"

_ALPHABET_SIZE = 256
_CONTEXT_LENGTH = 2048
_PositiveInt = Annotated[int, Field(ge=1)]


class ScratchConfig(BaseModel):
    """The shape of a model from scratch.

    Attributes:
        hidden_size, intermediate_size, num_hidden_layers, num_attention_heads,
            num_key_value_heads: as Hugging Face has them.
        head_dim: width of a head; `hidden_size / num_attention_heads` when None.
        vocab_size: the tokenizer learns at most this many tokens; a small catalogue gives fewer.
        seed: of the first weights.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    hidden_size: _PositiveInt = 192
    intermediate_size: _PositiveInt = 512
    num_hidden_layers: _PositiveInt = 6
    num_attention_heads: _PositiveInt = 6
    num_key_value_heads: _PositiveInt = 2
    head_dim: _PositiveInt | None = None
    vocab_size: Annotated[int, Field(gt=_ALPHABET_SIZE)] = 2048
    seed: int = 0

    @model_validator(mode="after")
    def _is_a_legal_shape(self) -> ScratchConfig:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError("hidden_size must be a multiple of num_attention_heads")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError("num_attention_heads must be a multiple of num_key_value_heads")
        if self.width_of_head % 2:
            raise ValueError("the width of a head must be even, since positions rotate pairs")
        return self

    @property
    def width_of_head(self) -> int:
        """`head_dim`, given or derived."""
        return self.head_dim or self.hidden_size // self.num_attention_heads


def base_from_scratch(config: ScratchConfig, titles: Sequence[str], template: PromptTemplate) -> Base:
    """A model of this shape and a tokenizer for these titles.

    The same config, titles and template give the same ids and the same weights; the global
    random generator stays as it was.
    """
    tokenizer = train_tokenizer(titles, template, config.vocab_size)
    end_of_text = tokenizer.token_to_id(END_OF_TEXT)
    shape = config.model_dump(exclude={"seed", "vocab_size", "head_dim"})
    llama = LlamaConfig(
        **shape,
        head_dim=config.width_of_head,
        vocab_size=tokenizer.get_vocab_size(),
        max_position_embeddings=_CONTEXT_LENGTH,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=end_of_text,
        pad_token_id=end_of_text,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = LlamaForCausalLM(llama)
    model.eval()
    return Base(model, tokenizer, lineage_of(model, "scratch", "scratch", None))


def train_tokenizer(titles: Sequence[str], template: PromptTemplate, vocab_size: int) -> Tokenizer:
    """Learns a byte-level BPE from the titles and the instruction.

    The whole byte alphabet is in it, so any title can be told. A line feed stands apart before
    bytes are paired, so it is one token wherever it occurs. The instruction begins every prompt and
    is counted as often as there are titles, which makes its words whole tokens first.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(SEPARATOR, "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,  # a pair seen once says nothing about the next title
        show_progress=False,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    corpus = [*titles, *[template.instruction] * max(2, len(titles))]
    tokenizer.train_from_iterator(corpus, trainer)
    return tokenizer
