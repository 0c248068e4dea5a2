import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from tokenizers import pre_tokenizers

from pruning.teacher.scratch import (
    END_OF_TEXT,
    ScratchConfig,
    base_from_scratch,
    train_tokenizer,
)
from recommender.prompt import SEPARATOR, PromptEncoder, PromptTemplate

TEMPLATE = PromptTemplate()
TITLES = ["Star Wars (1977)", "Star Trek (1979)", "The Dark Knight", "Dark Star", "Amélie"]
TOKENIZER = train_tokenizer(TITLES * 3, TEMPLATE, 400)


def _small(**fields: int) -> ScratchConfig:
    shape = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2}
    return ScratchConfig(**(shape | fields))


def test_the_model_has_the_shape_that_was_asked_for():
    base = base_from_scratch(_small(vocab_size=300), TITLES, TEMPLATE)
    config = base.model.config
    assert (config.hidden_size, config.intermediate_size, config.num_hidden_layers) == (24, 32, 2)
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (6, 2, 4)
    assert config.vocab_size == base.tokenizer.get_vocab_size() <= 300
    assert base.model.lm_head.weight is base.model.model.embed_tokens.weight
    end = base.tokenizer.token_to_id(END_OF_TEXT)
    assert (config.eos_token_id, config.pad_token_id, config.bos_token_id) == (end, end, None)
    assert not base.model.training
    assert base.lineage.kind == "scratch"
    assert base.lineage.weights_sha256 is None
    assert base.lineage.parameters == sum(p.numel() for p in base.model.parameters())


def test_a_head_may_be_wider_than_its_share():
    assert base_from_scratch(_small(head_dim=8), TITLES, TEMPLATE).model.config.head_dim == 8


def test_the_seed_decides_the_weights_and_nothing_else_moves():
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    first = base_from_scratch(_small(seed=1), TITLES, TEMPLATE)
    assert torch.equal(torch.rand(3), expected)
    again = base_from_scratch(_small(seed=1), TITLES, TEMPLATE)
    other = base_from_scratch(_small(seed=2), TITLES, TEMPLATE)
    for name, tensor in first.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], tensor)
    assert not torch.equal(other.model.lm_head.weight, first.model.lm_head.weight)
    assert first.tokenizer.to_str() == again.tokenizer.to_str() == other.tokenizer.to_str()


def test_another_process_learns_the_same_tokenizer():
    code = (
        "from pruning.teacher.scratch import train_tokenizer; "
        "from recommender.prompt import PromptTemplate; "
        f"print(ascii(train_tokenizer({TITLES!r} * 3, PromptTemplate(), 400).to_str()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ascii(TOKENIZER.to_str())


def test_the_instruction_becomes_whole_words():
    tokens = TOKENIZER.encode(TEMPLATE.instruction).tokens
    assert tokens == ["A", *["Ġperson", "Ġenjoyed", "Ġthese", ",", "Ġin", "Ġthis", "Ġorder", ":", "Ċ"]]


def test_repeated_words_become_tokens_and_rare_ones_stay_bytes():
    assert TOKENIZER.encode("Dark Star").tokens == ["Dark", "ĠStar"]
    once = train_tokenizer(["Zyzzyva"], TEMPLATE, 400)
    assert once.encode("Zyzzyva").tokens == list("Zyzzyva")


@given(st.text(), st.text())
def test_a_line_feed_is_always_one_token_of_its_own(before, after):
    separator = TOKENIZER.token_to_id("Ċ")
    whole = TOKENIZER.encode(before + SEPARATOR + after).ids
    alone = [TOKENIZER.encode(part).ids for part in (before, SEPARATOR, after)]
    assert whole == alone[0] + [separator] + alone[2]
    assert all((SEPARATOR in TOKENIZER.decode([i])) == (i == separator) for i in whole)


@given(st.text())
def test_any_title_can_be_told(title):
    ids = TOKENIZER.encode(title).ids
    assert TOKENIZER.decode(ids, skip_special_tokens=False) == title


def test_every_byte_is_in_the_alphabet():
    assert set(pre_tokenizers.ByteLevel.alphabet()) <= TOKENIZER.get_vocab().keys()


def test_the_tokenizer_carries_the_prompt():
    encoder = PromptEncoder(TEMPLATE, TOKENIZER)
    for title, ids in zip(TITLES, encoder.encode_titles(TITLES), strict=True):
        assert TOKENIZER.decode(list(ids)) == title + SEPARATOR


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden_size": 25}, "multiple of num_attention_heads"),
        ({"num_key_value_heads": 4}, "multiple of num_key_value_heads"),
        ({"head_dim": 5}, "must be even"),
        ({"num_hidden_layers": 0}, "greater than or equal to 1"),
        ({"vocab_size": 256}, "greater than 256"),
        ({"depth": 3}, "Extra inputs"),
    ],
)
def test_a_shape_that_cannot_be_is_refused(fields, message):
    with pytest.raises(ValidationError, match=message):
        _small(**fields)
