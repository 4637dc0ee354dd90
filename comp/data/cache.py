"""The cache folder, and file names there that carry the state of the file they were made from."""

import functools
import hashlib
import json
import os
import re
import tempfile
from contextlib import suppress
from pathlib import Path


def cache_folder(folder: Path) -> Path:
    """A folder that can be written: `folder`/.cache, else one in the user's cache, else a temporary one."""
    folder = Path(folder).absolute()
    # Two input folders must not take turns in evicting each other's arrays.
    own = f"comp/{folder.name}-{digest([os.fspath(folder)])}"
    candidates = [folder / ".cache"] if folder.is_dir() else []  # a mistyped input folder is not to be created
    if home := os.environ.get("XDG_CACHE_HOME"):
        candidates.append(Path(home) / own)
    with suppress(RuntimeError):  # no home
        candidates.append(Path.home() / ".cache" / own)
    for candidate in candidates:
        with suppress(OSError):
            candidate.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=candidate):
                return candidate
    return Path(_temporary().name)


def state(path: Path) -> str:
    """A file's name, size and time of change: another string once the file changes."""
    status = path.stat()
    return f"{path.name}.{status.st_size:x}-{status.st_mtime_ns:x}"


def digest(values: list, data: bytes = b"") -> str:
    """Twelve hexadecimal digits of JSON-able values and bytes."""
    return hashlib.blake2b(json.dumps(values).encode() + data, digest_size=6).hexdigest()


def forget(cache: Path, path: Path) -> None:
    """Remove what was made from earlier states of a file, and what killed processes left half made."""
    name, current = re.escape(path.name), f"{state(path)}."
    made, unfinished = re.compile(rf"{name}\.[0-9a-f]+-[0-9a-f]+\."), re.compile(rf"\.(\d+)\.{name}\.")
    for file in cache.iterdir():
        old = made.match(file.name) and not file.name.startswith(current)
        process = unfinished.match(file.name)
        if old or (process and not _alive(int(process[1]))):
            with suppress(OSError):
                file.unlink()


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # it is someone else's
        pass
    return True


@functools.cache
def _temporary() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="comp-", ignore_cleanup_errors=True)  # goes with the process
