"""A folder for what can be made again, and names in it that tell which state of a file it was made from."""

import atexit
import functools
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path


def cache_folder(folder: Path) -> Path:
    """A folder that can be written: `folder`/.cache, else one in the user's cache, else a temporary one."""
    for candidate in _candidates(Path(folder).absolute()):
        with suppress(OSError):
            candidate.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=candidate):
                return candidate
    return _temporary_folder()


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


def _candidates(folder: Path) -> Iterator[Path]:
    if folder.is_dir():  # a mistyped input folder is not to be created
        yield folder / ".cache"
    # Two input folders must not take turns in evicting each other's arrays.
    own = f"{folder.name}-{digest([os.fspath(folder)])}"
    if home := os.environ.get("XDG_CACHE_HOME"):
        yield Path(home) / "comp" / own
    with suppress(RuntimeError):  # no home
        yield Path.home() / ".cache" / "comp" / own


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # it is someone else's
        return True
    return True


@functools.cache
def _temporary_folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="comp-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
