import random

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from pruning.training.batches import TokenBudgetSampler, batches_in_order, collate
from pruning.training.windows import Window


def some_windows(count: int = 50, seed: int = 0) -> list[Window]:
    draw = random.Random(seed)
    windows = []
    for _ in range(count):
        tokens = tuple(draw.randint(1, 99) for _ in range(draw.randint(6, 60)))
        begin = draw.randint(1, len(tokens) - 4)
        windows.append(Window(tokens, (begin, begin + 2), (begin + 2, len(tokens))))
    return windows


def test_an_epoch_has_every_window_once_within_the_budget() -> None:
    windows = some_windows()
    sampler = TokenBudgetSampler(windows, 200, seed=0)
    sampler.set_epoch(3)
    batches = list(sampler)
    assert sorted(index for batch in batches for index in batch) == list(range(50))
    assert len(batches) == len(sampler)
    for batch in batches:
        padded = len(batch) * max(len(windows[index].tokens) for index in batch)
        assert padded <= 200 * 1.3  # lengths are jittered by a tenth either way


def test_epochs_differ_but_repeat_by_seed() -> None:
    windows = some_windows()

    def epoch(seed: int, number: int) -> list[list[int]]:
        sampler = TokenBudgetSampler(windows, 200, seed)
        sampler.set_epoch(number)
        return list(sampler)

    assert epoch(0, 0) == epoch(0, 0)
    assert epoch(0, 0) != epoch(0, 1)
    assert epoch(0, 0) != epoch(1, 0)


def test_collate_reads_targets_one_place_earlier() -> None:
    windows = [Window((9, 1, 2, 3, 4), (1, 3), (3, 5)), Window((9, 5, 6), (2,), (3,))]
    batch = collate(windows, [1, 0])
    assert batch.input_ids_BT.tolist() == [[9, 5, 6, 0, 0], [9, 1, 2, 3, 4]]
    assert batch.attention_mask_BT.tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    assert batch.labels_P.tolist() == [6, 1, 2, 3, 4]
    assert list(zip(batch.row_P.tolist(), batch.column_P.tolist(), strict=True)) == [
        *((0, 1), (1, 0), (1, 1), (1, 2), (1, 3))
    ]
    assert batch.titles == 3
    assert batch.target_mask().tolist() == [[False, False, True, False, False], [False] + [True] * 4]
    logits_BTV = torch.arange(2 * 5 * 7).reshape(2, 5, 7)
    assert torch.equal(batch.read(logits_BTV)[0], logits_BTV[0, 1])


@pytest.mark.parametrize("tokens", [1, 100, 10_000])
def test_batches_in_order_hold_every_window_once(tokens: int) -> None:
    windows = some_windows()
    seen = [index for batch in batches_in_order(windows, tokens) for index in batch.windows]
    assert sorted(seen) == list(range(50))


def test_every_epoch_has_as_many_batches_of_the_same_sizes() -> None:
    sampler = TokenBudgetSampler(some_windows(), 200, seed=0)
    sizes = []
    for epoch in range(5):
        sampler.set_epoch(epoch)
        sizes.append(sorted(len(batch) for batch in sampler))
    assert all(len(epoch) == len(sampler) for epoch in sizes)
    assert all(epoch == sizes[0] for epoch in sizes)


@pytest.mark.parametrize("seed", range(5))
def test_collate_against_a_naive_loop(seed: int) -> None:
    windows = some_windows(9, seed)
    indices = random.Random(seed).sample(range(9), 4)
    batch = collate(windows, indices)
    expected = []
    for row, index in enumerate(indices):
        window = windows[index]
        for begin, end in zip(window.target_from, window.target_to, strict=True):
            expected += [(row, at - 1, window.tokens[at]) for at in range(begin, end)]
    found = zip(batch.row_P.tolist(), batch.column_P.tolist(), batch.labels_P.tolist(), strict=True)
    assert list(found) == expected
    assert batch.windows == tuple(indices)
    assert int(batch.target_mask().sum()) == len(expected)


def test_padding_never_changes_a_loss() -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=100,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    model = LlamaForCausalLM(config).eval()
    windows = some_windows(6)

    def losses(indices: list[int]) -> list[float]:
        batch = collate(windows, indices)
        with torch.no_grad():
            logits_BTV = model(input_ids=batch.input_ids_BT, attention_mask=batch.attention_mask_BT).logits
        losses_P = torch.nn.functional.cross_entropy(
            batch.read(logits_BTV), batch.labels_P, reduction="none"
        )
        return losses_P.tolist()

    alone = [loss for index in range(6) for loss in losses([index])]
    assert losses(list(range(6))) == pytest.approx(alone, abs=1e-5)
