"""A packed script run here as Kaggle would run it.

    status = run_script(write_script(pack(entry, arguments)), {"competitions/mars": Path("input")}, empty_folder)

A fresh process, in Linux namespaces of its own, gets /kaggle/src/script.py, the empty folder as /kaggle/working, a
read-only /kaggle/input, an empty home, a network with nothing behind it, the system's folders and Python read-only,
and only the packages of Kaggle's image. The repository, the user's home and all else are not there.
"""

import contextlib
import functools
import io
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import venv
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from pathlib import Path

from tqdm import tqdm

from comp.errors import Refused
from comp.kaggle import packing

# What Kaggle's image holds of what a kernel may import, as observed; what these require is there, too.
IMAGE = (
    "accelerate", "albumentations", "huggingface-hub", "jinja2", "joblib", "kornia", "matplotlib", "nbformat", "numba",
    "numpy", "omegaconf", "opencv-python-headless", "optuna", "pandas", "polars", "pycocotools", "pydantic",
    "pytorch-lightning", "safetensors", "scikit-image", "scikit-learn", "scipy", "tensorboard", "timm", "torch",
    "torchmetrics", "torchvision", "tqdm", "transformers",
)  # fmt: skip
TIME_LIMIT, WORKING_LIMIT = 12 * 3600, 20e9  # Kaggle's, in seconds and bytes
MACHINE = ("CUDA_VISIBLE_DEVICES", "LD_LIBRARY_PATH", "OMP_NUM_THREADS")  # describe hardware, not the user
SYSTEM = ("/bin", "/dev", "/etc", "/lib", "/lib32", "/lib64", "/nix", "/opt", "/sbin", "/sys", "/usr")

# Run by a shell in fresh namespaces, in the folder that becomes the root. A container that covers parts of its own
# /proc cannot mount another. {python} brings the loopback up, which a kernel without internet has, too. Of the
# environment, only what the shell added is removed.
ENTER = """
set -e
show() {{ mount --rbind "$1" "$2" && mount -o remount,bind,ro "$2"; }}
{mounts}
mount -t proc none proc 2>/dev/null || mount --rbind /proc proc
[ ! -d dev/shm ] || mount -t tmpfs none dev/shm
{python} -ISc 'import fcntl, socket, struct; fcntl.ioctl(socket.socket(), 0x8914, struct.pack("16sh22x", b"lo", 1))'
env -u PWD -u OLDPWD -u SHLVL -u _ \\
    unshare --root=. --wd=/kaggle/working /image/bin/python -u /kaggle/src/script.py || exit
"""

_bytes = functools.partial(tqdm.format_sizeof, suffix="B")


def find_unshare() -> tuple[list[str], str]:
    """The command that starts a process in its own namespaces; where there is none, why not.

    Where the system allows user namespaces anyone may have one, elsewhere only root.
    """
    if not shutil.which("unshare"):
        return [], "there is no unshare, of util-linux"
    for user in (["--map-root-user"], []):
        command = ["unshare", *user, "--mount", "--net", "--pid", "--fork", "--kill-child"]
        # Some systems allow the namespaces and then refuse every mount in them.
        tried = subprocess.run([*command, "mount", "-t", "tmpfs", "none", "/tmp"], capture_output=True, text=True)
        if tried.returncode == 0:
            return command, ""
    return [], (tried.stderr.strip() or f"unshare: exit status {tried.returncode}").splitlines()[-1]


def _show(text: str) -> None:
    """Print what came of a script's output."""
    with contextlib.suppress(BrokenPipeError):  # nobody reads any more; the run goes on
        print(text, end="", flush=True)


def run_script(script: str, inputs: Mapping[str, Path], working: Path, say: Callable[[str], None] = _show) -> int:
    """Run a script (its text) as a Kaggle kernel without internet; its exit status, or 137 where a limit stopped it.

    `inputs` maps names below /kaggle/input ("mars", "competitions/mars/mars.npz") to files or folders; `working`
    is an empty folder, which holds at the end what Kaggle would keep. `say` gets the output as it comes. Raises
    Refused for a script that Kaggle would not take, and where the system cannot cut the network.
    """
    packing.within_limit(script, "script")
    unshare, reason = find_unshare()
    if reason:
        raise Refused(f"sandbox: no namespaces on this system ({reason}), so the network cannot be cut")
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="comp-sandbox-", ignore_cleanup_errors=True) as room:
        root = Path(room) / "root"
        for place in ("tmp", "root", "proc", "kaggle/src", "kaggle/input"):
            (root / place).mkdir(parents=True)
        (root / "kaggle/src/script.py").write_text(script, encoding="utf-8")
        mounts = _mounts(root, _image(root / "image"), working, inputs)
        enter = Path(room) / "enter.sh"
        enter.write_text(ENTER.format(mounts="\n".join(mounts), python=shlex.quote(sys.executable)), encoding="utf-8")
        say("sandbox: no network, read-only inputs, no files beside the system's and Python's\n")
        status, stopped = _follow([*unshare, "sh", str(enter)], root, working, say)
    if stopped:
        say(f"sandbox: stopped at {stopped}\n")
    say(f"sandbox: exit status {status} after {time.monotonic() - start:.1f} s; {_inventory(working)}\n")
    return status


def _mounts(root: Path, visible: set[Path], working: Path, inputs: Mapping[str, Path]) -> Iterator[str]:
    """The shell's lines that fill the root; what they mount on is made here. `visible`: folders that Python needs."""

    def mount(source: Path, place: str | Path, how: str = "show") -> str:
        target = root / place
        if source.is_dir():
            target.mkdir(parents=True, exist_ok=True)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.touch()
        return f"{how} {shlex.quote(str(source))} {shlex.quote(str(target))}"

    shown: list[Path] = []
    for path in sorted({*map(Path, SYSTEM), *visible} - {Path("/")}):
        if path.is_symlink() and len(path.parts) == 2:  # /bin is often a link into /usr
            (root / path.name).symlink_to(path.readlink())
        elif path.exists() and not any(path.is_relative_to(above) for above in shown):
            shown.append(path)
            yield mount(path, path.relative_to("/"))
    yield mount(working.resolve(), "kaggle/working", "mount --rbind")
    yield mount(root / "kaggle/input", "kaggle/input")
    for name, path in inputs.items():
        for file in [path] if path.is_file() else filter(Path.is_file, path.rglob("*")):
            # By its real path, whatever links lead to it.
            yield mount(file.resolve(), Path("kaggle/input", name, file.relative_to(path)))


def _image(folder: Path) -> set[Path]:
    """Make a virtual environment of links to those installed packages that Kaggle's image has too.

    Returns the real folders that the links lead to.
    """
    venv.create(folder, symlinks=True)
    packages = next(folder.glob("lib/python*/site-packages"))
    places = {Path(sys.base_prefix), Path(sys.executable).resolve().parents[1]}
    wanted = list(IMAGE)
    for name in wanted:  # which grows meanwhile
        with contextlib.suppress(metadata.PackageNotFoundError):
            distribution = metadata.distribution(name)
            needs = re.findall(r"^([\w.-]+)(?!.*extra ==)", "\n".join(distribution.requires or ()), re.MULTILINE)
            wanted += [need for need in needs if need not in wanted]
            place = Path(str(distribution.locate_file(""))).resolve()
            places.add(place)
            for entry in {file.parts[0] for file in distribution.files or ()} - {"..", "__pycache__"}:
                if not os.path.lexists(packages / entry):
                    (packages / entry).symlink_to(place / entry)
    return places


def _environment() -> dict[str, str]:
    """What a kernel finds in its environment: nothing of the user's."""
    values = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8", "HOME": "/root"}
    values |= {"KAGGLE_KERNEL_RUN_TYPE": "Batch", "KAGGLE_URL_BASE": "https://www.kaggle.com"}
    return values | {name: os.environ[name] for name in MACHINE if name in os.environ}


def _follow(command: list[str], root: Path, working: Path, say: Callable[[str], None]) -> tuple[int, str]:
    """Run a command to its end or to a limit; (exit status, the limit that stopped it or "")."""
    process = subprocess.Popen(
        command, env=_environment(), cwd=root, start_new_session=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip

    def pass_on() -> None:
        assert process.stdout
        for line in io.TextIOWrapper(process.stdout, "utf-8", "replace", newline=""):  # a bar's \r ends a line, too
            say(line)

    reader = threading.Thread(target=pass_on, daemon=True)
    reader.start()
    end, stopped = time.monotonic() + TIME_LIMIT, ""
    try:
        while process.returncode is None and not stopped:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=1)
            if (size := sum(_sizes(working).values())) > WORKING_LIMIT:
                stopped = f"{_bytes(size)} in the working folder, which may hold {_bytes(WORKING_LIMIT)}"
            elif process.returncode is None and time.monotonic() > end:
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
    return sizes


def _inventory(folder: Path) -> str:
    sizes = _sizes(folder)
    listed = "".join(f"\n  {_bytes(size):>9}  {name}" for name, size in sorted(sizes.items()))
    return f"Kaggle would keep {len(sizes)} files, {_bytes(sum(sizes.values()))}{listed}"
