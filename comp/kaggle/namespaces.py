"""A process with Kaggle's folders for a root and no network, by Linux namespaces.

Where the system allows user namespaces anyone may have one, elsewhere only root.
"""

import ctypes
import fcntl
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
from pathlib import Path, PurePosixPath

SYSTEM = ("/bin", "/dev", "/etc", "/lib", "/lib32", "/lib64", "/nix", "/opt", "/sbin", "/sys", "/usr")
# From Linux's headers; see mount(2) and netdevice(7).
MS_RDONLY, MS_REMOUNT, MS_BIND, MS_REC = 1, 32, 4096, 16384
SIOCSIFFLAGS, IFF_UP = 0x8914, 1


def command() -> tuple[list[str], str]:
    """The command that starts a process in its own namespaces; where there is none, why not."""
    unshare = shutil.which("unshare")
    if unshare is None:
        return [], "there is no unshare, of util-linux"
    reason = ""
    for way in (["--user", "--map-root-user"], []):
        command = [unshare, *way, "--mount", "--net", "--pid", "--fork", "--kill-child"]
        # Some systems allow the namespaces and then refuse every mount in them.
        tried = subprocess.run([*command, "mount", "-t", "tmpfs", "none", "/tmp"], capture_output=True, text=True)
        if tried.returncode == 0:
            return command, ""
        reason = reason or (tried.stderr.strip() or f"unshare: exit status {tried.returncode}").splitlines()[-1]
    return [], reason


def enter(room: str, working: str, inputs: dict[str, str], visible: list[str]) -> int:
    """Inside fresh namespaces: build Kaggle's root, make it ours, run the script; its exit status.

    `room` holds src, image, tmp and the empty root; `inputs` maps names below /kaggle/input to real
    paths; `visible` are the folders that Python needs beside the system's.
    """
    root = Path(room) / "root"
    _mount("none", root, "tmpfs")
    (root / "root").mkdir()
    _bind(f"{room}/tmp", root / "tmp", writable=True)
    shown: list[PurePosixPath] = []
    for path in sorted(map(PurePosixPath, {*SYSTEM, *visible} - {"/"})):
        if os.path.islink(path) and len(path.parts) == 2:  # /bin is often a link into /usr
            os.symlink(os.readlink(path), root / path.name)
        elif os.path.exists(path) and not any(above in path.parents for above in shown):
            _bind(str(path), root / path.relative_to("/"))
            shown.append(path)
    (root / "proc").mkdir()
    try:
        _mount("proc", root / "proc", "proc")
    except OSError:  # inside a container whose own /proc is partly covered
        _bind("/proc", root / "proc", writable=True)
    if os.path.isdir("/dev/shm"):
        _mount("none", root / "dev/shm", "tmpfs")
    _bind(f"{room}/image", root / "image")
    _bind(f"{room}/src", root / "kaggle/src")
    _bind(working, root / "kaggle/working", writable=True)
    places = root / "kaggle/input"
    places.mkdir()
    _mount("none", places, "tmpfs")
    for name, path in inputs.items():
        _bind(path, places / name)
    _mount("none", places, flags=MS_REMOUNT | MS_BIND | MS_RDONLY)
    with socket.socket() as any_socket:  # a kernel without internet still has its loopback
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sh22x", b"lo", IFF_UP))
    os.chroot(root)
    status = subprocess.run(["/image/bin/python", "-u", "/kaggle/src/script.py"], cwd="/kaggle/working").returncode
    return status if status >= 0 else 128 - status


def _bind(source: str, target: Path, writable: bool = False) -> None:
    if os.path.isdir(source):
        target.mkdir(parents=True, exist_ok=True)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.touch()
    _mount(source, target, flags=MS_BIND | MS_REC)
    if not writable:
        # Flags that the mount has already must be named again: a user namespace may not drop them.
        kept = os.statvfs(target).f_flag & (os.ST_NOSUID | os.ST_NODEV | os.ST_NOEXEC)
        _mount(source, target, flags=MS_REMOUNT | MS_BIND | MS_RDONLY | kept)


def _mount(source: str, target: Path, kind: str = "", flags: int = 0) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(os.fsencode(source), os.fsencode(target), kind.encode(), ctypes.c_ulong(flags), None):
        number = ctypes.get_errno()
        raise OSError(number, f"sandbox: mount: {os.strerror(number)}", str(target))


if __name__ == "__main__":  # started by comp.kaggle.sandbox, through `command`, as a file of its own
    sys.exit(enter(**json.loads(sys.argv[1])))
