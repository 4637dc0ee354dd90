"""Folds side by side: commands that run at the same time, each on a device of its own."""

import concurrent.futures
import os
import subprocess
import threading
from collections.abc import Callable, Iterable, Sequence


def run_on_devices(
    names: Iterable[str], devices: Sequence[str], command: Callable[[str, str], Sequence[str]]
) -> dict[str, int]:
    """Run `command(name, device)` for every name, one at a time on each device; return the exit statuses by name.

    Each line that a command prints comes behind its name. One that fails does not stop the others. What interrupts the
    waiting, such as Ctrl-C, ends all with SIGTERM, and is raised once they have ended; a second time kills them."""
    waiting, statuses = iter(list(names)), dict[str, int]()
    running: set[subprocess.Popen[str]] = set()
    beginning, stopping = threading.Lock(), threading.Event()

    def serve(device: str) -> None:
        for name in waiting:
            with beginning:  # so that none is begun unseen by whoever stops them
                if stopping.is_set():
                    return
                process = subprocess.Popen(
                    command(name, device), env=os.environ | {"PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8"},
                    stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                    encoding="utf-8", errors="replace", start_new_session=True,  # Ctrl-C comes through us, and once
                )  # fmt: skip
                running.add(process)
            assert process.stdout
            for line in process.stdout:
                print(f"{name} | {line.rstrip()}", flush=True)
            statuses[name] = process.wait()
            running.discard(process)

    with concurrent.futures.ThreadPoolExecutor(len(devices)) as pool:
        served = []
        try:
            served += [pool.submit(serve, device) for device in devices]
            for one in served:
                one.result()
        except BaseException:
            stopping.set()
            with beginning:
                for process in tuple(running):
                    process.terminate()
            try:
                concurrent.futures.wait(served)
            except BaseException:
                for process in tuple(running):
                    process.kill()
                raise
            raise
    return statuses
