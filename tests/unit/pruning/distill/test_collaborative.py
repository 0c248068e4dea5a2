from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_run import Silent, write_dataset
from torch import Tensor

from pruning.distill import collaborative, sources
from pruning.distill.collaborative import (
    Mixture,
    SequenceSignal,
    TitleLessons,
    TitleSequences,
    best_share,
    fit_on_titles,
    held_out_log_probs,
    kept_on_titles,
)
from pruning.distill.sasrec import PartlyPredicted, SasRec
from pruning.distill.sources import CachedSignal, CachedTeacher, LiveTeacher, cache_signals
from pruning.errors import RunError
from pruning.teacher.base import Base
from pruning.training.batches import batches_in_order
from pruning.training.decisions import Children, at_decisions
from pruning.training.logits import target_logits
from pruning.training.windows import UserPacker, Window
from recommender.dataset import Dataset
from recommender.prompt import PromptEncoder, PromptTemplate
from recommender.trie import TitleTrie


@pytest.fixture(scope="module")
def packed(base: Base, tmp_path_factory: pytest.TempPathFactory) -> tuple[Sequence[Window], TitleTrie]:
    dataset = Dataset(write_dataset(tmp_path_factory.mktemp("data")))
    encoder = PromptEncoder(PromptTemplate(), base.tokenizer)
    titles = dataset.catalogue.titles
    trie = TitleTrie.build(encoder.encode_titles(titles), [0] * len(titles))
    return UserPacker(encoder, titles).training(dataset), trie


def drawn_model(trie: TitleTrie) -> SasRec:
    torch.manual_seed(0)
    model = SasRec(TitleSequences(trie).ids, 64).eval()
    with torch.no_grad():
        model.ids.weight[:-1].mul_(20)  # far from uniform, too
    return model


def test_a_sequence_is_what_the_window_says(packed) -> None:
    windows, trie = packed
    for window, sequence in zip(windows, TitleSequences(trie).of(windows), strict=True):
        beginning, *leaves = sequence.ids
        assert beginning == trie.leaf_count
        paths = [trie.path(leaf) for leaf in leaves]
        tokens = tuple(token for path in paths for token in path)
        assert window.tokens[-len(tokens) :] == tokens
        spans = zip(window.target_from, window.target_to, strict=True)
        assert [window.tokens[begin:end] for begin, end in spans] == paths[-sequence.predicted :]


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_titles_have_the_mixture_of_both_probabilities(base: Base, packed, share: float) -> None:
    windows, trie = packed
    model, forks = drawn_model(trie), at_decisions(windows, trie)
    teacher_Q, other_Q = held_out_log_probs(base.model, model, windows, trie, "float32")
    mixture, chosen = Mixture(trie, model, forks, share), []
    for batch in batches_in_order(forks, 4096):
        with torch.inference_mode():
            logits_PV = target_logits(base.model, batch)
        mixed_PV = mixture.log_probs(logits_PV, batch)
        torch.testing.assert_close(mixed_PV.exp().sum(-1), torch.ones(len(mixed_PV)))
        teacher_PV = Children(trie).log_probs(logits_PV, batch.nodes_P)
        assert ((mixed_PV > -1e4) == (teacher_PV > -1e4)).all()  # the same tokens may follow
        if share == 1:
            torch.testing.assert_close(mixed_PV, teacher_PV, atol=1e-4, rtol=1e-4)
        chosen.extend(sums_of_titles(batch, forks, mixed_PV))
    expected_Q = share * teacher_Q.exp() + (1 - share) * other_Q.exp()
    torch.testing.assert_close(torch.tensor(chosen).exp().double(), expected_Q, atol=1e-7, rtol=1e-3)


def sums_of_titles(batch, forks: Sequence[Window], mixed_PV: Tensor) -> list[float]:
    """Each target title's log-probability, by hand."""
    sums, place = [], 0
    for index in batch.windows:
        window = forks[index]
        for begin, end in zip(window.target_from, window.target_to, strict=True):
            here = [position for position, _ in window.decisions if begin <= position < end]
            sums.append(sum(mixed_PV[place + i, window.tokens[at]].item() for i, at in enumerate(here)))
            place += len(here)
    return sums


def test_the_best_share_is_the_one_that_held_out_titles_like_best() -> None:
    generator = torch.Generator().manual_seed(0)
    teacher_Q, other_Q = (torch.randn(400, generator=generator).double() - 3 for _ in range(2))

    def likelihood(share: float) -> float:
        return (share * teacher_Q.exp() + (1 - share) * other_Q.exp()).log().mean().item()

    found = best_share(teacher_Q, other_Q)
    assert 0.01 < found < 0.99
    assert likelihood(found) >= max(likelihood(step / 100) for step in range(1, 100)) - 1e-9
    assert best_share(teacher_Q, teacher_Q - 1) > 0.99
    assert best_share(teacher_Q - 1, teacher_Q) < 0.01


def test_a_sequence_model_learns_what_follows_what(base: Base, tmp_path: Path) -> None:
    dataset = Dataset(write_dataset(tmp_path, users=80))
    encoder = PromptEncoder(PromptTemplate(), base.tokenizer)
    titles = dataset.catalogue.titles
    trie = TitleTrie.build(encoder.encode_titles(titles), [0] * len(titles))
    packer, reporter = UserPacker(encoder, titles), Silent()
    held_out = packer.held_out(dataset, "valid")
    lessons = TitleLessons(TitleSequences(trie), packer.training(dataset), held_out, 0)
    model = fit_on_titles(lessons, reporter)
    (line,) = reporter.lines
    assert line.startswith("sequence model: validation NDCG@10 0.")
    assert float(line.split()[4]) > 0.5
    teacher_Q, other_Q = held_out_log_probs(base.model, model, held_out, trie, "float32")
    assert other_Q.mean() > teacher_Q.mean() + 1  # the drawn teacher knows nothing
    assert best_share(teacher_Q, other_Q) < 0.3


def test_more_titles_than_memory_holds_are_refused(packed, monkeypatch: pytest.MonkeyPatch) -> None:
    windows, trie = packed
    monkeypatch.setattr(collaborative, "_MOST_TITLES", trie.leaf_count - 1)
    with pytest.raises(RunError, match=r"titles are too many.*do without `collaborative`"):
        fit_on_titles(TitleLessons(TitleSequences(trie), windows, windows, 0), Silent())


def test_a_model_is_taken_from_where_it_has_learnt_the_same(packed, tmp_path: Path) -> None:
    windows, trie = packed
    asked = TitleLessons(TitleSequences(trie), windows, windows, 0)
    known = tmp_path / "known.safetensors"
    kept_on_titles(known, asked, Silent())

    taken, reporter = tmp_path / "taken.safetensors", Silent()
    kept_on_titles(taken, asked, reporter, known)
    assert taken.read_bytes() == known.read_bytes()
    assert reporter.lines == [f"sequence model: that of {known}, which has learnt the same"]

    others = {"seed": 1, "training": windows[1:], "validation": windows[1:]}
    for name, value in others.items():
        trained = Silent()
        kept_on_titles(tmp_path / name, replace(asked, **{name: value}), trained, known)
        assert trained.lines[0].startswith("sequence model: validation NDCG@10"), name
    known.write_bytes(b"no tensors")
    trained = Silent()
    kept_on_titles(tmp_path / "anew", asked, trained, known)
    assert (tmp_path / "anew").read_bytes() == taken.read_bytes()
    assert trained.lines[0].startswith("sequence model: validation NDCG@10")


def test_only_what_is_predicted_is_scored_and_from_what_stands_before() -> None:
    torch.manual_seed(0)
    model = SasRec(7, 5).eval()
    long, short = PartlyPredicted((0, 1, 2, 3), 2), PartlyPredicted((4, 5), 1)
    scores_PI = model.scores([long, short])
    assert scores_PI.shape == (3, 7)
    assert long.targets + short.targets == (2, 3, 5)
    torch.testing.assert_close(scores_PI[2:], model.scores([short]))
    # The last one of a sequence is a target only: another in its place changes nothing.
    torch.testing.assert_close(scores_PI[:2], model.scores([PartlyPredicted((0, 1, 2, 6), 2)]))


def test_a_model_that_is_too_sure_leaves_every_title_possible(base: Base, packed) -> None:
    windows, trie = packed
    model, forks = drawn_model(trie), at_decisions(windows, trie)
    with torch.no_grad():
        model.ids.weight.mul_(100)
    assert (TitleSequences(trie).probs(model, windows[:1]) < 1e-6).any()  # but for the spread it was 0
    for batch in batches_in_order(forks, 4096):
        told_PV = (
            SequenceSignal(trie, model, forks, base.model.config.vocab_size).signal(batch).log_probs_PV
        )
        assert told_PV.isfinite().all()
        torch.testing.assert_close(told_PV.exp().sum(-1), torch.ones(len(told_PV)))


def test_a_sequence_signal_is_the_mixture_without_a_teacher(base: Base, packed) -> None:
    windows, trie = packed
    model, forks = drawn_model(trie), at_decisions(windows, trie)
    vocabulary = base.model.config.vocab_size
    alone, mixture = SequenceSignal(trie, model, forks, vocabulary), Mixture(trie, model, forks, 0.0)
    for batch in batches_in_order(forks, 4096):
        with torch.inference_mode():
            logits_PV = target_logits(base.model, batch)
        told = alone.signal(batch)
        torch.testing.assert_close(told.log_probs_PV, mixture.log_probs(logits_PV, batch))
        assert told.forward_kl(told.log_probs_PV).abs().max() < 1e-5
        # A student far away is told so, and in finite words.
        student_PV = Children(trie).log_probs(-20 * told.log_probs_PV.clamp_min(-20), batch.nodes_P)
        assert told.forward_kl(student_PV).isfinite().all()
        assert told.forward_kl(student_PV).mean() > 1


def test_cached_in_parts_it_is_still_each_windows_own(
    base: Base, packed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "_WINDOWS_PER_PART", 16)
    windows, trie = packed
    forks = at_decisions(windows, trie)
    log_probs = Mixture(trie, drawn_model(trie), forks, 0.5).log_probs
    whole = CachedSignal(kind="cached", top_k=base.model.config.vocab_size)
    cache_signals(base.model, forks, log_probs, whole, tmp_path, lambda *_: None)
    assert len(list(tmp_path.iterdir())) > 2
    cached, live = CachedTeacher(tmp_path, forks), LiveTeacher(base.model, log_probs)
    for batch in batches_in_order(forks, 700):
        dense_PV = live.signal(batch).log_probs_PV
        assert cached.signal(batch).forward_kl(dense_PV).abs().max() < 5e-3
