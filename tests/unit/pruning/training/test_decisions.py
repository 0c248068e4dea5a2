"""Where titles fork, what may follow there, and that a search's score is what the loss measures."""

from pathlib import Path

import pytest
import torch
from small_run import TITLES, write_dataset

from pruning.evaluation import RankingTask, lean_transformer, losses_per_title
from pruning.teacher.scratch import ScratchConfig, base_from_scratch
from pruning.training.batches import collate
from pruning.training.decisions import NEVER, Children, NextDecision, at_decisions
from pruning.training.windows import UserPacker
from recommender.dataset import Dataset
from recommender.prompt import PromptEncoder, PromptTemplate
from recommender.search.frontier import Query
from recommender.trie import TitleTrie

SHAPE = ScratchConfig(
    hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1
)


class Work:
    def __init__(self, folder: Path) -> None:
        self.dataset = Dataset(write_dataset(folder))
        base = base_from_scratch(SHAPE, TITLES, PromptTemplate())
        self.model = base.model
        self.model.model.embed_tokens.weight.data.mul_(20)  # far from uniform
        self.encoder = PromptEncoder(PromptTemplate(), base.tokenizer)
        self.paths = self.encoder.encode_titles(TITLES)
        self.trie = TitleTrie.build(self.paths, [0] * len(TITLES))
        self.windows = UserPacker(self.encoder, TITLES).training(self.dataset)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Work:
    return Work(tmp_path_factory.mktemp("work"))


def followers(work: Work, prefix: tuple[int, ...]) -> set[int]:
    """By hand: what may come after a title's first tokens."""
    depth = len(prefix)
    return {path[depth] for path in work.paths if path[:depth] == prefix and len(path) > depth}


def test_decisions_are_the_places_with_an_alternative(work: Work) -> None:
    for before, after in zip(work.windows, at_decisions(work.windows, work.trie), strict=True):
        expected = []
        for begin, end in zip(before.target_from, before.target_to, strict=True):
            for at in range(begin, end):
                if len(followers(work, before.tokens[begin:at])) > 1:
                    expected.append(at)
        assert after.targets() == expected
        assert after.target_tokens == len(expected) < before.target_tokens
        assert (after.tokens, after.target_from) == (before.tokens, before.target_from)


def test_children_are_what_may_follow_and_share_all_probability(work: Work) -> None:
    windows = at_decisions(work.windows, work.trie)
    batch = collate(windows, range(5))
    assert batch.nodes_P is not None
    torch.manual_seed(0)
    vocabulary = work.model.config.vocab_size
    logits_PV = torch.randn(len(batch.labels_P), vocabulary)
    log_probs_PV = Children(work.trie).log_probs(logits_PV, batch.nodes_P)
    torch.testing.assert_close(log_probs_PV.exp().sum(-1), torch.ones(len(batch.labels_P)))
    place = 0
    for window in windows[:5]:
        for at in window.targets():
            begin = max(start for start in window.target_from if start <= at)
            wanted = followers(work, window.tokens[begin:at])
            found = set((log_probs_PV[place] > NEVER).nonzero().flatten().tolist())
            assert found == wanted
            chosen = sorted(wanted)
            by_hand = logits_PV[place, chosen].log_softmax(-1)
            torch.testing.assert_close(log_probs_PV[place, chosen], by_hand)
            place += 1
    assert place == len(batch.labels_P)


def test_what_may_not_follow_gets_no_gradient(work: Work) -> None:
    batch = collate(at_decisions(work.windows, work.trie), range(3))
    assert batch.nodes_P is not None
    logits_PV = torch.randn(len(batch.labels_P), work.model.config.vocab_size, requires_grad=True)
    log_probs_PV = Children(work.trie).log_probs(logits_PV, batch.nodes_P)
    loss = -log_probs_PV.gather(-1, batch.labels_P[:, None]).sum()
    (gradient_PV,) = torch.autograd.grad(loss, logits_PV)
    assert (gradient_PV[log_probs_PV == NEVER] == 0).all()
    assert (gradient_PV[log_probs_PV > NEVER] != 0).any()


def test_the_catalogue_loss_is_what_a_search_says_of_the_title(work: Work) -> None:
    windows = UserPacker(work.encoder, TITLES).held_out(work.dataset, "valid")
    task = RankingTask(work.dataset.catalogue, work.encoder, work.dataset.rows("valid"))
    ranker = task.ranker(lean_transformer(work.model))
    scores = []
    for window in windows:
        for begin, end in zip(window.target_from, window.target_to, strict=True):
            query = Query(window.tokens[:begin], len(TITLES))
            (found,) = ranker.search.rank([query])
            title = window.tokens[begin:end]
            scores += [i.score for i in ranker.items(found, query) if work.paths[i.index] == title]
    _, loss = losses_per_title(work.model, windows, task.trie)
    assert len(scores) == sum(len(window.target_from) for window in windows)
    assert loss == pytest.approx(-sum(scores) / len(scores), rel=1e-4)


def test_the_next_decision_is_learnt_among_its_children(work: Work) -> None:
    batch = collate(at_decisions(work.windows, work.trie), range(3))
    assert batch.nodes_P is not None
    logits_PV = torch.randn(len(batch.labels_P), work.model.config.vocab_size)
    children = Children(work.trie)
    by_hand = -children.log_probs(logits_PV, batch.nodes_P).gather(-1, batch.labels_P[:, None]).mean()
    assert NextDecision(children)(logits_PV, batch).item() == pytest.approx(by_hand.item())
