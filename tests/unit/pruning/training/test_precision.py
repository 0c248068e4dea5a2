"""Attention in float32 while all other products are bfloat16's, and no trace of it afterwards."""

import copy

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from pruning.training.precision import attending_in_float32, multiplying_in

CPU = torch.device("cpu")


@pytest.fixture
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=60,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        attn_implementation="sdpa",
    )
    return LlamaForCausalLM(config)


@pytest.fixture
def tokens_BT() -> torch.Tensor:  # noqa: N802 - a tensor's name
    return torch.randint(0, 60, (3, 21), generator=torch.Generator().manual_seed(1))


def attended(model: LlamaForCausalLM, tokens_BT: torch.Tensor) -> list[torch.dtype]:
    """The types of the queries that reach torch's attention."""
    seen: list[torch.dtype] = []
    stock = torch.nn.functional.scaled_dot_product_attention

    def watching(query: torch.Tensor, *args: object, **kwargs: object) -> torch.Tensor:
        inside = torch.is_autocast_enabled("cpu")
        seen.append(torch.bfloat16 if inside else query.dtype)
        return stock(query, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.functional, "scaled_dot_product_attention", watching)
        model(input_ids=tokens_BT, use_cache=False)
    return seen


def test_it_attends_in_float32_and_only_within_the_block(
    model: LlamaForCausalLM, tokens_BT: torch.Tensor
) -> None:
    with multiplying_in("bfloat16", CPU):
        assert attended(model, tokens_BT) == [torch.bfloat16] * 2
        with attending_in_float32(model.config):
            assert attended(model, tokens_BT) == [torch.float32] * 2
        assert attended(model, tokens_BT) == [torch.bfloat16] * 2


def test_float32_all_through_is_bitwise_what_it_was(
    model: LlamaForCausalLM, tokens_BT: torch.Tensor
) -> None:
    other = copy.deepcopy(model)
    with attending_in_float32(model.config):
        logits_BTV = model(input_ids=tokens_BT, use_cache=False).logits
        logits_BTV.square().mean().backward()
    expected_BTV = other(input_ids=tokens_BT, use_cache=False).logits
    expected_BTV.square().mean().backward()
    assert torch.equal(logits_BTV, expected_BTV)
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(mine.grad, theirs.grad)


def test_padding_is_masked_as_before(model: LlamaForCausalLM, tokens_BT: torch.Tensor) -> None:
    mask_BT = torch.ones_like(tokens_BT)
    mask_BT[1, :9] = 0
    expected_BTV = model(input_ids=tokens_BT, attention_mask=mask_BT).logits
    with attending_in_float32(model.config):
        assert torch.equal(model(input_ids=tokens_BT, attention_mask=mask_BT).logits, expected_BTV)


def test_an_attention_that_was_chosen_is_left_alone(model: LlamaForCausalLM) -> None:
    model.set_attn_implementation("eager")
    with attending_in_float32(model.config):
        assert model.config._attn_implementation == "eager"


def test_a_failure_leaves_no_trace(model: LlamaForCausalLM) -> None:
    with pytest.raises(KeyError), attending_in_float32(model.config):
        raise KeyError
    assert model.config._attn_implementation == "sdpa"
