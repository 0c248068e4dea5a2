"""The swap calls of a running service, for a shell; what is wrong is said in one line."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from http import HTTPStatus
from http.client import HTTPException
from pathlib import Path
from typing import Literal, TypeVar
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from pydantic import ValidationError

from recommender.errors import InputError, first_problem
from service.checkpoints.schemas import CheckpointsResponse, Operation
from service.errors import ServiceError, SettingsError
from service.schemas import Answer

AnswerType = TypeVar("AnswerType", bound=Answer)
_TIMEOUT_SECONDS = 60.0
_POLL_SECONDS = 0.3
_WRONG_USE = frozenset({HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND, 422})


class CheckpointClient:
    """Speaks to one service.

    Args:
        url: where it is, as `espalier serve` announces it.
        token_file: holds the admin token (the first line counts); None: send none.

    Raises:
        SettingsError: the URL is none, or the file holds no token.
    """

    def __init__(self, url: str, token_file: Path | None) -> None:
        if not url.startswith(("http://", "https://")):
            raise SettingsError(f"--url {url}: give http://HOST:PORT")
        self._url = url.rstrip("/")
        self._headers = {} if token_file is None else {"Authorization": f"Bearer {_token(token_file)}"}

    def list(self) -> CheckpointsResponse:
        """What can be served, and what is.

        Raises:
            InputError: the service refuses the call.
            ServiceError: the service cannot answer.
        """
        return self._call("GET", "/checkpoints", CheckpointsResponse)

    def exchange(self, path: str, say: Callable[[str], None]) -> Operation:
        """Starts a swap and follows it to its end.

        Args:
            path: `/checkpoints/NAME/activate` or `/checkpoints/rollback`.
            say: is told each step.

        Raises:
            InputError: the service refuses the call.
            ServiceError: the service cannot answer, or the swap failed.
        """
        operation = self._call("POST", path, Operation)
        while not operation.ended:
            say(operation.step)
            time.sleep(_POLL_SECONDS)
            operation = self._call("GET", f"/operations/{operation.operation_id}", Operation)
        if operation.step == "failed":
            raise ServiceError(f"{operation.checkpoint.name} does not serve: {operation.reason}")
        return operation

    def _call(self, method: Literal["GET", "POST"], path: str, kind: type[AnswerType]) -> AnswerType:
        request = Request(self._url + path, method=method, headers=self._headers)
        try:
            with urlopen(request, timeout=_TIMEOUT_SECONDS) as answer:
                return kind.model_validate_json(answer.read())
        except HTTPError as error:
            detail = _detail(error)
            wrong_use = error.code in _WRONG_USE
            raise (InputError if wrong_use else ServiceError)(f"{self._url}: {detail}") from error
        except (URLError, HTTPException, OSError) as error:
            reason = error.reason if isinstance(error, URLError) else error
            raise ServiceError(
                f"{self._url} does not answer ({reason}); is `espalier serve` up?"
            ) from error
        except ValidationError as error:
            raise ServiceError(
                f"{self._url} is no Espalier service of this release ({first_problem(error)})"
            ) from error


def _detail(error: HTTPError) -> str:
    """The problem document's own words, else the status."""
    try:
        return str(json.load(error)["detail"])
    except (ValueError, KeyError, TypeError):
        return f"HTTP {error.code}"


def _token(file: Path) -> str:
    try:
        lines = [line.strip() for line in file.read_text().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"ESPALIER_ADMIN_TOKEN_FILE: {file}: cannot be read ({error})") from error
    if not lines:
        raise SettingsError(f"ESPALIER_ADMIN_TOKEN_FILE: {file} holds no token; write it in one line")
    return lines[0]
