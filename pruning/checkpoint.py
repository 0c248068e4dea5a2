"""A trained model on disk: a plain Hugging Face folder with the prompt it was trained on beside it.

The teacher and every stage's student are kept this way. transformers and vLLM load the folder with
no code of ours:

    config.json  generation_config.json  model.safetensors  tokenizer.json  tokenizer_config.json
    recommender/prompt.json
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError
from tokenizers import Tokenizer

from pruning.errors import BaseModelError
from pruning.models import quiet_transformers, read_model, read_tokenizer
from pruning.surgery.adapter import CausalModel
from recommender.prompt import PromptTemplate

PROMPT_FILE = Path("recommender", "prompt.json")

_SPECIAL_TOKENS = ("bos_token", "eos_token", "pad_token")


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint folder holds.

    Attributes:
        model: float32, in evaluation mode.
        tokenizer: neither truncates nor pads; its special tokens' ids stand in `model.config`.
        template: the prompt the model was trained on.
    """

    model: CausalModel
    tokenizer: Tokenizer
    template: PromptTemplate


def save_checkpoint(
    directory: Path, model: CausalModel, tokenizer: Tokenizer, template: PromptTemplate
) -> None:
    """Fills `directory`, which exists and which the caller renames when whole.

    See `recommender.storage.new_directory`.
    """
    with quiet_transformers():
        # One file whatever the size, so that a digest of the weights is a digest of a file.
        model.save_pretrained(directory, max_shard_size="1TB")
    tokenizer.save(str(directory / "tokenizer.json"))
    config = json.dumps(_tokenizer_config(model, tokenizer), indent=2, ensure_ascii=False)
    (directory / "tokenizer_config.json").write_text(config + "\n", encoding="utf-8")
    prompt = directory / PROMPT_FILE
    prompt.parent.mkdir()
    prompt.write_text(template.model_dump_json(indent=2) + "\n", encoding="utf-8")


def load_checkpoint(directory: Path) -> Checkpoint:
    """Reads what `save_checkpoint` wrote.

    Raises:
        BaseModelError: the folder is no checkpoint of ours, or is damaged.
    """
    model = read_model(directory)
    tokenizer = read_tokenizer(directory)
    prompt = directory / PROMPT_FILE
    try:
        template = PromptTemplate.model_validate_json(prompt.read_bytes())
    except FileNotFoundError:
        raise BaseModelError(
            f"{directory}: no {PROMPT_FILE}; a model that was not trained here is a base: "
            "train from it first"
        ) from None
    except ValidationError as error:
        problem = error.errors()[0]["msg"]
        raise BaseModelError(f"{prompt}: not a prompt template ({problem})") from error
    return Checkpoint(model, tokenizer, template)


def _tokenizer_config(model: CausalModel, tokenizer: Tokenizer) -> dict[str, object]:
    # Written by hand: this class name makes every version of transformers take tokenizer.json as
    # it stands, where a family's own class would rebuild parts of it.
    config: dict[str, object] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": model.config.max_position_embeddings,
    }
    for name in _SPECIAL_TOKENS:
        token_id = getattr(model.config, f"{name}_id", None)
        first = token_id[0] if isinstance(token_id, list) and token_id else token_id
        if isinstance(first, int) and (token := tokenizer.id_to_token(first)) is not None:
            config[name] = token
    return config
