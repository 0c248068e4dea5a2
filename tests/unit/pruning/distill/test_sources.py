from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_run import TITLES, write_dataset

from pruning.distill import sources
from pruning.distill.objective import among_vocabulary
from pruning.distill.signals import TopSignal
from pruning.distill.sources import CachedSignal, CachedTeacher, LiveTeacher, cache_signals
from pruning.errors import RunError
from pruning.teacher.base import Base
from pruning.training.batches import batches_in_order
from pruning.training.decisions import NEVER, Children, at_decisions
from pruning.training.windows import UserPacker
from recommender.dataset import Dataset
from recommender.prompt import PromptEncoder, PromptTemplate
from recommender.trie import TitleTrie

TOP_5 = CachedSignal(kind="cached", top_k=5)


@pytest.fixture(scope="module")
def taught(base: Base, tmp_path_factory: pytest.TempPathFactory):
    dataset = Dataset(write_dataset(tmp_path_factory.mktemp("data")))
    windows = UserPacker(PromptEncoder(PromptTemplate(), base.tokenizer), TITLES).training(dataset)
    return base.model, windows


@pytest.fixture(scope="module")
def trie(base: Base) -> TitleTrie:
    """One title more than the histories have: six and seven alternatives, where there are not five."""
    encoder = PromptEncoder(PromptTemplate(), base.tokenizer)
    titles = (*TITLES, "Red Harbor")
    return TitleTrie.build(encoder.encode_titles(titles), [0] * len(titles))


@pytest.fixture(autouse=True)
def several_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "_WINDOWS_PER_PART", 16)


def test_cached_signals_are_the_live_ones(taught, tmp_path: Path) -> None:
    model, windows = taught
    told: list[tuple[int, int]] = []
    cache_signals(model, windows, among_vocabulary, TOP_5, tmp_path, lambda *count: told.append(count))
    assert len(list(tmp_path.iterdir())) == len(told) > 2
    assert told[-1] == (len(told), len(told))
    cached, live = CachedTeacher(tmp_path, windows), LiveTeacher(model, among_vocabulary)
    for batch in batches_in_order(windows, 700):
        dense = live.signal(batch)
        top = TopSignal.of(dense.log_probs_PV, 5)
        signal = cached.signal(batch)
        torch.testing.assert_close(signal.log_probs_PK, top.log_probs_PK, atol=2e-3, rtol=1e-3)
        student = torch.zeros_like(dense.log_probs_PV).log_softmax(-1)
        torch.testing.assert_close(
            signal.forward_kl(student), top.forward_kl(student), atol=5e-3, rtol=5e-3
        )


def test_at_decisions_only_what_may_follow_is_kept(taught, trie: TitleTrie, tmp_path: Path) -> None:
    model, windows = taught
    forks, children = at_decisions(windows, trie), Children(trie)
    top_6 = CachedSignal(kind="cached", top_k=6)
    cache_signals(model, forks, children.among_catalogue, top_6, tmp_path, lambda *_: None)
    cached, live = CachedTeacher(tmp_path, forks), LiveTeacher(model, children.among_catalogue)
    kept = load_file(next(tmp_path.iterdir()))
    assert len(kept["ids"]) == kept["counts"].sum() < 6 * len(kept["counts"])
    for batch in batches_in_order(forks, 700):
        dense, signal = live.signal(batch), cached.signal(batch)
        alternatives = [len(trie.children(int(node))) for node in batch.nodes_P]
        assert (signal.log_probs_PK > NEVER).sum(-1).tolist() == [min(6, count) for count in alternatives]
        torch.manual_seed(0)
        student = children.among_catalogue(torch.randn_like(dense.log_probs_PV), batch)
        top = TopSignal.of(dense.log_probs_PV, 6).forward_kl(student)
        torch.testing.assert_close(signal.forward_kl(student), top, atol=5e-3, rtol=5e-3)
        whole = torch.tensor(alternatives) <= 6
        assert not whole.all()
        torch.testing.assert_close(top[whole], dense.forward_kl(student)[whole], atol=1e-4, rtol=1e-4)


def test_parts_that_stand_are_kept_and_a_missing_one_is_made(taught, tmp_path: Path) -> None:
    model, windows = taught
    cache_signals(model, windows, among_vocabulary, TOP_5, tmp_path, lambda *_: None)
    first, second, *_ = sorted(tmp_path.iterdir())
    second.unlink()
    stood = first.stat().st_mtime_ns
    with pytest.raises(RunError, match="part-00001"):
        CachedTeacher(tmp_path, windows)
    cache_signals(model, windows, among_vocabulary, TOP_5, tmp_path, lambda *_: None)
    assert first.stat().st_mtime_ns == stood
    CachedTeacher(tmp_path, windows)


@pytest.mark.parametrize("damage", ["truncated", "other windows"])
def test_damage_is_named(taught, tmp_path: Path, damage: str) -> None:
    model, windows = taught
    cache_signals(model, windows, among_vocabulary, TOP_5, tmp_path, lambda *_: None)
    if damage == "truncated":
        part = tmp_path / "part-00000.safetensors"
        part.write_bytes(part.read_bytes()[:100])
    else:
        windows = windows[1:]
    with pytest.raises(RunError, match="remove the folder"):
        CachedTeacher(tmp_path, windows)
