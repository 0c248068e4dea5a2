"""Similarity by its definition, and a teacher that is known to repeat itself."""

import pytest
import torch

from pruning.report.redundancy import linear_cka, mean_similarity, share_needed


def test_rotation_and_scale_change_nothing_and_strangers_are_unlike() -> None:
    generator = torch.Generator().manual_seed(0)
    one = torch.randn(400, 64, generator=generator)
    rotation = torch.linalg.qr(torch.randn(64, 64, generator=generator)).Q
    stranger = torch.randn(400, 96, generator=generator)
    similar = linear_cka([one, 3 * one @ rotation + 5, stranger])
    assert similar[0, 1] == pytest.approx(1, abs=1e-4)
    assert similar.diagonal().tolist() == pytest.approx([1, 1, 1], abs=1e-4)
    # The biased estimator would say 0.2 here, where rows are few for so many dimensions.
    assert abs(float(similar[0, 2])) < 0.03


def test_what_is_shared_in_part_is_alike_in_part() -> None:
    generator = torch.Generator().manual_seed(0)
    shared, mine, yours = (torch.randn(500, 8, generator=generator) for _ in range(3))
    similar = linear_cka([torch.cat([shared, mine], 1), torch.cat([shared, yours], 1)])
    assert similar[0, 1] == pytest.approx(0.5, abs=0.05)


def test_features_without_variance_are_like_nothing() -> None:
    assert linear_cka([torch.ones(8, 3), torch.randn(8, 3)])[0].tolist() == [0, 0]


def test_means_and_shares() -> None:
    similar = torch.tensor([[1.0, 0.2], [0.4, 1.0]])
    assert mean_similarity(similar) == pytest.approx(0.3)
    assert mean_similarity(torch.ones(1, 1)) != mean_similarity(torch.ones(1, 1))  # NaN: no pair
    assert share_needed(torch.tensor([1.0, 7.0, 1.0, 1.0]), 0.8) == 0.5
    assert share_needed(torch.ones(10), 0.8) == 0.8
