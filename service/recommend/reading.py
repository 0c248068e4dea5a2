"""What a history means to one checkpoint: which entries it knows, which the prompt holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from recommender.prompt import PromptTemplate
from service.engine.protocol import LoadedModel
from service.recommend.schemas import HistoryEntry, ItemEntry, TitleEntry


@dataclass(frozen=True)
class Reading:
    """A history as a checkpoint reads it.

    Attributes:
        seen: indices of the catalogue's items in the whole history.
        unknown: ids that the catalogue does not know, in order, each once.
        window: what the prompt holds, oldest first: item indices and free titles.
    """

    seen: frozenset[int]
    unknown: tuple[str, ...]
    window: tuple[int | str, ...]


def read_history(model: LoadedModel, entries: Sequence[HistoryEntry], count: int) -> Reading:
    """Looks the entries up.

    Args:
        model: whose catalogue counts.
        entries: oldest first.
        count: how many there ever were; more than `entries` when a store has cut the oldest off.
    """
    known: list[int | str | None] = []
    unknown: dict[str, None] = {}
    for entry in entries:
        found = _look_up(model, entry)
        known.append(found)
        if found is None and not isinstance(entry, TitleEntry):
            unknown[entry.item_id if isinstance(entry, ItemEntry) else entry] = None
    start = window_start(model.artifact.manifest.prompt, len(entries), count)
    return Reading(
        seen=frozenset(found for found in known if isinstance(found, int)),
        unknown=tuple(unknown),
        window=tuple(found for found in known[start:] if found is not None),
    )


def window_start(template: PromptTemplate, kept: int, count: int) -> int:
    """Where among the `kept` newest of `count` entries the prompt's window begins."""
    return max(0, template.window_start(count) - (count - kept))


def build_prompt(model: LoadedModel, window: Sequence[int | str]) -> tuple[int, ...] | None:
    """The prompt, without the oldest titles that the model's context has no room for.

    Returns:
        Token ids; None when not even the newest title fits, or there is none.
    """
    for start in range(len(window)):
        prompt = model.titles.prompt(window[start:])
        if len(prompt) <= model.prompt_limit:
            return prompt
    return None


def _look_up(model: LoadedModel, entry: HistoryEntry) -> int | str | None:
    """The item's index; a title that no item bears stays a title; None for an unknown id."""
    if isinstance(entry, TitleEntry):
        return model.item_of_title.get(entry.title, entry.title)
    item_id = entry.item_id if isinstance(entry, ItemEntry) else entry
    return model.titles.catalogue.index_of(item_id)
