"""A packed script run here as Kaggle would run it.

A fresh process, in Linux namespaces of its own, gets /kaggle/src/script.py, the empty folder as /kaggle/working, a
read-only /kaggle/input, an empty home, a network with nothing behind it, the system's folders and Python read-only,
and only the packages of Kaggle's image. The repository, the user's home and all else are not there."""

import contextlib
import functools
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from pathlib import Path

from tqdm import tqdm

from comp.errors import Refused

WORKING_LIMIT = 20e9  # bytes; Kaggle keeps no more
MACHINE = ("CUDA_VISIBLE_DEVICES", "LD_LIBRARY_PATH", "OMP_NUM_THREADS")  # describe hardware, not the user
SYSTEM = ("/bin", "/dev", "/etc", "/lib", "/lib32", "/lib64", "/nix", "/opt", "/sbin", "/sys", "/usr")

_bytes = functools.partial(tqdm.format_sizeof, suffix="B")
_show = functools.partial(print, end="", flush=True)


def find_unshare() -> tuple[list[str], str]:
    """The command that starts a process in its own namespaces; where there is none, why not."""
    if not shutil.which("unshare"):
        return [], "there is no unshare, of util-linux"
    for user in (["--map-root-user"], []):  # without user namespaces only root may
        command = ["unshare", *user, "--mount", "--net", "--pid", "--fork", "--kill-child"]
        # Some systems allow the namespaces and then refuse every mount in them.
        mount = [*command, "mount", "-t", "tmpfs", "none", "/tmp"]
        tried = subprocess.run(mount, capture_output=True, encoding="utf-8", errors="replace")
        if tried.returncode == 0:
            return command, ""
    return [], (tried.stderr.strip() or f"unshare: exit status {tried.returncode}").splitlines()[-1]


def run_script(script: str, inputs: Mapping[str, Path], working: Path, say: Callable[[str], None] = _show) -> int:
    """Run a script (its text) as a Kaggle kernel without internet; its exit status, or 137 where it left too much.

    `inputs` maps names below /kaggle/input ("mars", "competitions/mars/mars.npz") to files or folders; `working`
    is empty, and holds at the end what Kaggle would keep. Refused where the system cannot cut the network."""
    unshare, reason = find_unshare()
    if reason:
        raise Refused(f"sandbox: no namespaces on this system ({reason}), so the network cannot be cut")
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="comp-sandbox-", ignore_cleanup_errors=True) as room:
        root = Path(room) / "root"
        for place in ("tmp", "root", "proc", "kaggle/src", "kaggle/input"):
            (root / place).mkdir(parents=True)
        (root / "kaggle/src/script.py").write_text(script, encoding="utf-8")
        mounted = Path(room) / "mounts"
        mounted.write_text("\n".join(_mounts(root, _image(root / "image"), working, inputs)), encoding="utf-8")
        say("sandbox: no network, read-only inputs, no files beside the system's and Python's\n")
        environment = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8", "HOME": "/root"}
        environment |= {"KAGGLE_KERNEL_RUN_TYPE": "Batch", "KAGGLE_URL_BASE": "https://www.kaggle.com"}
        environment |= {name: os.environ[name] for name in MACHINE if name in os.environ}
        process = subprocess.Popen(
            [*unshare, "sh", Path(__file__).with_name("enter.sh"), mounted, sys.executable], env=environment, cwd=root,
            start_new_session=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            assert process.stdout
            for line in io.TextIOWrapper(process.stdout, "utf-8", "replace", newline=""):  # a bar's \r ends one, too
                say(line)
            status = process.wait()
        finally:
            process.kill()  # and with it, by --kill-child, all that it started
    kept = {path: path.stat().st_size for path in sorted(working.rglob("*")) if path.is_file()}
    size, seconds = sum(kept.values()), time.monotonic() - start
    if size > WORKING_LIMIT:
        say(f"sandbox: {_bytes(size)} in the working folder, which may hold {_bytes(WORKING_LIMIT)}\n")
        status = 137
    say(f"sandbox: exit status {status} after {seconds:.1f} s; Kaggle would keep {len(kept)} files, {_bytes(size)}\n")
    say("".join(f"  {_bytes(size):>9}  {path.relative_to(working)}\n" for path, size in kept.items()))
    return status


def _mounts(root: Path, visible: set[Path], working: Path, inputs: Mapping[str, Path]) -> Iterator[str]:
    """The shell's lines that fill the root; what they mount on is made here. `visible`: folders that Python needs."""

    def mount(source: Path, place: str | Path, how: str = "show") -> str:
        target = root / place
        (target if source.is_dir() else target.parent).mkdir(parents=True, exist_ok=True)
        if not source.is_dir():
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
    """Make a venv of links to those installed packages that Kaggle's image has too; return their real folders."""
    venv.create(folder, symlinks=True)
    packages = next(folder.glob("lib/python*/site-packages"))
    places = {Path(sys.base_prefix), Path(sys.executable).resolve().parents[1]}
    # What Kaggle's image holds of what a kernel may import, as observed; what these require is there, too.
    wanted = Path(__file__).with_name("image.txt").read_text(encoding="utf-8").split()
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
