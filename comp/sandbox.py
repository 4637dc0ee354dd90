"""A packed script run here as Kaggle would run it.

    result = rehearse(script(pack(entry, arguments)), {"competitions/mars": Path("input")})

A fresh process gets /kaggle/src/script.py, an empty /kaggle/working, a read-only /kaggle/input, a home
of its own, no network and only the packages of Kaggle's image. Two forms:

namespaces  Linux namespaces: a network with nothing behind it, and a root that holds the system's
            folders and Python read-only; repository, home folder and all else are not there.
guard       for systems that allow no namespaces, and weaker: Python's own sockets refuse to connect,
            inputs are links, COMP_KAGGLE_INPUT stands for /kaggle/input, other files stay readable.
"""

import codecs
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import IO, Literal

from comp import namespaces
from comp.bundle import LIMIT
from comp.errors import Refused

# What Kaggle's image holds of what a kernel may import, as observed; what these require is there, too.
IMAGE = (
    "albumentations", "matplotlib", "numba", "numpy", "opencv-python-headless", "pandas", "polars", "pycocotools",
    "pydantic", "safetensors", "scikit-learn", "scipy", "tensorboard", "timm", "torch", "torchvision", "tqdm",
)  # fmt: skip
MACHINE = ("CUDA_VISIBLE_DEVICES", "LD_LIBRARY_PATH", "OMP_NUM_THREADS")  # describe hardware, not the user

GUARD = """
import errno, sys

def cut(event, arguments):
    sends = event in ("socket.connect", "socket.sendto", "socket.sendmsg") and isinstance(arguments[1], tuple)
    if sends or event in ("socket.getaddrinfo", "socket.gethostbyname"):  # the others are sockets of this machine
        raise OSError(errno.ENETUNREACH, "Network is unreachable")

sys.addaudithook(cut)
"""


@dataclass(frozen=True)
class Result:
    """How a rehearsal ended."""

    folder: Path  # what /kaggle/working held at the end; the caller moves or removes it
    status: int  # the script's exit status; 137 where a limit stopped it
    seconds: float
    log: str


def rehearse(
    script: str,
    inputs: Mapping[str, Path],
    *,
    form: Literal["namespaces", "guard"] = "namespaces",
    time_limit: float = 12 * 3600,
    working_limit: float = 20e9,
    echo: bool = True,
) -> Result:
    """Run a script (its text) as a Kaggle kernel without internet.

    `inputs` maps names below /kaggle/input ("mars", "competitions/mars/mars.npz") to files or
    folders. `time_limit` is in seconds, `working_limit` in bytes. Output is shown as it comes (`echo`)
    and kept in the result's log. Raises Refused for a script that Kaggle would not take, and where the
    system cannot do it.
    """
    source = script.encode()
    if len(source) >= LIMIT:
        raise Refused(f"the script has {len(source):,} bytes; Kaggle takes fewer than {LIMIT:,}")
    unshare, reason = namespaces.command()
    if form == "namespaces" and reason:
        raise Refused(
            f"sandbox: no namespaces on this system ({reason}), so the network cannot be cut; "
            'the weaker form "guard" stops only Python\'s own sockets'
        )
    log: list[str] = []

    def say(text: str) -> None:
        log.append(text)
        if echo:
            with contextlib.suppress(BrokenPipeError):  # nobody reads any more; the run goes on
                print(text, end="", flush=True)

    start = time.monotonic()
    kept = Path(tempfile.mkdtemp(prefix="comp-working-"))
    with tempfile.TemporaryDirectory(prefix="comp-sandbox-", ignore_cleanup_errors=True) as room:
        real = _files(inputs)
        if form == "namespaces":
            say("sandbox: namespaces; no network, read-only inputs, no files beside the system's and Python's\n")
            command, environment = _apart(unshare, Path(room), source, kept, real)
        else:
            say(f"sandbox: guard ({reason or 'as asked'}); Python's own sockets are stopped, inputs are links\n")
            command, environment = _guarded(Path(room), source, real)
        try:
            status, stopped = _follow(command, environment, kept, (time_limit, working_limit), say)
        except BaseException:
            shutil.rmtree(kept, ignore_errors=True)
            raise
    seconds = time.monotonic() - start
    if stopped:
        say(f"sandbox: stopped at {stopped}\n")
    say(f"sandbox: exit status {status} after {seconds:.1f} s; {_inventory(kept)}\n")
    return Result(kept, status, seconds, "".join(log))


def _files(inputs: Mapping[str, Path]) -> dict[str, str]:
    """Every input file by its real path, whatever links lead to it."""
    files = {}
    for name, path in inputs.items():
        for file in [path] if path.is_file() else filter(Path.is_file, path.rglob("*")):
            files[str(PurePosixPath(name) / file.relative_to(path))] = str(file.resolve())
    return files


def _image(folder: Path) -> list[str]:
    """Make a virtual environment of links to those installed packages that Kaggle's image has too.

    Returns the real folders that the links lead to.
    """
    python = Path(sys.executable).resolve()
    packages = folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    packages.mkdir(parents=True)
    (folder / "bin").mkdir()
    (folder / "bin/python").symlink_to(python)
    (folder / "pyvenv.cfg").write_text(f"home = {python.parent}\ninclude-system-site-packages = false\n")
    places = {Path(sys.base_prefix), python.parents[1]}
    wanted, seen = list(IMAGE), set()
    while wanted:
        name = wanted.pop()
        if name in seen:
            continue
        seen.add(name)
        with contextlib.suppress(metadata.PackageNotFoundError):
            distribution = metadata.distribution(name)
            needs = [need for need in distribution.requires or () if "extra ==" not in need]
            wanted += [re.match(r"[\w.-]+", need)[0] for need in needs]
            place = Path(distribution.locate_file("")).resolve()
            places.add(place)
            for entry in {file.parts[0] for file in distribution.files or ()} - {"..", "__pycache__"}:
                if not os.path.lexists(packages / entry):
                    (packages / entry).symlink_to(place / entry)
    return [str(place) for place in places]


def _environment(home: str) -> dict[str, str]:
    """What a kernel finds in its environment: nothing of the user's."""
    values = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8", "HOME": home}
    values |= {"KAGGLE_KERNEL_RUN_TYPE": "Batch", "KAGGLE_URL_BASE": "https://www.kaggle.com"}
    return values | {name: os.environ[name] for name in MACHINE if name in os.environ}


def _apart(
    unshare: list[str], room: Path, source: bytes, working: Path, inputs: dict[str, str]
) -> tuple[list[str], dict[str, str]]:
    """Command and environment of the form "namespaces": `namespaces.enter` in a process of its own."""
    for name in ("src", "tmp", "root"):
        (room / name).mkdir()
    (room / "src/script.py").write_bytes(source)
    plan = {
        "room": str(room),
        "working": str(working),
        "inputs": inputs,
        "visible": _image(room / "image"),
        "environment": _environment("/root"),
    }
    environment = _environment("/root") | {"PYTHONPATH": str(Path(__file__).parents[1])}
    return [*unshare, sys.executable, "-m", "comp.namespaces", json.dumps(plan)], environment


def _guarded(room: Path, source: bytes, inputs: dict[str, str]) -> tuple[list[str], dict[str, str]]:
    """Command and environment of the form "guard"."""
    for name in ("src", "input", "home"):
        (room / name).mkdir()
    (room / "src/script.py").write_bytes(source)
    for name, path in inputs.items():
        link = room / "input" / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path)
    _image(room / "image")
    packages = next((room / "image/lib").glob("python*/site-packages"))
    (packages / "network_guard.py").write_text(GUARD)
    (packages / "network_guard.pth").write_text("import network_guard\n")
    environment = _environment(str(room / "home")) | {"COMP_KAGGLE_INPUT": str(room / "input")}
    return [str(room / "image/bin/python"), "-u", str(room / "src/script.py")], environment


def _follow(
    command: list[str],
    environment: dict[str, str],
    working: Path,
    limits: tuple[float, float],
    say: Callable[[str], None],
) -> tuple[int, str]:
    """Run a command to its end or to a limit; (exit status, the limit that stopped it or "")."""
    process = subprocess.Popen(
        command,
        env=environment,
        cwd=working,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    reader = threading.Thread(target=_pass_on, args=(process.stdout, say), daemon=True)
    reader.start()
    end, stopped = time.monotonic() + limits[0], ""
    try:
        while not stopped:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=1)
            if (size := sum(_sizes(working).values())) > limits[1]:
                stopped = f"{_bytes(size)} in the working folder, which may hold {_bytes(limits[1])}"
            elif process.returncode is not None:
                break
            elif time.monotonic() > end:
                stopped = f"the time limit of {limits[0]:,.0f} s"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        status = process.wait()
        reader.join(timeout=5)
    if stopped or status < 0:  # as a shell reports what a signal ended
        status = 128 + (signal.SIGKILL if stopped else -status)
    return status, stopped


def _pass_on(pipe: IO[bytes], say: Callable[[str], None]) -> None:
    decode = codecs.getincrementaldecoder("utf-8")("replace").decode
    while chunk := os.read(pipe.fileno(), 1 << 16):
        say(decode(chunk))


def _sizes(folder: Path) -> dict[str, int]:
    """Bytes of each file, by its path below the folder."""
    sizes = {}
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):  # files come and go while this looks
                sizes[os.path.relpath(os.path.join(place, name), folder)] = os.lstat(os.path.join(place, name)).st_size
    return dict(sorted(sizes.items()))


def _inventory(folder: Path) -> str:
    sizes = _sizes(folder)
    total = f"Kaggle would keep {len(sizes)} files, {_bytes(sum(sizes.values()))}"
    return "\n".join([total] + [f"  {_bytes(size):>9}  {name}" for name, size in sizes.items()])


def _bytes(count: float) -> str:
    for unit in ("B", "KB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"
