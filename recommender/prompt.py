"""The append-only prompt: `instruction · title₁ ⏎ title₂ ⏎ … titleₙ ⏎`, and the next title follows.

Nothing comes after the history, so a new event only appends: a packed user is one sequence in which
every title is a target, and a cached prefix stays valid while the window does not move. An item's
tokens are made once and concatenated, so training and serving see the same ids by construction.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator
from tokenizers import Tokenizer

from recommender.errors import PromptError

SEPARATOR = "\n"


class PromptTemplate(BaseModel):
    """What stands before the history, and how long the history may grow.

    Attributes:
        instruction: text before the first title.
        max_items: the prompt holds at most this many titles …
        keep_items: … and is cut back to the newest this many when it would exceed that.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    instruction: str = "A person enjoyed these, in this order:\n"
    max_items: Annotated[int, Field(ge=1)] = 20
    keep_items: Annotated[int, Field(ge=1)] = 10

    @model_validator(mode="after")
    def _keeps_fewer_than_it_holds(self) -> PromptTemplate:
        if self.keep_items > self.max_items:
            raise ValueError("keep_items must not exceed max_items")
        return self

    def window_start(self, events: int) -> int:
        """The first event in the prompt of a user who has had `events` of them.

        It moves once in `max_items - keep_items` events, so that in between the tokens before the
        newest event, and their cached keys and values, stay what they were. With the default 20
        and 10 it is `10 · max(0, ceil((n - 20) / 10))`.
        """
        stride = max(1, self.max_items - self.keep_items)
        excess = max(0, events - self.max_items)
        return stride * -(-excess // stride)


class PromptEncoder:
    """Turns titles into token ids and histories into prompts.

    Raises:
        PromptError: the separator is not a token of its own, so titles could not be told apart; or
            the instruction has no tokens, so a cold prompt would be empty.
    """

    def __init__(self, template: PromptTemplate, tokenizer: Tokenizer) -> None:
        # A checkpoint's tokenizer may carry settings that would pad or cut titles in a batch.
        tokenizer.no_padding()
        tokenizer.no_truncation()
        separator = tokenizer.encode(SEPARATOR, add_special_tokens=False).ids
        if len(separator) != 1:
            raise PromptError(
                f"the tokenizer splits a line feed into {len(separator)} tokens; the prompt needs "
                "it to be one, so choose a tokenizer that has it in its alphabet"
            )
        if tokenizer.decode(separator, skip_special_tokens=False) != SEPARATOR:
            raise PromptError(
                f"the tokenizer reads a line feed as {tokenizer.id_to_token(separator[0])!r}, which other "
                "text may become too; choose a tokenizer that has it in its alphabet"
            )
        self.template = template
        self.separator_id: int = separator[0]
        self.instruction_ids: tuple[int, ...] = tuple(
            tokenizer.encode(template.instruction, add_special_tokens=False).ids
        )
        if not self.instruction_ids:
            raise PromptError(
                f"the instruction {template.instruction!r} has no tokens; a cold prompt needs one"
            )
        self._tokenizer = tokenizer

    def encode_title(self, title: str) -> tuple[int, ...]:
        """The title's tokens, the separator last. The title must be normalised."""
        ids = self._tokenizer.encode(title, add_special_tokens=False).ids
        return (*ids, self.separator_id)

    def encode_titles(self, titles: Sequence[str]) -> list[tuple[int, ...]]:
        """`encode_title` for many titles at once."""
        encodings = self._tokenizer.encode_batch_fast(list(titles), add_special_tokens=False)
        return [(*encoding.ids, self.separator_id) for encoding in encodings]

    def encode_prompt(self, titles: Iterable[Sequence[int]]) -> list[int]:
        """The prompt for a history of encoded titles, oldest first, already cut to its window."""
        prompt = list(self.instruction_ids)
        for title in titles:
            prompt.extend(title)
        return prompt
