"""Adapters: they start as nothing, they alone learn, and merged they are the same function."""

import builtins
from pathlib import Path

import pytest
import torch
from small_run import TITLES, Silent, teacher_config, write_dataset
from transformers import PreTrainedModel

from pruning.checkpoint import load_checkpoint, save_checkpoint
from pruning.errors import MissingPackageError
from pruning.evaluation import ModelValidation, lean_transformer
from pruning.teacher.scratch import base_from_scratch
from pruning.teacher.train import train_teacher
from pruning.training.loop import TrainingConfig, fit
from pruning.training.lora import Trainable, merged, merged_tensors, with_adapters
from pruning.training.objective import NextToken
from pruning.training.windows import UserPacker
from recommender.dataset import Dataset
from recommender.prompt import PromptEncoder, PromptTemplate
from recommender.storage import new_directory

TOKENS = torch.tensor([[5, 9, 200, 17, 44]])


def plain() -> PreTrainedModel:
    return base_from_scratch(teacher_config().scratch, TITLES, PromptTemplate()).model


def adapted() -> Trainable:
    """Adapters that do something: B is not zero any more."""
    model = with_adapters(plain(), rank=2, seed=0).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / 10)
    return model


def logits(model: Trainable) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=TOKENS).logits


def test_fresh_adapters_change_nothing_and_sit_on_every_projection_of_the_layers() -> None:
    model = with_adapters(plain(), rank=2, seed=0).eval()
    torch.testing.assert_close(logits(model), logits(plain()), atol=0, rtol=0)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert all(".lora_A." in name or ".lora_B." in name for name in trained)
    assert len(trained) == 3 * 7 * 2  # layers, projections, A and B
    assert not any("lm_head" in name or "embed" in name for name in trained)


def test_the_same_seed_draws_the_same_and_the_global_generator_stays() -> None:
    torch.manual_seed(7)
    state = torch.random.get_rng_state()
    first, again, other = (with_adapters(plain(), 2, seed).state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), state)
    drawn = [name for name in first if "lora_A" in name]
    assert all(torch.equal(first[name], again[name]) for name in drawn)
    assert not any(torch.equal(first[name], other[name]) for name in drawn)


def test_merged_is_the_same_function_and_a_plain_checkpoint(tmp_path: Path) -> None:
    model = adapted()
    unmerged = logits(model)
    assert not torch.allclose(unmerged, logits(plain()), atol=1e-3)
    beside = merged_tensors(model)
    torch.testing.assert_close(logits(model), unmerged, atol=0, rtol=0)  # it goes on as it was

    whole = merged(model)
    torch.testing.assert_close(logits(whole), unmerged, atol=1e-5, rtol=1e-5)
    assert whole.state_dict().keys() == plain().state_dict().keys() == beside.keys()
    for name, tensor in whole.state_dict().items():
        torch.testing.assert_close(beside[name], tensor)
    with new_directory(tmp_path / "model") as folder:
        base = base_from_scratch(teacher_config().scratch, TITLES, PromptTemplate())
        save_checkpoint(folder, whole, base.tokenizer, PromptTemplate())
    torch.testing.assert_close(
        logits(load_checkpoint(tmp_path / "model").model), logits(whole), atol=0, rtol=0
    )


def test_validation_ranks_with_the_adapters() -> None:
    model = adapted()
    searched = lean_transformer(model)
    expected = lean_transformer(merged(adapted()))
    for mine, theirs in zip(searched.layers, expected.layers, strict=True):
        for name, tensor in vars(theirs).items():
            if isinstance(tensor, torch.Tensor):
                torch.testing.assert_close(vars(mine)[name], tensor)


class InterruptionError(Exception):
    pass


def test_a_resumed_training_ends_where_an_uninterrupted_one_does(tmp_path: Path) -> None:
    dataset = Dataset(write_dataset(tmp_path))
    base = base_from_scratch(teacher_config().scratch, TITLES, PromptTemplate())
    encoder = PromptEncoder(PromptTemplate(), base.tokenizer)
    windows = UserPacker(encoder, TITLES).training(dataset)
    validation = ModelValidation(dataset, encoder, 20, seed=0)
    config = TrainingConfig(epochs=3, learning_rate=1e-2, tokens_per_batch=1024)

    def run(folder: str, validate=validation) -> Trainable:
        model = with_adapters(plain(), rank=2, seed=0)
        result = fit(model, windows, NextToken(), validate, config, tmp_path / folder, Silent())
        losses = [v.figures["loss"] for v in result.validations]
        assert losses == sorted(losses, reverse=True)
        return model

    def interrupted(model: Trainable) -> dict[str, float]:
        if (tmp_path / "b" / "checkpoint-5" / "whole").exists():
            raise InterruptionError
        return validation(model)

    expected = run("a")
    with pytest.raises(InterruptionError):
        run("b", interrupted)
    resumed = run("b").state_dict()
    start = with_adapters(plain(), rank=2, seed=0).state_dict()
    for name, tensor in expected.state_dict().items():
        torch.testing.assert_close(resumed[name], tensor, atol=1e-6, rtol=1e-5)
        assert torch.equal(tensor, start[name]) == ("lora" not in name)  # nothing else has learnt
    saved = {file.name for file in (tmp_path / "b" / "checkpoint-15").iterdir()}
    assert "adapter_model.safetensors" in saved
    assert "model.safetensors" not in saved


def test_a_teacher_is_saved_merged(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path)
    config = teacher_config(learning_rate=1e-2).model_copy(update={"lora_rank": 2})
    reporter = Silent()
    record = train_teacher(dataset, tmp_path / "teacher", config, reporter)
    assert "training 2,784 parameters of adapters of rank 2" in reporter.lines
    teacher = load_checkpoint(tmp_path / "teacher" / "model")
    encoder = PromptEncoder(teacher.template, teacher.tokenizer)
    figures = ModelValidation(Dataset(dataset), encoder, 20, seed=0)(teacher.model)
    assert figures["loss"] == pytest.approx(record.fit.best.figures["loss"], rel=1e-5)
    assert figures["hr10"] == record.fit.best.figures["hr10"] == record.quality.hr10


def test_without_peft_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest):
        if name == "peft":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingPackageError, match=r"pip install 'espalier\[lora\]'"):
        with_adapters(plain(), rank=2, seed=0)
