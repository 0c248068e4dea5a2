import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from pruning.checkpoint import PROMPT_FILE, load_checkpoint, save_checkpoint
from pruning.errors import BaseModelError
from pruning.teacher.base import Base
from pruning.teacher.scratch import ScratchConfig, base_from_scratch
from recommender.prompt import PromptEncoder, PromptTemplate

TITLES = ["The Lady in the Van", "Star Wars", "Amélie", "東京物語 🎬"]
TEMPLATE = PromptTemplate(instruction="Seen:\n", max_items=6, keep_items=3)
SHAPE = ScratchConfig(
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    vocab_size=300,
)


@pytest.fixture
def base() -> Base:
    return base_from_scratch(SHAPE, TITLES, TEMPLATE)


@pytest.fixture
def folder(tmp_path: Path, base: Base) -> Path:
    folder = tmp_path / "teacher"
    folder.mkdir()
    save_checkpoint(folder, base.model, base.tokenizer, TEMPLATE)
    return folder


def test_what_is_saved_is_loaded(folder, base):
    loaded = load_checkpoint(folder)
    ids_BT = torch.arange(30).reshape(2, 15)
    with torch.no_grad():
        assert torch.equal(loaded.model(ids_BT).logits, base.model(ids_BT).logits)
    assert loaded.tokenizer.to_str() == base.tokenizer.to_str()
    assert loaded.template == TEMPLATE


def test_the_folder_is_plain_hugging_face(folder):
    names = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
    assert names == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "recommender/prompt.json",
    }
    assert json.loads((folder / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]


def test_transformers_alone_loads_it_and_agrees(folder, base):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    text = TEMPLATE.instruction + "\n".join(TITLES)
    ids = base.tokenizer.encode(text).ids
    assert tokenizer(text)["input_ids"] == ids
    assert tokenizer.decode(ids) == text
    with torch.no_grad():
        assert torch.equal(model(torch.tensor([ids])).logits, base.model(torch.tensor([ids])).logits)
    assert tokenizer.eos_token_id == model.config.eos_token_id == base.model.config.eos_token_id
    assert tokenizer.pad_token_id == model.generation_config.pad_token_id


def test_several_ends_are_kept_and_the_first_is_the_tokenizers(tmp_path, base):
    base.model.config.eos_token_id = [5, 6]
    base.model.generation_config.eos_token_id = [5, 6]
    save_checkpoint(tmp_path, base.model, base.tokenizer, TEMPLATE)
    assert load_checkpoint(tmp_path).model.config.eos_token_id == [5, 6]
    assert AutoTokenizer.from_pretrained(tmp_path).eos_token_id == 5


def test_saving_says_nothing(tmp_path, base, capfd):
    save_checkpoint(tmp_path, base.model, base.tokenizer, TEMPLATE)
    assert capfd.readouterr() == ("", "")


def test_the_loaded_tokenizer_carries_the_prompt(folder):
    loaded = load_checkpoint(folder)
    encoder = PromptEncoder(loaded.template, loaded.tokenizer)
    prompt = encoder.encode_prompt(encoder.encode_titles(TITLES))
    assert loaded.tokenizer.decode(prompt) == TEMPLATE.instruction + "\n".join([*TITLES, ""])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda prompt: prompt.unlink(), r"no recommender/prompt.json; .* train from it first"),
        (lambda prompt: prompt.write_text("{"), "not a prompt template"),
        (lambda prompt: prompt.write_text('{"max_items": 0}'), "not a prompt template"),
    ],
)
def test_a_folder_without_its_prompt_is_refused(folder, damage, message):
    damage(folder / PROMPT_FILE)
    with pytest.raises(BaseModelError, match=message) as refused:
        load_checkpoint(folder)
    assert "\n" not in str(refused.value)
