"""Folds side by side: commands that run at the same time, each on a device of its own."""

import os
import signal
import subprocess
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor


def run_on_devices(
    names: Iterable[str], devices: Sequence[str], command: Callable[[str, str], Sequence[str]]
) -> dict[str, int]:
    """Run `command(name, device)` for every name, one at a time on each device; return the exit statuses by name.

    Each line that a command prints comes behind its name. One that fails does not stop the others. Ctrl-C is passed on
    to all, and raised again once they have ended.
    """
    waiting, statuses = deque(names), dict[str, int]()
    running: set[subprocess.Popen[str]] = set()

    def serve(device: str) -> None:
        while waiting:
            name = waiting.popleft()
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

    with ThreadPoolExecutor(len(devices)) as pool:
        served = [pool.submit(serve, device) for device in devices]
        try:
            for one in served:
                one.result()
        except BaseException:
            waiting.clear()
            for process in tuple(running):
                process.send_signal(signal.SIGINT)
            raise
    return statuses
