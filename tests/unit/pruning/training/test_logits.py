"""The head reads target positions only, and nothing that a target is predicted from is changed by it."""

import copy

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel
from transformers import LlamaConfig, LlamaForCausalLM

from pruning.training.batches import Batch, collate
from pruning.training.logits import target_logits
from pruning.training.windows import Window


@pytest.fixture
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=60,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config)


@pytest.fixture
def batch() -> Batch:
    """Rows of unlike lengths; the second's first title is context."""
    windows = [
        Window((9, 1, 2, 3, 4, 8, 7), (1, 4), (4, 7)),
        Window((9, 5, 6, 11), (3,), (4,)),
        Window((9, 5), (1,), (2,)),
    ]
    return collate(windows, [0, 1, 2])


def whole_head(model: LlamaForCausalLM, batch: Batch) -> torch.Tensor:
    logits = model(input_ids=batch.input_ids_BT, attention_mask=batch.attention_mask_BT).logits
    return batch.read(logits)


def test_logits_and_gradients_are_those_of_the_whole_padded_and_masked_pass(
    model: LlamaForCausalLM, batch: Batch
) -> None:
    other = copy.deepcopy(model)
    found, expected = target_logits(model, batch), whole_head(other, batch)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    for logits in (found, expected):
        torch.nn.functional.cross_entropy(logits, batch.labels_P).backward()
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, atol=1e-6, rtol=1e-4)


def test_the_head_reads_as_many_states_as_there_are_targets(model: LlamaForCausalLM, batch: Batch) -> None:
    read = []
    model.lm_head.register_forward_hook(lambda _, __, logits: read.append(tuple(logits.shape)))
    target_logits(model, batch)
    assert read == [(len(batch.labels_P), 60)]


def test_the_model_is_left_as_it_was(model: LlamaForCausalLM, batch: Batch) -> None:
    target_logits(model, batch)
    assert model(input_ids=batch.input_ids_BT).logits.shape == (3, 7, 60)
    with pytest.raises(IndexError):
        target_logits(model, batch.__class__(**{**vars(batch), "row_P": batch.row_P + 9}))
    assert model(input_ids=batch.input_ids_BT).logits.shape == (3, 7, 60)


@pytest.fixture
def one_process_group(tmp_path):
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("one_process_group")
def test_a_wrapper_for_several_processes_sees_the_pass(model: LlamaForCausalLM, batch: Batch) -> None:
    wrapped = DistributedDataParallel(model)
    passes = []
    wrapped.register_forward_hook(lambda *_: passes.append(1))
    torch.testing.assert_close(target_logits(wrapped, batch), whole_head(model, batch))
    assert passes == [1]
