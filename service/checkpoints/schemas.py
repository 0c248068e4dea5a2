"""What is said about checkpoints: over HTTP, in Redis, and in the file that outlives a restart."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AwareDatetime, Field

from recommender.artifact import Lineage, ParameterCounts, Quality
from service.schemas import Answer

MAX_PREVIOUS = 10
CHECKPOINT_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"  # as the manifest's
Step = Literal[
    "verifying", "loading", "warming", "checking", "switching", "draining", "done", "partial", "failed"
]
ENDS: frozenset[Step] = frozenset({"done", "partial", "failed"})


class CheckpointRef(Answer):
    """A checkpoint: its name in the folder, and its manifest's SHA-256."""

    name: str
    digest: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class FleetRecord(Answer):
    """Which checkpoint all replicas shall serve. `generation` only grows; `previous` is newest first."""

    generation: Annotated[int, Field(ge=1)]
    wanted: CheckpointRef
    previous: Annotated[tuple[CheckpointRef, ...], Field(max_length=MAX_PREVIOUS)] = ()

    def successor(self, wanted: CheckpointRef) -> FleetRecord:
        """The record that wants this checkpoint next."""
        previous = (self.wanted, *self.previous)[:MAX_PREVIOUS]
        return FleetRecord(generation=self.generation + 1, wanted=wanted, previous=previous)

    def earlier(self) -> CheckpointRef | None:
        """What a rollback goes to: the newest earlier checkpoint with another digest."""
        return next((ref for ref in self.previous if ref.digest != self.wanted.digest), None)


class Straggler(Answer):
    """A replica that does not serve what is wanted, and why."""

    replica: str
    reason: str


class Operation(Answer):
    """A swap and how far it is. It has ended at the steps done, partial and failed."""

    operation_id: str
    action: Literal["activate", "rollback"]
    checkpoint: CheckpointRef
    step: Step
    generation: Annotated[
        int | None, Field(description="Of the fleet record that this operation wrote, or found in place.")
    ] = None
    reason: Annotated[str | None, Field(description="Why it failed.")] = None
    stragglers: tuple[Straggler, ...] = ()

    @property
    def ended(self) -> bool:
        return self.step in ENDS


class Replica(Answer):
    """What one replica last told about itself."""

    replica: str
    generation: Annotated[int, Field(description="The newest record whose checkpoint it serves; 0: none.")]
    serving: CheckpointRef | None
    failed_generation: Annotated[int, Field(description="The newest record that it could not serve.")] = 0
    reason: Annotated[str | None, Field(description="Why not.")] = None
    seen: Annotated[float, Field(description="When it told so, in Unix seconds.")]


State = Literal["serving", "wanted", "available"]


class Checkpoint(Answer):
    """A whole artifact of the folder."""

    name: str
    digest: str
    model: Annotated[str, Field(description="`name@digest12`, as in answers.")]
    state: Annotated[
        State,
        Field(description="Of this replica: it serves it, it shall and does not yet, or it could."),
    ]
    created: AwareDatetime
    size_bytes: int
    parameters: ParameterCounts
    lineage: Lineage
    quality: Quality | None


class CheckpointsResponse(Answer):
    """What can be served, what shall be, and what each replica serves."""

    generation: Annotated[int, Field(description="For `If-Match`; 0 before the first.")]
    wanted: CheckpointRef | None
    can_roll_back_to: CheckpointRef | None
    operation_id: Annotated[str | None, Field(description="The swap that this replica leads now.")]
    checkpoints: tuple[Checkpoint, ...]
    replicas: Annotated[tuple[Replica, ...], Field(description="This one alone while Redis is away.")]
