from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_run import TITLES, write_dataset

from pruning.data.prepare import PrepareOptions, prepare
from pruning.teacher.scratch import train_tokenizer
from pruning.training.windows import Augmentation, UserPacker, Window
from recommender.dataset import Dataset
from recommender.prompt import PromptEncoder, PromptTemplate

TEMPLATE = PromptTemplate(max_items=6, keep_items=3)


@pytest.fixture(scope="module")
def encoder() -> PromptEncoder:
    return PromptEncoder(TEMPLATE, train_tokenizer(TITLES, TEMPLATE, 320))


def read(window: Window, encoder: PromptEncoder) -> tuple[list[int], list[int]]:
    """The items of a window, and the places among them that are targets."""
    names = {tokens: item for item, tokens in enumerate(encoder.encode_titles(TITLES))}
    assert window.tokens[: len(encoder.instruction_ids)] == encoder.instruction_ids
    items, begins = [], {}
    at = len(encoder.instruction_ids)
    while at < len(window.tokens):
        stop = window.tokens.index(encoder.separator_id, at) + 1
        begins[at] = (len(items), stop)
        items.append(names[window.tokens[at:stop]])
        at = stop
    assert [begins[begin][1] for begin in window.target_from] == list(window.target_to)
    return items, [begins[begin][0] for begin in window.target_from]


@settings(
    max_examples=10,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(seed=st.integers(0, 10**6))
def test_every_training_interaction_is_a_target_once_and_no_other(
    seed: int, encoder: PromptEncoder, tmp_path_factory: pytest.TempPathFactory
) -> None:
    dataset = Dataset(write_dataset(tmp_path_factory.mktemp("data"), users=15, seed=seed))
    windows = UserPacker(encoder, TITLES).training(dataset)
    # A window shows where each target stands only by its user's sequence: compare as multisets.
    targets: Counter[tuple[tuple[int, ...], int]] = Counter()
    for window in windows:
        items, places = read(window, encoder)
        targets.update((tuple(items[:place]), items[place]) for place in places)
    expected: Counter[tuple[tuple[int, ...], int]] = Counter()
    for user in dataset.users:
        if "train" not in user.splits:
            continue
        last = max(at for at, split in enumerate(user.splits) if split == "train")
        for at in range(last + 1):
            start = TEMPLATE.window_start(at)
            expected[(user.items[start:at], user.items[at])] += 1
    assert targets == expected


def test_held_out_windows_hold_exactly_the_splits_targets(encoder: PromptEncoder, tmp_path: Path) -> None:
    dataset = Dataset(write_dataset(tmp_path))
    for split in ("valid", "test"):
        found: Counter[int] = Counter()
        for window in UserPacker(encoder, TITLES).held_out(dataset, split):
            items, places = read(window, encoder)
            assert all(place <= TEMPLATE.max_items for place in places)
            found.update(items[place] for place in places)
        assert found == Counter(dataset.rows(split).targets_R.tolist())


@settings(
    max_examples=15,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(days=st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=14), min_size=8, max_size=14))
def test_no_target_of_another_split_is_trained_on_though_days_tie(
    days: list[list[int]], encoder: PromptEncoder, tmp_path_factory: pytest.TempPathFactory
) -> None:
    # Every interaction has an item of its own, so a title names its place.
    if sum(len(user) - 1 for user in days) < 10:
        return
    folder = tmp_path_factory.mktemp("ties")
    events = [(user, day) for user, times in enumerate(days) for day in times]
    titles = [f"Title {number}" for number in range(len(events))]
    items = "".join(f"{number},{title}\n" for number, title in enumerate(titles))
    rows = "".join(f"u{user},{number},{day * 86_400}\n" for number, (user, day) in enumerate(events))
    (folder / "items.csv").write_text(f"item_id,title\n{items}")
    (folder / "interactions.csv").write_text(f"user_id,item_id,timestamp\n{rows}")
    prepare(folder, folder / "dataset", PrepareOptions(), lambda _: None)
    dataset = Dataset(folder / "dataset")

    names = {tokens: item for item, tokens in enumerate(encoder.encode_titles(dataset.catalogue.titles))}
    trained = Counter(
        names[window.tokens[begin:end]]
        for window in UserPacker(encoder, dataset.catalogue.titles).training(dataset)
        for begin, end in zip(window.target_from, window.target_to, strict=True)
    )
    by_split = Counter[str | None]()
    for user in dataset.users:
        for item, split in zip(user.items, user.splits, strict=True):
            by_split[split] += trained[item]
            assert trained[item] == (split == "train") or split is None
    assert by_split["train"] == len(dataset.rows("train"))
    assert by_split["valid"] == by_split["test"] == 0


def test_augmented_histories_are_gappy_ones_of_the_same_users(
    encoder: PromptEncoder, tmp_path: Path
) -> None:
    dataset = Dataset(write_dataset(tmp_path))
    packer = UserPacker(encoder, TITLES)
    asked = Augmentation(copies=3, dropout=0.3)
    windows = packer.augmented(dataset, asked, seed=0)
    assert windows == packer.augmented(dataset, asked, seed=0) != packer.augmented(dataset, asked, seed=1)

    def in_order(items: list[int], whole: tuple[int, ...]) -> bool:
        rest = iter(whole)
        return all(item in rest for item in items)

    users = [tuple(user.training_items) for user in dataset.users]
    kept = 0
    for window in windows:
        items, places = read(window, encoder)
        kept += len(places)
        assert any(in_order(items, user) for user in users)
    share = kept / (3 * sum(len(user) for user in users if user))
    assert share == pytest.approx(0.7, abs=0.05)
