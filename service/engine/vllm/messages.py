"""What the service and the child say to each other: one JSON object a line, over a socket pair.

Both sides validate what they read, so that a child of another release fails with a clear message.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

# One line must hold a request with 10,000 candidates, or all of vLLM's metrics.
MAX_LINE_BYTES = 16 << 20


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    def line(self) -> bytes:
        """The message as it travels."""
        return self.model_dump_json().encode() + b"\n"


class Rank(_Message):
    """Rank one prompt; `exclude` and `candidates` are item indices."""

    kind: Literal["rank"] = "rank"
    id: int
    prompt: tuple[int, ...]
    k: int
    exclude: tuple[int, ...]
    candidates: tuple[int, ...] | None


class Cancel(_Message):
    """Nobody waits for this ranking any more."""

    kind: Literal["cancel"] = "cancel"
    id: int


class AskMetrics(_Message):
    """Send vLLM's own metrics."""

    kind: Literal["ask_metrics"] = "ask_metrics"
    id: int


class Ready(_Message):
    """The model is loaded and has ranked; the bytes it holds."""

    kind: Literal["ready"] = "ready"
    weights: int
    kv_cache: int
    accelerator: int


class Beat(_Message):
    """The step loop turns."""

    kind: Literal["beat"] = "beat"


class Ranked(_Message):
    """The answer to `Rank`: item indices, best first, and their scores; seconds and counts of the work."""

    kind: Literal["ranked"] = "ranked"
    id: int
    items: tuple[int, ...]
    scores: tuple[float, ...]
    exact: bool
    prefill_s: float
    decode_s: float
    cached_tokens: int
    steps: int


class Refused(_Message):
    """The answer to a `Rank` that this model cannot do, and why."""

    kind: Literal["refused"] = "refused"
    id: int
    why: str


class OwnMetrics(_Message):
    """The answer to `AskMetrics`, in Prometheus' text format."""

    kind: Literal["own_metrics"] = "own_metrics"
    id: int
    text: str


class Dying(_Message):
    """The child's last words: whether memory was the reason, and the error."""

    kind: Literal["dying"] = "dying"
    reason: Literal["memory", "died"]
    detail: str


ToChild = Annotated[Rank | Cancel | AskMetrics, Field(discriminator="kind")]
FromChild = Annotated[Ready | Beat | Ranked | Refused | OwnMetrics | Dying, Field(discriminator="kind")]
TO_CHILD: TypeAdapter[ToChild] = TypeAdapter(ToChild)
FROM_CHILD: TypeAdapter[FromChild] = TypeAdapter(FromChild)
