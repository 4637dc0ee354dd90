"""Files that appear whole or not at all."""

import fcntl
import glob
import hashlib
import json
import os
import runpy
import shutil
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors

from comp.errors import Refused

LOADED: dict[tuple[Path, int], dict[str, Callable]] = {}  # functions of files of the user's
KAGGLE_INPUT = Path(os.environ.get("COMP_KAGGLE_INPUT", "/kaggle/input"))


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield a path beside `path` to write to; on success it becomes `path`, else it is removed.

    Its name holds the process id, so that no two processes share it, and ends in the suffix, which writers look at."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        yield beside
        with open(beside, "rb+") as written:
            os.fsync(written.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text, whole or not at all."""
    with atomic_write(path) as beside:
        beside.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Write JSON for people: indented, keys in their order, whole or not at all."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_tensors(path: str | Path, tensors: dict[str, Any], metadata: dict[str, str]) -> None:
    """Write tensors as safetensors, whole or not at all. Raises Refused where the disk does not take them."""
    from safetensors.torch import save_file  # takes torch with it, which not every script needs

    with atomic_write(path) as beside:
        try:
            save_file(tensors, beside, metadata=metadata)
        except safetensors.SafetensorError as error:  # which hides the system's own error, such as a full disk
            raise Refused(f"{path}: could not be written: {error}") from None


def read_tensors(path: str | Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Tensors and metadata of a safetensors file. Raises Refused for a missing or broken one."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}
    except FileNotFoundError:
        raise Refused(f"{path}: no such file") from None
    except (OSError, safetensors.SafetensorError) as error:
        raise Refused(f"{path}: not a readable safetensors file: {error}; copy it again, or delete it") from None


def free_bytes(path: Path) -> int:
    """What is free on the disk where `path` is, or will be."""
    return shutil.disk_usage(next(place for place in (path, *path.absolute().parents) if place.exists())).free


def sha256(path: str | Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Hold a folder for this process alone, without what killed ones left half written; Refused while one holds it."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w", encoding="utf-8") as file:
        try:
            # The process's own: a worker that outlives it, and inherited the file, does not hold it.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise Refused(f"{folder}: another process is at work on it; wait for it, or name another --run") from None
        for left in folder.glob(".[0-9]*.*"):
            left.unlink(missing_ok=True)
        yield


def load_functions(file: str) -> dict[str, Callable]:
    """The functions of a Python file of the user's, by name. Raises Refused where it cannot be run.

    What they raise becomes Refused, too, and names the file's line. A file that has changed is run again."""
    path = Path(file)
    if not path.exists():
        raise Refused(f"{path}: no such file or folder")
    if (state := (path.absolute(), path.stat().st_mtime_ns)) not in LOADED:
        with blame(path):
            LOADED[state] = {name: blame(path)(own) for name, own in runpy.run_path(file).items() if callable(own)}
    return LOADED[state]


def load_function(file: str, *calls: str) -> Callable:
    """The first function of a file that is there, of those which are called as "name(arguments)". Raises Refused."""
    functions = load_functions(file)
    for call in calls:
        if own := functions.get(call.partition("(")[0]):
            return own
    raise Refused(f"{file}: has no function {' or '.join(calls)}")


@contextmanager
def blame(path: Path, after: Callable[[], str] = str) -> Iterator[None]:
    """Turn whatever code of the user's raises into one line, which names the file's line, and where it was."""
    try:
        yield
    except (Exception, SystemExit) as error:
        if isinstance(error, Refused) or getattr(error, "code", 0) in (129, 143):  # SIGHUP, SIGTERM
            raise
        own = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) == path]
        line = own[-1].lineno if own else getattr(error, "lineno", None)
        where = f"line {line}{after()}: " * (line is not None)
        raise Refused(f"{path}: {where}{type(error).__name__}: {error}") from None


def find_below_input(name: str) -> Iterator[Path]:
    """Files of this name, in which * may stand for anything, below /kaggle/input, the least deep first."""
    found = KAGGLE_INPUT.rglob(glob.escape(name).replace("[*]", "*"))
    yield from sorted(filter(Path.is_file, found), key=lambda path: (len(path.parts), path))
