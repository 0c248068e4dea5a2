"""Reading causal language models and their tokenizers from disk, where loading may fail.

Three families, all dense decoders that share a layer's structure: Llama, Qwen2 and Qwen3. What
transformers would pass over with a printed note (a missing weight, a foreign one) is an error here,
since a teacher with a freshly drawn layer looks like one that merely learned badly.
"""

from __future__ import annotations

import contextlib
import io
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from pruning.errors import BaseModelError
from pruning.surgery.adapter import CausalModel, build

FAMILIES = ("llama", "qwen2", "qwen3")

_FOREIGN_ERRORS = (
    KeyError,
    NotImplementedError,
    OSError,
    RuntimeError,
    SafetensorError,
    StrictDataclassError,
    TypeError,
    ValueError,
    struct.error,
)
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def read_model(directory: Path) -> CausalModel:
    """The model in a Hugging Face directory, in float32 and evaluation mode.

    Raises:
        BaseModelError: no such folder, no `config.json`, another family, quantised or pickled
            weights, or weights that are damaged or do not match the config.
    """
    _check_directory(directory)
    return _load_model(directory, directory)


def read_gguf_model(file: Path) -> CausalModel:
    """The model in a GGUF file, dequantised to a plain dense float32 model.

    transformers undoes llama.cpp's reordering of query and key rows, and ties the head when the
    file has no `output.weight`. What it returns still counts as quantised and refuses to be
    saved, so its tensors move into a model that never was.

    Raises:
        BaseModelError: not a whole GGUF file, or of another family.
    """
    loaded = _load_model(file.parent, file, gguf_file=file.name)
    family = loaded.config.model_type
    if family not in FAMILIES:
        raise BaseModelError(_unknown_family(file, family))
    fields = loaded.config.to_dict()
    for leftover in ("quantization_config", "_model_name_or_path", "unk_token_id"):
        fields.pop(leftover, None)
    return build(type(loaded.config).from_dict(fields), loaded.state_dict(), like=loaded)


def read_tokenizer(directory: Path) -> Tokenizer:
    """The tokenizer of a Hugging Face directory, without its truncation and padding.

    Raises:
        BaseModelError: there is no `tokenizer.json`, or it cannot be read.
    """
    file = directory / "tokenizer.json"
    if not file.is_file():
        raise BaseModelError(
            f"{directory}: no tokenizer.json, so no fast tokenizer; make one with "
            "AutoTokenizer.from_pretrained(…).save_pretrained(…)"
        )
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # tokenizers raises nothing narrower
        raise BaseModelError(f"{file}: not a tokenizer ({_one_line(error)})") from error
    return _whole_texts(tokenizer)


def read_gguf_tokenizer(file: Path) -> Tokenizer:
    """The tokenizer inside a GGUF file.

    Raises:
        BaseModelError: not a whole GGUF file, or a tokenizer that transformers cannot convert.
    """
    try:
        with quiet_transformers():
            loaded = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, local_files_only=True)
    except _FOREIGN_ERRORS as error:
        raise BaseModelError(_damaged(file, error)) from error
    return _whole_texts(loaded.backend_tokenizer)


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silences transformers' bars and load reports inside the block, and only there."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _load_model(directory: Path, source: Path, **extra: Any) -> CausalModel:
    # The bar over GGUF tensors is a bare tqdm that heeds no setting, so it writes into a string.
    silence = contextlib.redirect_stderr(io.StringIO())
    load: Any = AutoModelForCausalLM.from_pretrained  # typed as if it returned the model alone
    try:
        with quiet_transformers(), silence if extra else contextlib.nullcontext():
            loaded: tuple[CausalModel, dict[str, set[str]]] = load(
                directory,
                dtype=torch.float32,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
                **extra,
            )
    except _FOREIGN_ERRORS as error:
        raise BaseModelError(_damaged(source, error)) from error
    model, found = loaded
    for key, complaint in (("missing_keys", "lacks"), ("unexpected_keys", "has an unknown")):
        if found[key]:
            raise BaseModelError(
                f"{source}: {complaint} {min(found[key])} (and {len(found[key]) - 1} more); "
                "the weights do not belong to this config, so fetch the model again"
            )
    return model


def _check_directory(directory: Path) -> None:
    if not directory.is_dir():
        raise BaseModelError(
            f"{directory}: no such folder; give a Hugging Face model directory, a GGUF file or scratch"
        )
    try:
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BaseModelError(
            f"{directory}: no config.json; give the folder that a Hugging Face model was saved to"
        ) from None
    except ValueError as error:
        raise BaseModelError(f"{directory / 'config.json'}: not JSON ({error})") from error
    family = config.get("model_type") if isinstance(config, dict) else None
    if family not in FAMILIES:
        raise BaseModelError(_unknown_family(directory, family))
    if config.get("quantization_config"):
        raise BaseModelError(
            f"{directory}: quantised weights cannot be trained or sliced; give the dense model"
        )
    if any(directory.glob("*.safetensors")):
        return
    if any(file for pattern in _PICKLES for file in directory.glob(pattern)):
        raise BaseModelError(
            f"{directory}: only pickled weights, which can run code when opened; convert them "
            "where you trust them, with AutoModelForCausalLM.from_pretrained(…).save_pretrained(…)"
        )
    raise BaseModelError(f"{directory}: no *.safetensors file; fetch the model's weights")


def _whole_texts(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.no_truncation()  # a cut title would be another title
    tokenizer.no_padding()
    return tokenizer


def _unknown_family(source: Path, family: object) -> str:
    return f"{source}: {family!r} is none of the families read here ({', '.join(FAMILIES)})"


def _damaged(source: Path, error: Exception) -> str:
    return f"{source}: cannot be read ({_one_line(error)}); it may be truncated, so fetch it again"


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else f"{text[:199]}…"
