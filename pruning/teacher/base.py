"""What a teacher starts from: a pretrained model, or a small one with weights still to be learned."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict
from tokenizers import Tokenizer

from pruning.errors import BaseModelError
from pruning.models import read_gguf_model, read_gguf_tokenizer, read_model, read_tokenizer
from pruning.surgery.adapter import CausalModel, check_supported
from recommender.errors import UnsupportedModelError
from recommender.storage import sha256_of


class BaseLineage(BaseModel):
    """Where the first weights came from; it travels with all that is made from them.

    Attributes:
        kind: what the base was.
        name: the folder's or file's own name, never its path.
        weights_sha256: 64 hex digits: of the weights file, or for several shards of the lines
            `digest  name` in name order; None when the weights were drawn.
        architecture: the transformers class.
        parameters: all of them, tied ones counted once.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["huggingface", "gguf", "scratch"]
    name: str
    weights_sha256: str | None
    architecture: str
    parameters: int


@dataclass(frozen=True)
class Base:
    """A model to train, its tokenizer, and where they came from.

    Attributes:
        model: dense float32, in evaluation mode.
        tokenizer: neither truncates nor pads; its special tokens' ids stand in `model.config`.
        lineage: the record of their origin.
    """

    model: CausalModel
    tokenizer: Tokenizer
    lineage: BaseLineage


def load_base(path: Path) -> Base:
    """Loads a Hugging Face model directory or a GGUF file of the Llama, Qwen2 or Qwen3 family.

    Only safetensors are read, never a pickle, and nothing is fetched from a network.

    Raises:
        BaseModelError: nothing there, or nothing that can be trained exactly; the message says
            what would be.
    """
    if path.suffix.lower() == ".gguf":
        if not path.is_file():
            raise BaseModelError(f"{path}: no such file")
        model, tokenizer = read_gguf_model(path), read_gguf_tokenizer(path)
        lineage = lineage_of(model, "gguf", path.name, sha256_of(path))
    else:
        model, tokenizer = read_model(path), read_tokenizer(path)
        lineage = lineage_of(model, "huggingface", path.resolve().name, _digest_of_weights(path))
    try:
        check_supported(model)  # now, rather than after hours of training
    except UnsupportedModelError as error:
        raise BaseModelError(f"{path}: {error}") from error
    rows: int = model.config.vocab_size
    largest = max(tokenizer.get_vocab().values(), default=-1)
    if largest >= rows:
        raise BaseModelError(
            f"{path}: the tokenizer's ids reach {largest}, but the model has {rows} embeddings; "
            "they do not belong together"
        )
    return Base(model, tokenizer, lineage)


def lineage_of(
    model: CausalModel,
    kind: Literal["huggingface", "gguf", "scratch"],
    name: str,
    weights_sha256: str | None,
) -> BaseLineage:
    """The record of a base whose model has just been made."""
    return BaseLineage(
        kind=kind,
        name=name,
        weights_sha256=weights_sha256,
        architecture=type(model).__name__,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
    )


def _digest_of_weights(directory: Path) -> str:
    files = sorted(directory.glob("*.safetensors"))
    digests = [sha256_of(file) for file in files]
    if len(digests) == 1:
        return digests[0]
    lines = (f"{digest}  {file.name}\n" for digest, file in zip(digests, files, strict=True))
    return hashlib.sha256("".join(lines).encode()).hexdigest()
