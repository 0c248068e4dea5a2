import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from pruning.errors import BaseModelError
from pruning.models import read_gguf_tokenizer
from pruning.teacher.scratch import train_tokenizer
from pruning.teacher.vocabulary import merge, slice_vocabulary, trim_tokenizer, trim_vocabulary
from recommender.prompt import SEPARATOR, PromptTemplate

TEMPLATE = PromptTemplate()
FOREIGN = ["Ελλάδα 🎬 2049", "Das Boot", "Lady\tin  the\nVan", "東京物語", "a\u0301 café", "\u200d👩‍👧 𝔘"]


def _ids(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False).ids


def _texts(titles: list[str]) -> list[str]:
    return [*titles, TEMPLATE.instruction, SEPARATOR]


def test_merge_takes_the_lowest_rank_then_the_leftmost():
    ranks = {("b", "c"): 0, ("a", "b"): 1, ("a", "bc"): 2, ("x", "x"): 3}
    assert merge("abc", ranks) == (["abc"], {("b", "c"), ("a", "bc")})
    assert merge("xxx", ranks) == (["xx", "x"], {("x", "x")})
    assert merge("q", ranks) == (["q"], set())


def test_a_catalogue_and_its_template_tokenise_as_before(tokenizer, corpus):
    titles = corpus[:6]
    trimmed, kept_ids = trim_tokenizer(tokenizer, _texts(titles))
    assert len(kept_ids) == trimmed.get_vocab_size() < tokenizer.get_vocab_size()
    for text in _texts(titles):
        assert [kept_ids[i] for i in _ids(trimmed, text)] == _ids(tokenizer, text)
    for new, old in enumerate(kept_ids):
        assert trimmed.id_to_token(new) == tokenizer.id_to_token(old)


def test_foreign_titles_fall_into_smaller_pieces_and_come_back(tokenizer, corpus):
    trimmed, _ = trim_tokenizer(tokenizer, _texts(corpus[:3]))
    for text in [*corpus[3:], *FOREIGN]:
        normal = tokenizer.normalizer.normalize_str(text) if tokenizer.normalizer else text
        assert trimmed.decode(_ids(trimmed, text)) == normal
        assert len(_ids(trimmed, text)) >= len(_ids(tokenizer, text))


def test_the_tokenizer_that_was_given_stays_as_it_was(tokenizer, corpus):
    before = tokenizer.to_str()
    trim_tokenizer(tokenizer, corpus[:2])
    assert tokenizer.to_str() == before


def test_merges_keep_their_order_and_only_those_that_fire_stay(tokenizer, corpus):
    trimmed, _ = trim_tokenizer(tokenizer, ["The Lady"])
    whole = json.loads(tokenizer.to_str())["model"]["merges"]
    kept = json.loads(trimmed.to_str())["model"]["merges"]
    assert kept == [pair for pair in whole if pair in kept]
    assert len(kept) <= len("TheLady")
    assert ["S", "e"] not in kept


def test_named_special_tokens_stay_and_the_rest_go(tokenizer, corpus):
    end, start = "<|endoftext|>", "<|im_start|>"
    trimmed, kept_ids = trim_tokenizer(tokenizer, corpus, [tokenizer.token_to_id(end)])
    assert kept_ids[trimmed.token_to_id(end)] == tokenizer.token_to_id(end)
    assert trimmed.token_to_id("<|im_end|>") is None
    if tokenizer.post_processor is None:
        assert trimmed.token_to_id(start) is None
    else:
        assert trimmed.encode("The").ids[0] == trimmed.token_to_id(start)


def test_a_special_token_inside_a_title_stays_one_token(tokenizer):
    title = "Notes <|im_end|> on Film"
    trimmed, kept_ids = trim_tokenizer(tokenizer, [title])
    assert [kept_ids[i] for i in _ids(trimmed, title)] == _ids(tokenizer, title)
    assert tokenizer.token_to_id("<|im_end|>") in kept_ids


def test_saved_it_loads_through_tokenizers_and_transformers_alike(tokenizer, corpus, tmp_path):
    trimmed, _ = trim_tokenizer(tokenizer, _texts(corpus[:6]))
    trimmed.save(str(tmp_path / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    ours = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for theirs in (PreTrainedTokenizerFast, AutoTokenizer):
        loaded = theirs.from_pretrained(tmp_path)
        for text in [*corpus, *FOREIGN]:
            assert loaded(text)["input_ids"] == ours.encode(text).ids == trimmed.encode(text).ids


_LETTERS = st.text(alphabet="abcdeé '1\n🎬", min_size=1, max_size=12)


@settings(max_examples=60, deadline=None)
@given(st.lists(_LETTERS, min_size=1, max_size=8), st.lists(_LETTERS, max_size=4), st.booleans())
def test_whatever_the_texts_they_tokenise_as_before(texts, others, ignore_merges):
    whole = json.loads(train_tokenizer(texts + others, TEMPLATE, 400).to_str())
    whole["model"]["ignore_merges"] = ignore_merges
    tokenizer = Tokenizer.from_str(json.dumps(whole))
    trimmed, kept_ids = trim_tokenizer(tokenizer, texts)
    for text in texts:
        assert [kept_ids[i] for i in _ids(trimmed, text)] == _ids(tokenizer, text)
    for text in others:
        assert trimmed.decode(_ids(trimmed, text)) == text


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("tied", [True, False])
def test_kept_rows_have_the_same_logits(family, tied, corpus, tokenizer, tiny_model):
    # One row more than tokens, as published models often have.
    model = tiny_model(family, tokenizer.get_vocab_size() + 1, tie_word_embeddings=tied)
    small, trimmed, kept_ids = trim_vocabulary(model, tokenizer, _texts(corpus[:6]))
    assert small.config.vocab_size == len(kept_ids) == small.lm_head.weight.shape[0]
    assert (small.lm_head.weight is small.model.embed_tokens.weight) is tied
    new_BT = torch.tensor([_ids(trimmed, f"{corpus[0]}\n{corpus[2]}")])
    old_BT = torch.tensor(kept_ids)[new_BT]
    with torch.no_grad():
        assert torch.equal(small.model(new_BT)[0], model.model(old_BT)[0])
        assert torch.equal(small(new_BT).logits, model(old_BT).logits[..., list(kept_ids)])


def test_special_ids_follow_their_tokens(tokenizer, corpus, tiny_model):
    end, stop = tokenizer.token_to_id("<|endoftext|>"), tokenizer.token_to_id("<|im_end|>")
    size = tokenizer.get_vocab_size()
    model = tiny_model("llama", size, eos_token_id=[end, stop], pad_token_id=end)
    small, trimmed, _ = trim_vocabulary(model, tokenizer, corpus[:2])
    new_end, new_stop = trimmed.token_to_id("<|endoftext|>"), trimmed.token_to_id("<|im_end|>")
    assert small.config.eos_token_id == small.generation_config.eos_token_id == [new_end, new_stop]
    assert small.config.pad_token_id == small.generation_config.pad_token_id == new_end
    assert small.config.bos_token_id is None
    assert model.config.eos_token_id == [end, stop]


def test_an_id_that_is_not_kept_becomes_none(tiny_model):
    model = tiny_model("llama", 10, eos_token_id=9, pad_token_id=2)
    small = slice_vocabulary(model, [5, 2])
    assert small.config.eos_token_id is None
    assert small.config.pad_token_id == 1
    assert torch.equal(small.lm_head.weight, model.lm_head.weight[[5, 2]])


def _word_piece() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


def _sentence_piece_like() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE({"▁": 0, "a": 1}, [], byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


@pytest.mark.parametrize("make", [_word_piece, _sentence_piece_like])
def test_other_kinds_of_tokenizer_are_refused(make):
    with pytest.raises(BaseModelError, match=r"not a byte-level BPE.*train without trimming"):
        trim_tokenizer(make(), ["a"])


def test_a_tokenizer_that_drops_merges_at_random_is_refused(corpus, tokenizer):
    document = json.loads(tokenizer.to_str())
    document["model"]["dropout"] = 0.5
    with pytest.raises(BaseModelError, match="BPE with dropout"):
        trim_tokenizer(Tokenizer.from_str(json.dumps(document)), corpus)


def test_smollm2_keeps_a_real_catalogue(smollm2_file: Path, real_titles: list[str]):
    tokenizer = read_gguf_tokenizer(smollm2_file)
    texts = _texts(real_titles)
    trimmed, kept_ids = trim_tokenizer(tokenizer, texts, [2])
    assert 3_946 <= len(kept_ids) < 10_000
    for text in texts:
        assert [kept_ids[i] for i in _ids(trimmed, text)] == _ids(tokenizer, text)
    for text in FOREIGN:
        assert trimmed.decode(_ids(trimmed, text)) == text
