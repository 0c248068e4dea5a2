"""What schemathesis cannot read from the interface: the keys, which checkpoints are there, what time it is.

Loaded by schemathesis itself (`SCHEMATHESIS_HOOKS`), in its own process.
"""

import os
import time
from typing import Any

import schemathesis
from schemathesis import AuthContext, Case, GenerationMode, HookContext

_ADMIN = "^/checkpoints/"
_HALF_A_DAY = 43_200
_CHECKPOINTS = ("tiny", "other")


class _Bearer:
    """A key out of the environment."""

    variable = ""

    def get(self, case: Case, context: AuthContext) -> str:
        return os.environ[self.variable]

    def set(self, case: Case, data: str, context: AuthContext) -> None:
        case.headers["Authorization"] = f"Bearer {data}"


@schemathesis.auth().apply_to(path_regex=_ADMIN)
class Token(_Bearer):
    """For those who exchange checkpoints."""

    variable = "SCHEMATHESIS_TOKEN"


@schemathesis.auth().skip_for(path_regex=_ADMIN)
class Key(_Bearer):
    """For everybody else."""

    variable = "SCHEMATHESIS_KEY"


@schemathesis.hook
def before_call(context: HookContext, case: Case, kwargs: dict[str, Any]) -> None:
    """Makes valid what only the schema calls valid; what is meant to be wrong stays so."""
    if case.meta is None or case.meta.generation.mode != GenerationMode.POSITIVE:
        return
    _bring_to_now(case.body)
    _make_visible(case.body)
    if case.path.endswith("/activate") and case.path_parameters.get("name") not in _CHECKPOINTS:
        # An unknown name gets 404, which is all right too; half of them shall exist.
        name = case.path_parameters["name"]
        case.path_parameters["name"] = (*_CHECKPOINTS, name, name)[len(name) % 4]


def _bring_to_now(body: Any) -> None:
    """Times of events: a schema cannot say "not more than a day ahead"."""
    if not isinstance(body, dict):
        return
    for event in (body, *(body.get("events") or ())):
        if isinstance(event, dict) and isinstance(event.get("timestamp"), int | float):
            event["timestamp"] = event["timestamp"] % (time.time() + _HALF_A_DAY)


def _make_visible(body: Any) -> None:
    """Titles: a schema cannot say "with a visible character", as Unicode has it."""
    for entry in body.get("history") or () if isinstance(body, dict) else ():
        if isinstance(entry, dict) and isinstance(entry.get("title"), str):
            entry["title"] = f"x{entry['title']}"[:512]
