import json
from collections.abc import Callable
from pathlib import Path

import gguf
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import PreTrainedModel
from transformers.utils import logging

from pruning.checkpoint import save_checkpoint
from pruning.errors import BaseModelError
from pruning.teacher.base import Base, load_base
from pruning.teacher.scratch import END_OF_TEXT, train_tokenizer
from recommender.prompt import PromptTemplate
from recommender.storage import sha256_of

TEMPLATE = PromptTemplate()
WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def vocabulary(corpus: list[str]) -> Tokenizer:
    return train_tokenizer(corpus, TEMPLATE, 300)


@pytest.fixture
def saved(tmp_path: Path, vocabulary: Tokenizer, tiny_model) -> Callable[..., tuple]:
    """Writes a small Hugging Face directory; gives it and its model."""

    def save(family: str = "llama", **fields: object) -> tuple[Path, PreTrainedModel]:
        model = tiny_model(family, vocabulary.get_vocab_size(), **fields)
        folder = tmp_path / "model"
        folder.mkdir()
        save_checkpoint(folder, model, vocabulary, TEMPLATE)
        return folder, model

    return save


def _logits(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.arange(20).reshape(2, 10)).logits


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("tied", [True, False])
def test_a_directory_of_each_family_loads_as_it_was_saved(saved, vocabulary, family, tied):
    folder, model = saved(family, tie_word_embeddings=tied)
    base = load_base(folder)
    assert torch.equal(_logits(base.model), _logits(model))
    assert base.model.dtype == torch.float32
    assert not base.model.training
    assert base.tokenizer.to_str() == vocabulary.to_str()
    assert base.lineage.kind == "huggingface"
    assert base.lineage.name == "model"
    assert base.lineage.weights_sha256 == sha256_of(folder / WEIGHTS)
    assert base.lineage.architecture == type(model).__name__
    tied_twice = model.lm_head.weight.numel() if tied else 0
    assert base.lineage.parameters == sum(v.numel() for v in model.state_dict().values()) - tied_twice


def test_half_precision_weights_come_in_float32(saved):
    folder, model = saved()
    model.to(torch.bfloat16).save_pretrained(folder)
    loaded = load_base(folder).model
    assert loaded.config.dtype == loaded.dtype == torch.float32
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor.float())


def test_shards_have_one_digest_that_any_of_them_changes(saved):
    folder, model = saved(num_hidden_layers=4)
    (folder / WEIGHTS).unlink()
    model.save_pretrained(folder, max_shard_size="12KB")
    shards = sorted(folder.glob("*.safetensors"))
    assert len(shards) > 1
    base = load_base(folder)
    assert torch.equal(_logits(base.model), _logits(model))
    tensors = load_file(shards[0])
    save_file({k: v + 1 for k, v in tensors.items()}, shards[0], metadata={"format": "pt"})
    assert load_base(folder).lineage.weights_sha256 != base.lineage.weights_sha256


def test_a_tokenizer_that_cuts_or_pads_no_longer_does(saved, vocabulary):
    folder, _ = saved()
    cutting = Tokenizer.from_str(vocabulary.to_str())
    cutting.enable_truncation(2)
    cutting.enable_padding(length=9)
    cutting.save(str(folder / "tokenizer.json"))
    title = "The Lady in the Van"
    assert load_base(folder).tokenizer.encode(title).ids == vocabulary.encode(title).ids


def _without_weights(folder: Path) -> None:
    (folder / WEIGHTS).unlink()


def _pickled(folder: Path) -> None:
    torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()


def _truncated(folder: Path) -> None:
    whole = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(whole[: len(whole) // 2])


def _lacking_a_weight(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    del tensors["model.norm.weight"]
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def _with_a_foreign_weight(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS) | {"model.layers.0.adapter": torch.zeros(3)}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def _config(folder: Path, **fields: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def _with_sliding_windows(folder: Path) -> None:
    sliding = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0}
    _config(folder, model_type="qwen3", architectures=["Qwen3ForCausalLM"], layer_types=None, **sliding)
    norms = {f"model.layers.{i}.self_attn.{n}_norm.weight": torch.ones(4) for i in (0, 1) for n in "qk"}
    tensors = load_file(folder / WEIGHTS) | norms
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def _tokenizer_of_another(folder: Path) -> None:
    train_tokenizer(["one more word " * 3] * 3, TEMPLATE, 300).save(str(folder / "tokenizer.json"))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_tokens([f"<{n}>" for n in range(100)])
    tokenizer.save(str(folder / "tokenizer.json"))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "config.json").unlink(), "no config.json; give the folder"),
        (lambda f: (f / "config.json").write_text("{"), "config.json: not JSON"),
        (lambda f: _config(f, model_type="bert"), "'bert' is none of the families read here"),
        (lambda f: _config(f, quantization_config={"a": 1}), "give the dense model"),
        (lambda f: _config(f, hidden_size=18), "multiple of the number of attention heads"),
        (lambda f: _config(f, intermediate_size=20), "cannot be read"),
        (_without_weights, r"no \*.safetensors file"),
        (_pickled, "only pickled weights.*convert them"),
        (_truncated, "cannot be read .*fetch it again"),
        (_lacking_a_weight, "lacks model.norm.weight"),
        (_with_a_foreign_weight, "unknown model.layers.0.adapter"),
        (lambda f: (f / "tokenizer.json").unlink(), "no fast tokenizer; make one with"),
        (lambda f: (f / "tokenizer.json").write_text("{}"), "tokenizer.json: not a tokenizer"),
        (_with_sliding_windows, "sliding-window layers cannot be pruned"),
        (_tokenizer_of_another, "do not belong together"),
    ],
)
def test_what_cannot_be_a_base_is_refused_in_one_line(saved, damage, message, capfd):
    folder, _ = saved()
    damage(folder)
    with pytest.raises(BaseModelError, match=message) as refused:
        load_base(folder)
    assert str(refused.value).startswith(str(folder))
    assert "\n" not in str(refused.value)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["absent", "absent.gguf"])
def test_nothing_there_is_said(tmp_path, name):
    with pytest.raises(BaseModelError, match="no such"):
        load_base(tmp_path / name)


def test_transformers_is_as_talkative_as_before(saved):
    folder, _ = saved()
    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    load_base(folder)
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


def _as_llama_cpp_orders(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """llama.cpp keeps the two halves of a rotary pair side by side, as its converter does it."""
    rows = weight.reshape(heads, 2, weight.shape[0] // heads // 2, -1)
    return rows.swapaxes(1, 2).reshape(weight.shape)


_GGUF_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def write_gguf(
    file: Path, model: PreTrainedModel, tokenizer: Tokenizer, architecture: str = "llama"
) -> None:
    config = model.config
    writer = gguf.GGUFWriter(file, architecture)
    writer.add_name("Some Model")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(config.vocab_size)
    vocab = tokenizer.get_vocab()
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(sorted(vocab, key=vocab.__getitem__))
    end = tokenizer.token_to_id(END_OF_TEXT)
    writer.add_token_types([3 if i == end else 1 for i in range(len(vocab))])
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_bos_token_id(end)
    writer.add_eos_token_id(end)
    writer.add_unk_token_id(end)
    writer.add_pad_token_id(end)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    names = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    for index in range(config.num_hidden_layers):
        for ours, theirs in _GGUF_NAMES.items():
            names[f"model.layers.{index}.{ours}"] = f"blk.{index}.{theirs}"
    for name, tensor in model.state_dict().items():
        stem = name.removesuffix(".weight")
        if stem == "lm_head" and config.tie_word_embeddings:
            continue
        count = heads.get(stem.rsplit(".", 1)[-1])
        ordered = _as_llama_cpp_orders(tensor, count) if count else tensor
        writer.add_tensor(f"{names[stem]}.weight", ordered.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("tied", [True, False])
def test_a_gguf_file_is_the_model_it_was_made_from(tmp_path, vocabulary, tiny_model, tied, capfd):
    model = tiny_model("llama", vocabulary.get_vocab_size(), tie_word_embeddings=tied)
    file = tmp_path / "tiny.gguf"
    write_gguf(file, model, vocabulary)
    base = load_base(file)
    torch.testing.assert_close(_logits(base.model), _logits(model), rtol=0, atol=1e-6)
    assert base.model.config.tie_word_embeddings is tied
    assert (base.model.lm_head.weight is base.model.model.embed_tokens.weight) is tied
    for text in ("Star Trek: Nemesis", "東京 🎬", "\n"):
        assert base.tokenizer.encode(text).ids == vocabulary.encode(text).ids
    assert base.lineage.kind == "gguf"
    assert base.lineage.name == "tiny.gguf"
    assert base.lineage.weights_sha256 == sha256_of(file)
    assert capfd.readouterr() == ("", "")


def test_a_model_out_of_a_gguf_file_can_be_saved(tmp_path, vocabulary, tiny_model):
    write_gguf(tmp_path / "tiny.gguf", tiny_model("llama", 300), vocabulary)
    base = load_base(tmp_path / "tiny.gguf")
    folder = tmp_path / "saved"
    folder.mkdir()
    save_checkpoint(folder, base.model, base.tokenizer, TEMPLATE)
    config = (folder / "config.json").read_text()
    assert "quantization_config" not in config
    assert "Some Model" not in config
    assert torch.equal(_logits(load_base(folder).model), _logits(base.model))


@pytest.mark.parametrize("part", [0.0, 0.01, 0.3, 0.9, 0.9999])
def test_a_truncated_gguf_file_is_refused_in_one_line(tmp_path, vocabulary, tiny_model, part):
    file = tmp_path / "tiny.gguf"
    write_gguf(file, tiny_model("llama", vocabulary.get_vocab_size()), vocabulary)
    whole = file.read_bytes()
    file.write_bytes(whole[: int(len(whole) * part)])
    with pytest.raises(BaseModelError, match="may be truncated") as refused:
        load_base(file)
    assert str(refused.value).startswith(str(file))
    assert "\n" not in str(refused.value)


def test_a_gguf_file_of_another_family_is_refused(tmp_path, vocabulary, tiny_model):
    file = tmp_path / "tiny.gguf"
    write_gguf(file, tiny_model("llama", vocabulary.get_vocab_size()), vocabulary, "mamba2")
    with pytest.raises(BaseModelError, match="mamba2"):
        load_base(file)


@pytest.fixture(scope="module")
def smollm2(smollm2_file: Path) -> Base:
    return load_base(smollm2_file)


@pytest.mark.slow
def test_smollm2_is_the_model_it_should_be(smollm2):
    config = smollm2.model.config
    shape = (config.hidden_size, config.intermediate_size, config.num_hidden_layers)
    assert shape == (576, 1536, 30)
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (9, 3, 64)
    assert smollm2.lineage.parameters == 106_203_456 + 49_152 * 576
    assert smollm2.model.lm_head.weight is smollm2.model.model.embed_tokens.weight


@pytest.mark.slow
def test_smollm2_writes_sense(smollm2):
    prompt = torch.tensor([smollm2.tokenizer.encode("The capital of France is").ids])
    written = smollm2.model.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=1, do_sample=False
    )
    assert smollm2.tokenizer.decode(written[0].tolist()) == "The capital of France is Paris"
