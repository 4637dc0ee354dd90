"""A packed script run here as Kaggle would run it.

    status = rehearse(script(pack(entry, arguments)), {"competitions/mars": Path("input")}, empty_folder)

A fresh process gets /kaggle/src/script.py, the empty folder as /kaggle/working, a read-only /kaggle/input, a home
of its own, no network and only the packages of Kaggle's image. Two forms:

namespaces  Linux namespaces: a network with nothing behind it, and a root that holds the system's
            folders and Python read-only; repository, home folder and all else are not there.
guard       for systems that allow no namespaces, and weaker: Python's own sockets refuse to connect,
            inputs are links, COMP_KAGGLE_INPUT stands for /kaggle/input, other files stay readable.
"""

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import Literal

from comp.errors import Refused
from comp.kaggle import namespaces, packing

# What Kaggle's image holds of what a kernel may import, as observed; what these require is there, too.
IMAGE = (
    "albumentations", "matplotlib", "numba", "numpy", "opencv-python-headless", "pandas", "polars", "pycocotools",
    "pydantic", "safetensors", "scikit-learn", "scipy", "tensorboard", "timm", "torch", "torchvision", "tqdm",
)  # fmt: skip
TIME_LIMIT, WORKING_LIMIT = 12 * 3600, 20e9  # Kaggle's, in seconds and bytes
MACHINE = ("CUDA_VISIBLE_DEVICES", "LD_LIBRARY_PATH", "OMP_NUM_THREADS")  # describe hardware, not the user

GUARD = """
import errno, sys

def cut(event, arguments):
    sends = event in ("socket.connect", "socket.sendto", "socket.sendmsg") and isinstance(arguments[1], tuple)
    if sends or event in ("socket.getaddrinfo", "socket.gethostbyname"):  # the others are sockets of this machine
        raise OSError(errno.ENETUNREACH, "Network is unreachable")

sys.addaudithook(cut)
"""


def _show(text: str) -> None:
    """Print what came of a script's output."""
    with contextlib.suppress(BrokenPipeError):  # nobody reads any more; the run goes on
        print(text, end="", flush=True)


def run_script(
    script: str,
    inputs: Mapping[str, Path],
    working: Path,
    form: Literal["namespaces", "guard"] = "namespaces",
    say: Callable[[str], None] = _show,
) -> int:
    """Run a script (its text) as a Kaggle kernel without internet; its exit status, or 137 where a limit stopped it.

    `inputs` maps names below /kaggle/input ("mars", "competitions/mars/mars.npz") to files or folders; `working`
    is an empty folder, which holds at the end what Kaggle would keep. `say` gets the output as it comes. Raises
    Refused for a script that Kaggle would not take, and where the system cannot do it.
    """
    packing.within_limit(script, "script")
    unshare, reason = namespaces.command()
    if form == "namespaces" and reason:
        raise Refused(
            f"sandbox: no namespaces on this system ({reason}), so the network cannot be cut; "
            'the weaker form "guard" stops only Python\'s own sockets'
        )
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="comp-sandbox-", ignore_cleanup_errors=True) as name:
        room, files = Path(name), _files(inputs)
        for folder in ("src", "tmp", "root", "input"):
            (room / folder).mkdir()
        (room / "src/script.py").write_text(script, encoding="utf-8")
        places = _image(room / "image")
        if form == "namespaces":
            say("sandbox: namespaces; no network, read-only inputs, no files beside the system's and Python's\n")
            plan = {"room": name, "working": str(working.resolve()), "inputs": files, "visible": places}
            command = [*unshare, sys.executable, "-P", namespaces.__file__, json.dumps(plan)]
            environment = _environment("/root")
        else:
            say(f"sandbox: guard ({reason or 'as asked'}); Python's own sockets are stopped, inputs are links\n")
            _guard(room, files)
            command = [str(room / "image/bin/python"), "-u", str(room / "src/script.py")]
            environment = _environment(str(room / "tmp")) | {"COMP_KAGGLE_INPUT": str(room / "input")}
        status, stopped = _follow(command, environment, working, say)
    if stopped:
        say(f"sandbox: stopped at {stopped}\n")
    say(f"sandbox: exit status {status} after {time.monotonic() - start:.1f} s; {_inventory(working)}\n")
    return status


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
    wanted = list(IMAGE)
    for name in wanted:  # which grows meanwhile
        with contextlib.suppress(metadata.PackageNotFoundError):
            distribution = metadata.distribution(name)
            needs = [re.match(r"[\w.-]+", need)[0] for need in distribution.requires or () if "extra ==" not in need]
            wanted += [need for need in needs if need not in wanted]
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


def _guard(room: Path, inputs: Mapping[str, str]) -> None:
    """Link the inputs below room/input, and put the guard among the image's packages, so that Python starts with it."""
    for name, path in inputs.items():
        link = room / "input" / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path)
    packages = next((room / "image/lib").glob("python*/site-packages"))
    (packages / "network_guard.py").write_text(GUARD)
    (packages / "network_guard.pth").write_text("import network_guard\n")


def _follow(
    command: list[str], environment: dict[str, str], working: Path, say: Callable[[str], None]
) -> tuple[int, str]:
    """Run a command to its end or to a limit; (exit status, the limit that stopped it or "")."""
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    process = subprocess.Popen(command, env=environment, cwd=working, start_new_session=True, **pipes)

    def pass_on() -> None:
        for line in io.TextIOWrapper(process.stdout, "utf-8", "replace", newline=""):  # a bar's \r ends a line, too
            say(line)

    reader = threading.Thread(target=pass_on, daemon=True)
    reader.start()
    end, stopped = time.monotonic() + TIME_LIMIT, ""
    try:
        while not stopped:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=1)
            if (size := sum(_sizes(working).values())) > WORKING_LIMIT:
                stopped = f"{_bytes(size)} in the working folder, which may hold {_bytes(WORKING_LIMIT)}"
            elif process.returncode is not None:
                break
            elif time.monotonic() > end:
                stopped = f"the time limit of {TIME_LIMIT:,.0f} s"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        status = process.wait()
        reader.join(timeout=5)
    if stopped or status < 0:  # as a shell reports what a signal ended
        status = 128 + (signal.SIGKILL if stopped else -status)
    return status, stopped


def _sizes(folder: Path) -> dict[str, int]:
    """Bytes of each file, by its path below the folder."""
    sizes = {}
    for place, _, names in os.walk(folder):
        for path in (Path(place, name) for name in names):
            with contextlib.suppress(FileNotFoundError):  # files come and go while this looks
                sizes[str(path.relative_to(folder))] = path.lstat().st_size
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
