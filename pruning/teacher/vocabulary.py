"""Leaving out the tokens that a catalogue never uses, without changing what it does use.

A byte-level BPE starts from bytes and joins, again and again, the adjacent pair whose merge has the
lowest rank. Take away every merge that never fires on some texts: at each step on those texts the
candidates are fewer, but the one that was chosen is still among them and still ranks lowest. So the
texts tokenise exactly as before, and other texts merely fall into smaller pieces.

Shapes: V tokens before, K kept, D hidden size.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from itertools import groupby, pairwise
from typing import Any, NamedTuple

import torch
from tokenizers import Encoding, Tokenizer, pre_tokenizers
from transformers import GenerationConfig, PretrainedConfig

from pruning.errors import BaseModelError
from pruning.surgery.adapter import CausalModel, Dimension, build, locate

_CONFIG_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")

_Pair = tuple[str, str]


class TrimmedVocabulary(NamedTuple):
    """A model and a tokenizer over fewer tokens.

    Attributes:
        model: a new model; the one that was given is untouched.
        tokenizer: a new tokenizer.
        kept_ids: the old id of each new id.
    """

    model: CausalModel
    tokenizer: Tokenizer
    kept_ids: tuple[int, ...]


def trim_vocabulary(model: CausalModel, tokenizer: Tokenizer, texts: Iterable[str]) -> TrimmedVocabulary:
    """Keeps what `texts` use, the byte alphabet, and the special tokens that the config names.

    Args:
        model: Llama, Qwen2 or Qwen3, tied or not.
        tokenizer: a byte-level BPE.
        texts: everything that must tokenise as before: the titles, the instruction and the
            separator, each as it is encoded.

    Raises:
        BaseModelError: the tokenizer is no byte-level BPE.
    """
    named = [token_id for name in _CONFIG_IDS for token_id in _ids_in(model.config, name)]
    trimmed, kept_ids = trim_tokenizer(tokenizer, texts, named)
    return TrimmedVocabulary(slice_vocabulary(model, kept_ids), trimmed, kept_ids)


def trim_tokenizer(
    tokenizer: Tokenizer, texts: Iterable[str], special_ids: Iterable[int] = ()
) -> tuple[Tokenizer, tuple[int, ...]]:
    """The tokenizer without what `texts` do not use, and the old id of each new id.

    `special_ids` are kept beside the byte alphabet, the unknown token and what the
    post-processor inserts. Bytes that the tokenizer never had stay absent.

    Raises:
        BaseModelError: the tokenizer is no byte-level BPE.
    """
    document = json.loads(tokenizer.to_str())
    document["truncation"] = document["padding"] = None
    _check_byte_level(document)
    whole = Tokenizer.from_str(json.dumps(document))
    texts = list(texts)
    encodings = whole.encode_batch(texts, add_special_tokens=False)

    bpe = document["model"]
    added = {token["content"] for token in document["added_tokens"]}
    fired = _fired_merges(encodings, bpe, added)
    tokens = set(pre_tokenizers.ByteLevel.alphabet()) & bpe["vocab"].keys()
    tokens.update(token for encoding in encodings for token in encoding.tokens)
    tokens.update(part for left, right in fired for part in (left, right, left + right))
    tokens.update(_post_processor_tokens(document["post_processor"]))
    tokens.update(filter(None, map(whole.id_to_token, special_ids)))
    if bpe.get("unk_token"):
        tokens.add(bpe["unk_token"])

    kept_ids = _in_new_order(tokens, whole, bpe["vocab"])
    trimmed = Tokenizer.from_str(json.dumps(_trimmed_document(document, fired, kept_ids)))
    _check_same(texts, encodings, trimmed, kept_ids)
    return trimmed, kept_ids


def slice_vocabulary(model: CausalModel, kept_ids: Sequence[int]) -> CausalModel:
    """A model whose embeddings and head hold these rows of `model`'s, in this order.

    Logits of kept tokens stay what they were. Ids in the config follow; sampling settings meant for
    chat are dropped. An id that is not kept becomes None.
    """
    new_ids = {old: new for new, old in enumerate(kept_ids)}
    rows_K = torch.tensor(list(kept_ids), device=model.device)
    tensors = {
        # VD becomes KD
        name: tensor.index_select(0, rows_K)
        if locate(name).dimensions[0] is Dimension.VOCABULARY
        else tensor
        for name, tensor in model.state_dict().items()
    }
    fields = model.config.to_dict() | {"vocab_size": len(kept_ids)}
    for name in _CONFIG_IDS:
        mapped = [new_ids[old] for old in _ids_in(model.config, name) if old in new_ids]
        # Several ids (a chat model that may end in more than one way) stay a list.
        fields[name] = mapped if len(mapped) > 1 else next(iter(mapped), None)
    sliced = build(type(model.config).from_dict(fields), tensors, like=model)
    sliced.generation_config = GenerationConfig.from_model_config(sliced.config)
    return sliced


def merge(symbols: Sequence[str], ranks: Mapping[_Pair, int]) -> tuple[list[str], set[_Pair]]:
    """BPE on one word: joins the lowest-ranked adjacent pair, leftmost first, until none is left.

    Returns:
        The word's tokens, and the pairs that were joined on the way.
    """
    word, joined = list(symbols), set[_Pair]()
    while True:
        candidates = [(ranks[pair], place) for place, pair in enumerate(pairwise(word)) if pair in ranks]
        if not candidates:
            return word, joined
        _, place = min(candidates)
        joined.add((word[place], word[place + 1]))
        word[place : place + 2] = [word[place] + word[place + 1]]


def _fired_merges(encodings: Iterable[Encoding], bpe: Mapping[str, Any], added: Set[str]) -> set[_Pair]:
    """The merges that fire on the encoded texts, learned by doing them again.

    A word is given back by its tokens: they are its bytes, joined. So added tokens, normalisers
    and splitting rules need no second implementation here.
    """
    ranks = {(left, right): rank for rank, (left, right) in enumerate(bpe["merges"])}
    taken_whole = added | bpe["vocab"].keys() if bpe.get("ignore_merges") else added
    unknown = bpe.get("unk_token")
    words = {
        tuple(token for _, token in group)
        for encoding in encodings
        for _, group in groupby(
            zip(encoding.word_ids, encoding.tokens, strict=True), key=lambda pair: pair[0]
        )
    }
    fired: set[_Pair] = set()
    for tokens in words:
        if len(tokens) == 1 and tokens[0] in taken_whole:
            continue
        symbols = [s for token in tokens for s in ((token,) if token == unknown else token)]
        result, joined = merge(symbols, ranks)
        if result != list(tokens):
            raise BaseModelError(
                f"the tokenizer makes {list(tokens)} where its merges give {result}; its "
                "vocabulary cannot be trimmed exactly, so train without trimming"
            )
        fired |= joined
    return fired


def _check_byte_level(document: Mapping[str, Any]) -> None:
    bpe = document["model"]
    kind = bpe["type"]
    odd = [
        name
        for name in ("dropout", "byte_fallback", "continuing_subword_prefix", "end_of_word_suffix")
        if bpe.get(name)
    ]
    if kind == "BPE" and not odd and _has_byte_level(document["pre_tokenizer"]):
        return
    detail = f"{kind} with {', '.join(odd)}" if odd else kind
    raise BaseModelError(
        f"the tokenizer is {detail}, not a byte-level BPE, and only such a vocabulary can be "
        "trimmed exactly; train without trimming"
    )


def _has_byte_level(part: Mapping[str, Any] | None) -> bool:
    if part is None:
        return False
    return part["type"] == "ByteLevel" or any(map(_has_byte_level, part.get("pretokenizers", ())))


def _post_processor_tokens(part: Mapping[str, Any] | None) -> Iterator[str]:
    """The tokens that a post-processor puts around a text when asked to."""
    if part is None:
        return
    for step in part.get("processors", ()):
        yield from _post_processor_tokens(step)
    for special in part.get("special_tokens", {}).values():
        yield from special["tokens"]
    if part["type"] in ("BertProcessing", "RobertaProcessing"):
        raise BaseModelError(
            f"the tokenizer's {part['type']} is none that decoders use; its vocabulary cannot be "
            "trimmed, so train without trimming"
        )


def _in_new_order(tokens: Iterable[str], tokenizer: Tokenizer, vocab: Mapping[str, int]) -> tuple[int, ...]:
    """Old ids, the model's own before those that only the added tokens have, as they are numbered.

    tokenizers numbers the latter on from the size of the vocabulary, whatever their file says.
    """
    whole = tokenizer.get_vocab(with_added_tokens=True)
    ordered = sorted(tokens, key=lambda token: (token not in vocab, whole[token]))
    return tuple(whole[token] for token in ordered)


def _trimmed_document(
    document: Mapping[str, Any], fired: Set[_Pair], kept_ids: Sequence[int]
) -> dict[str, Any]:
    new_ids = {old: new for new, old in enumerate(kept_ids)}
    bpe = document["model"]
    vocab = {token: new_ids[old] for token, old in bpe["vocab"].items() if old in new_ids}
    merges = [pair for pair in bpe["merges"] if tuple(pair) in fired]
    added = [
        token | {"id": new_ids[token["id"]]} for token in document["added_tokens"] if token["id"] in new_ids
    ]
    return {
        **document,
        "model": bpe | {"vocab": vocab, "merges": merges},
        "added_tokens": sorted(added, key=lambda token: int(token["id"])),
        "post_processor": _renumbered(document["post_processor"], new_ids),
    }


def _renumbered(part: dict[str, Any] | None, new_ids: Mapping[int, int]) -> dict[str, Any] | None:
    if part is None:
        return None
    changed = dict(part)
    if "processors" in part:
        changed["processors"] = [_renumbered(step, new_ids) for step in part["processors"]]
    if "special_tokens" in part:
        changed["special_tokens"] = {
            name: special | {"ids": [new_ids[old] for old in special["ids"]]}
            for name, special in part["special_tokens"].items()
        }
    return changed


def _check_same(
    texts: list[str], before: Sequence[Encoding], trimmed: Tokenizer, kept_ids: Sequence[int]
) -> None:
    after = trimmed.encode_batch_fast(texts, add_special_tokens=False)
    for text, old, new in zip(texts, before, after, strict=True):
        if old.ids != [kept_ids[token_id] for token_id in new.ids]:
            raise BaseModelError(
                f"the trimmed tokenizer reads {text!r} differently; its vocabulary cannot be "
                "trimmed exactly, so train without trimming"
            )


def _ids_in(config: PretrainedConfig, name: str) -> list[int]:
    value = getattr(config, name, None)
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]
