from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from tokenizers import Tokenizer, models, pre_tokenizers

from recommender.catalogue import normalise_title
from recommender.errors import PromptError
from recommender.prompt import PromptEncoder, PromptTemplate

WINDOWS = [(20, 10), (1, 1), (2, 1), (5, 5), (7, 3), (20, 1), (12, 11)]


@pytest.mark.parametrize("events", range(200))
def test_the_default_window_is_the_closed_form(events: int) -> None:
    ceiling = -((20 - events) // 10)
    assert PromptTemplate().window_start(events) == 10 * max(0, ceiling)


@pytest.mark.parametrize(("most", "keep"), WINDOWS)
def test_the_window_is_what_cutting_back_event_by_event_gives(most: int, keep: int) -> None:
    template = PromptTemplate(max_items=most, keep_items=keep)
    held: deque[int] = deque()
    for event in range(100):
        if len(held) == most:  # it would exceed the most: the newest `keep` stay, and the event joins
            while len(held) > min(keep, most - 1):
                held.popleft()
        held.append(event)
        assert template.window_start(event + 1) == held[0]


@pytest.mark.parametrize(("most", "keep"), WINDOWS)
def test_the_window_only_moves_forward_and_never_overflows(most: int, keep: int) -> None:
    template = PromptTemplate(max_items=most, keep_items=keep)
    starts = [template.window_start(events) for events in range(150)]
    assert starts == sorted(starts)
    for events, start in enumerate(starts):
        assert min(events, keep) <= events - start <= most
    assert starts[0] == 0


@pytest.mark.parametrize(("most", "keep"), WINDOWS)
def test_between_moves_each_prompt_begins_with_the_one_before(bpe: Tokenizer, most: int, keep: int) -> None:
    windowed = PromptEncoder(PromptTemplate(max_items=most, keep_items=keep), bpe)
    titles = [windowed.encode_title(f"title {event}") for event in range(60)]
    moves = 0
    before: list[int] = []
    for events in range(61):
        start = windowed.template.window_start(events)
        prompt = windowed.encode_prompt(titles[start:events])
        if events and start == windowed.template.window_start(events - 1):
            assert prompt[: len(before)] == before
            assert tuple(prompt[len(before) :]) == titles[events - 1]
        else:
            moves += 1
        before = prompt
    assert moves - 1 == -(-(60 - most) // max(1, most - keep))


def test_keeping_more_than_it_holds_is_refused() -> None:
    with pytest.raises(ValidationError, match="keep_items must not exceed max_items"):
        PromptTemplate(max_items=5, keep_items=6)


def test_a_title_ends_with_the_separator_and_holds_no_other(encoder: PromptEncoder, bpe: Tokenizer) -> None:
    ids = encoder.encode_title("Half-Life 2")
    assert ids[-1] == encoder.separator_id
    assert encoder.separator_id not in ids[:-1]
    assert bpe.decode(list(ids)) == "Half-Life 2\n"


@settings(deadline=None, derandomize=True)
@given(text=st.text())
def test_no_normalised_title_holds_the_separator(encoder: PromptEncoder, text: str) -> None:
    assert encoder.separator_id not in encoder.encode_title(normalise_title(text))[:-1]


def test_many_titles_are_encoded_as_one_by_one(encoder: PromptEncoder) -> None:
    titles = ["Portal", "Half-Life 2: Episode One", "Ωμέγα", "x"]
    assert encoder.encode_titles(titles) == [encoder.encode_title(title) for title in titles]
    assert encoder.encode_titles([]) == []


def test_the_prompt_reads_as_the_template_says(encoder: PromptEncoder, bpe: Tokenizer) -> None:
    prompt = encoder.encode_prompt([encoder.encode_title("Portal"), encoder.encode_title("Portal 2")])
    assert bpe.decode(prompt) == f"{encoder.template.instruction}Portal\nPortal 2\n"


def test_padding_and_truncation_in_a_checkpoints_tokenizer_do_not_reach_the_titles(
    encoder: PromptEncoder, bpe: Tokenizer
) -> None:
    padded = Tokenizer.from_str(bpe.to_str())
    padded.enable_padding(length=64)
    padded.enable_truncation(3)
    titles = ["Portal", "Half-Life 2: Episode One"]
    assert PromptEncoder(PromptTemplate(), padded).encode_titles(titles) == encoder.encode_titles(titles)


def test_a_tokenizer_that_drops_the_line_feed_is_refused() -> None:
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "?": 1}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(PromptError, match="a line feed into 0 tokens"):
        PromptEncoder(PromptTemplate(), tokenizer)


def test_a_tokenizer_that_splits_the_line_feed_is_refused() -> None:
    tokenizer = Tokenizer(models.BPE({"▁": 0, "\n": 1, "a": 2}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(split=False)
    with pytest.raises(PromptError, match="a line feed into 2 tokens"):
        PromptEncoder(PromptTemplate(), tokenizer)


def test_a_tokenizer_to_which_the_line_feed_is_unknown_is_refused() -> None:
    # One token, but a title's unknown word would be the same one.
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "?": 1}, unk_token="?"))
    with pytest.raises(PromptError, match=r"reads a line feed as '\?'"):
        PromptEncoder(PromptTemplate(), tokenizer)


def test_an_instruction_without_tokens_is_refused(bpe: Tokenizer) -> None:
    with pytest.raises(PromptError, match="has no tokens"):
        PromptEncoder(PromptTemplate(instruction=""), bpe)
