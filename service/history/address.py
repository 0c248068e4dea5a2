"""The configured server's URL, completed with what stands in files: password and trusted certificates."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote, urlencode

from service.errors import SettingsError
from service.settings import HistorySettings


def complete_url(settings: HistorySettings) -> str:
    """`redis_url` with the password and the certificates in it. It is a secret then: never log it.

    Raises:
        SettingsError: a file cannot be used, or the URL has no place for it.
    """
    scheme, separator, rest = settings.redis_url.partition("://")
    if settings.redis_password_file is not None:
        rest = _with_password(rest, _password(settings.redis_password_file))
    if settings.redis_ca_file is not None:
        file = settings.redis_ca_file
        if not scheme.startswith("rediss"):
            raise SettingsError(f"ESPALIER_REDIS_CA_FILE: {scheme}:// has no TLS; give a rediss:// URL")
        if not file.is_file():
            raise SettingsError(f"ESPALIER_REDIS_CA_FILE: {file}: no such file")
        rest += ("&" if "?" in rest else "?") + urlencode({"ssl_ca_certs": str(file)})
    return scheme + separator + rest


def _with_password(rest: str, password: str) -> str:
    end = min((at for at in (rest.find("/"), rest.find("?")) if at >= 0), default=len(rest))
    user, _, hosts = rest[:end].rpartition("@")
    if ":" in user:
        raise SettingsError(
            "ESPALIER_REDIS_PASSWORD_FILE: ESPALIER_REDIS_URL holds a password too; take it out of the URL"
        )
    return f"{user}:{quote(password, safe='')}@{hosts}{rest[end:]}"


def _password(file: Path) -> str:
    try:
        password = file.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"ESPALIER_REDIS_PASSWORD_FILE: {file}: cannot be read ({error})") from error
    if not password:
        raise SettingsError(f"ESPALIER_REDIS_PASSWORD_FILE: {file} is empty; write the password in it")
    return password
