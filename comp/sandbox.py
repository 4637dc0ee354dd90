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
import shutil
import signal
import site
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

# Installed beside comp, and not on Kaggle's image or of no use there.
HIDDEN = ("comp", "segmentation-models-pytorch", "kaggle", "kagglesdk", "pytest", "hypothesis", "ruff")
MACHINE = ("CUDA_VISIBLE_DEVICES", "LD_LIBRARY_PATH", "OMP_NUM_THREADS")  # describe hardware, not the user

GUARD = '''"""Makes Python's sockets fail as they do without a network."""

import errno
import socket


def _cut(name):
    original = getattr(socket.socket, name)

    def method(self, *arguments):
        if self.family == socket.AF_UNIX:
            return original(self, *arguments)
        raise OSError(errno.ENETUNREACH, "Network is unreachable")

    setattr(socket.socket, name, method)


def _unknown(*_, **__):
    raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")


for name in ("connect", "connect_ex", "sendto", "sendmsg"):
    _cut(name)
socket.getaddrinfo = socket.gethostbyname = _unknown
'''


@dataclass(frozen=True)
class Result:
    """How a rehearsal ended."""

    folder: Path  # what /kaggle/working held at the end; the caller moves or removes it
    status: int  # the script's exit status; 137 where a limit stopped it
    seconds: float
    log: str


def rehearse(
    script: str | Path,
    inputs: Mapping[str, Path],
    *,
    form: Literal["namespaces", "guard"] = "namespaces",
    time_limit: float = 12 * 3600,
    working_limit: float = 20e9,
    rerun: bool = False,
    echo: bool = True,
) -> Result:
    """Run a script (its text, or its file) as a Kaggle kernel without internet.

    `inputs` maps names below /kaggle/input ("mars", "competitions/mars/mars.npz") to files or
    folders. `time_limit` is in seconds, `working_limit` in bytes, `rerun` is Kaggle's run on the hidden
    test set. Output is shown as it comes (`echo`) and kept in the result's log. Raises Refused for a
    script that Kaggle would not take, for inputs that do not fit and where the system cannot do it.
    """
    source = script.read_bytes() if isinstance(script, Path) else script.encode()
    if len(source) >= LIMIT:
        raise Refused(f"the script has {len(source):,} bytes; Kaggle takes fewer than {LIMIT:,}")
    _check(inputs)
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
        real = _real(inputs)
        if form == "namespaces":
            say("sandbox: namespaces; no network, read-only inputs, no files beside the system's and Python's\n")
            command, environment = _apart(unshare, Path(room), source, kept, real, rerun)
        else:
            say(f"sandbox: guard ({reason or 'as asked'}); Python's own sockets are stopped, inputs are links\n")
            command, environment = _guarded(Path(room), source, real, rerun)
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


def _check(inputs: Mapping[str, Path]) -> None:
    for name, path in inputs.items():
        pure = PurePosixPath(name)
        if pure.is_absolute() or ".." in pure.parts or not pure.parts:
            raise Refused(f"input {name!r}: must be a name below /kaggle/input")
        if not Path(path).exists():
            raise Refused(f"input {name!r}: {path} does not exist")
        for other in inputs:
            if PurePosixPath(other) in pure.parents:
                raise Refused(f"input {name!r} lies inside input {other!r}")


def _real(inputs: Mapping[str, Path]) -> dict[str, str]:
    """Inputs by their real paths; a folder that holds links entry by entry, since their targets lie elsewhere."""
    real: dict[str, str] = {}
    for name, path in inputs.items():
        place = Path(path).resolve()
        if place.is_dir() and any(entry.is_symlink() for entry in place.iterdir()):
            real |= {f"{name}/{entry.name}": str(entry.resolve()) for entry in place.iterdir() if entry.exists()}
        else:
            real[name] = str(place)
    return real


def _image(folder: Path) -> list[str]:
    """Make a virtual environment of links to the installed packages that Kaggle's image has too.

    Returns the real folders that the links lead to.
    """
    python = Path(sys.executable).resolve()
    packages = folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    packages.mkdir(parents=True)
    (folder / "bin").mkdir()
    (folder / "bin/python").symlink_to(python)
    (folder / "pyvenv.cfg").write_text(f"home = {python.parent}\ninclude-system-site-packages = false\n")
    hidden = set()
    for name in HIDDEN:
        with contextlib.suppress(metadata.PackageNotFoundError):
            distribution = metadata.distribution(name)
            hidden |= {file.parts[0] for file in distribution.files or ()} | {Path(str(distribution._path)).name}
    installed = [Path(path) for path in (*site.getsitepackages(), site.getusersitepackages()) if path in sys.path]
    for place in installed:
        for entry in place.iterdir():
            link = packages / entry.name
            if entry.name not in hidden | {"__pycache__"} and not os.path.lexists(link):
                link.symlink_to(entry)
    return [str(path) for path in (Path(sys.base_prefix), python.parents[1], *installed)]


def _environment(home: str, rerun: bool) -> dict[str, str]:
    """What a kernel finds in its environment: nothing of the user's."""
    values = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8", "HOME": home}
    values |= {"KAGGLE_KERNEL_RUN_TYPE": "Batch", "KAGGLE_URL_BASE": "https://www.kaggle.com"}
    if rerun:
        values["KAGGLE_IS_COMPETITION_RERUN"] = "1"
    return values | {name: os.environ[name] for name in MACHINE if name in os.environ}


def _apart(
    unshare: list[str], room: Path, source: bytes, working: Path, inputs: dict[str, str], rerun: bool
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
        "environment": _environment("/root", rerun),
    }
    environment = _environment("/root", rerun) | {"PYTHONPATH": str(Path(__file__).parents[1])}
    return [*unshare, sys.executable, "-m", "comp.namespaces", json.dumps(plan)], environment


def _guarded(room: Path, source: bytes, inputs: dict[str, str], rerun: bool) -> tuple[list[str], dict[str, str]]:
    """Command and environment of the form "guard"."""
    for name in ("src", "input", "home"):
        (room / name).mkdir()
    (room / "src/script.py").write_bytes(source)
    for name, path in inputs.items():
        link = room / "input" / name
        link.parent.mkdir(parents=True, exist_ok=True)
        if os.path.isdir(path):  # file by file, since a search does not follow a link to a folder
            shutil.copytree(path, link, copy_function=os.symlink)
        else:
            link.symlink_to(path)
    _image(room / "image")
    packages = next((room / "image/lib").glob("python*/site-packages"))
    (packages / "network_guard.py").write_text(GUARD)
    (packages / "network_guard.pth").write_text("import network_guard\n")
    environment = _environment(str(room / "home"), rerun) | {"COMP_KAGGLE_INPUT": str(room / "input")}
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
