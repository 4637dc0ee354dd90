"""Kaggle's credentials: found, so that text is redacted and files that hold them are refused."""

import contextlib
import json
import mmap
import os
import re
from collections.abc import Iterable
from pathlib import Path

from comp.errors import Refused

NAMES = ("kaggle.json", "access_token", "access_token.txt", "credentials.json", ".env")
KEYS = (r"KGAT_[0-9A-Za-z]{16,}", r"\"key\"\s*:\s*\"[0-9a-f]{32}\"")  # a token; what kaggle.json holds


def _folders() -> list[Path]:
    """Where Kaggle's client looks for its files."""
    home = Path(os.path.expanduser("~"))  # which stays "~" for a user without one, as in the client
    config = Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config") / "kaggle"
    return [Path(os.environ.get("KAGGLE_CONFIG_DIR") or home / ".kaggle"), home / ".kaggle", config]


def find_credentials() -> set[str]:
    """Every secret that Kaggle's client might log in with here."""
    token = os.environ.get("KAGGLE_API_TOKEN", "")  # a token, or the file that holds it
    secrets = {os.environ.get("KAGGLE_KEY", ""), "" if os.path.exists(token) else token}
    for path in (Path(token), *(folder / name for folder in _folders() for name in NAMES)):
        with contextlib.suppress(OSError, ValueError):
            text = path.read_text(encoding="utf-8-sig").strip()
            secrets |= {*re.findall(r'"(?:key|access_token|refresh_token)"\s*:\s*"(.+?)"', text)} or {text}
    return {secret for secret in secrets if len(secret) >= 8}


def explain_refusal() -> str:
    """Why Kaggle, or its client, does not take what there is to log in with."""
    others = [folder / name for folder in _folders() for name in NAMES[1:4]]
    if not (any(map(os.environ.get, ("KAGGLE_API_TOKEN", "KAGGLE_KEY"))) or any(path.exists() for path in others)):
        for path in filter(Path.exists, (folder / "kaggle.json" for folder in _folders())):
            with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
                held = json.loads(path.read_bytes().decode())
                if held["username"] and held["key"]:
                    continue
            return f"{path}: cannot be read as JSON with a username and a key; download it again, or"
    if find_credentials():
        return "Kaggle does not accept your credentials (expired, or revoked?):"
    return "no Kaggle credentials:"


def redact(text: str) -> str:
    """`text` without anything that would let its reader in."""
    for pattern in (*map(re.escape, find_credentials()), *KEYS):
        text = re.sub(pattern, "***", text)
    text = re.sub(r"(?i)\b(bearer|basic) [\w+/=.-]{8,}", r"\1 ***", text)
    text = re.sub(r"(://)[^/@\s]+:[^/@\s]+@", r"\1***@", text)  # a proxy's
    return re.sub(r"((?:https?://|url: /)[^\s?'\"]*)\?[^\s'\")]+", r"\1?***", text)  # signed addresses


def refuse_credentials(paths: Iterable[Path]) -> None:
    """The last look at files before they are sent to Kaggle. Raises Refused, naming the file."""
    patterns = [key.encode() for key in KEYS] + [re.escape(secret.encode()) for secret in find_credentials()]
    for path in paths:
        if path.stat().st_size:
            with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                if any(re.search(pattern, data) for pattern in patterns):
                    raise Refused(f"{path}: holds a Kaggle key or token; take it out before it goes to Kaggle")
