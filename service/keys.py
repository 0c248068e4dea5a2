"""Bearer keys from a file: several are valid at once, so that they can be rotated.

The admin token is a key of a second file. Without it admin calls are refused, not open.
"""

from __future__ import annotations

import hmac
from pathlib import Path

from service.errors import MissingKeyError, SettingsError, WrongKeyError


class Keys:
    """The configured keys; none: no key is asked for."""

    def __init__(self, keys: tuple[str, ...] = ()) -> None:
        self._keys = tuple(key.encode() for key in keys)

    @classmethod
    def from_file(cls, file: Path | None, setting: str = "ESPALIER_API_KEYS_FILE") -> Keys:
        """Reads one key a line; blank lines do not count. `setting` named the file.

        Raises:
            SettingsError: the file cannot be read, or holds no key.
        """
        if file is None:
            return cls()
        try:
            keys = tuple(line.strip() for line in file.read_text().splitlines() if line.strip())
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"{setting}: {file}: cannot be read ({error})") from error
        if not keys:
            raise SettingsError(f"{setting}: {file} holds no key; write one a line")
        return cls(keys)

    def __bool__(self) -> bool:
        return bool(self._keys)

    def or_else(self, others: Keys) -> Keys:
        """Keys that take `others` too; when none of these is configured, no key is asked for."""
        joined = Keys()
        joined._keys = (*self._keys, *others._keys) if self._keys else ()
        return joined

    def check(self, authorization: bytes | None) -> None:
        """Compares an `Authorization` header with every key, in a time that tells nothing.

        Raises:
            MissingKeyError: there is no bearer key in it.
            WrongKeyError: it is none of ours.
        """
        if not self._keys:
            return
        scheme, _, given = (authorization or b"").partition(b" ")
        if scheme.lower() != b"bearer" or not given.strip():
            raise MissingKeyError("send a key: `Authorization: Bearer KEY`")
        if not sum(hmac.compare_digest(given.strip(), key) for key in self._keys):
            raise WrongKeyError("the key is not among those of this service")
