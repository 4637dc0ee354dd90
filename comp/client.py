"""Kaggle's own client, in a process of its own.

Importing the client logs in, prints and may exit, so it never enters this process. It is asked through its
Python methods rather than its commands, because these exit 0 on failure and leave out what decides here:
HTTP status, number and error of a submission, refused model sources.

Credentials reach it through environment and home folder, as on its own; they appear in no argument, and are
struck out of whatever comes back.
"""

import atexit
import contextlib
import io
import itertools
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from comp import credentials
from comp.errors import Refused

SITE = "https://www.kaggle.com"
TRIES = 8
LOGIN = f"make a token at {SITE}/settings/api and put it into ~/.kaggle/access_token (or KAGGLE_API_TOKEN)"


class Declined(Refused):
    """Kaggle said no. `status`: as in HTTP; 0: no answer came; -1: the client itself declined."""

    def __init__(self, line: str, status: int, pause: float = 0.0):
        super().__init__(line)
        self.status = status
        self.pause = pause  # seconds that Kaggle asks to wait

    @property
    def in_doubt(self) -> bool:
        """Whether a write may have arrived all the same."""
        return self.status == 0 or self.status >= 500

    @property
    def passing(self) -> bool:
        return self.in_doubt or self.status == 429


def read(method: str, poll: float, tries: int = TRIES, limit: float = 120.0, **arguments: Any) -> Any:
    """Ask what may be asked again: with growing pauses after HTTP 429, 5xx and lost connections.

    `method` is one of KaggleApi's, "user" or "get_kernel"; `limit` is in seconds. Returns JSON values.
    Raises Declined.
    """
    for attempt in itertools.count(1):
        try:
            return ask(method, limit, **arguments)
        except Declined as error:
            if not error.passing or attempt == tries:
                raise
            _wait(error, poll, attempt)


def write(method: str, poll: float, arrived: Callable[[], Any], limit: float = 120.0, **arguments: Any) -> Any:
    """Ask for a change, once. Where the answer got lost, `arrived` finds out whether the change was made.

    It returns what then stands in for the answer, or None where the change may be asked for again.
    Raises Declined.
    """
    for attempt in itertools.count(1):
        try:
            return ask(method, limit, **arguments)
        except Declined as error:
            if not error.passing:
                raise
            _wait(error, poll, attempt)
            if error.in_doubt and (found := arrived()) is not None:
                return found
            if attempt == TRIES:
                raise


def _wait(error: Declined, poll: float, attempt: int) -> None:
    time.sleep(max(error.pause, min(min(poll, 2.0) * 2 ** (attempt - 1), 300.0)))


def ask(method: str, limit: float = 120.0, **arguments: Any) -> Any:
    """Call one of the client's methods. Raises Declined."""
    answer = _PROCESS.ask(method, arguments, limit)
    if "answer" in answer:
        return answer["answer"]
    status, message = answer["status"], credentials.strike(" ".join(answer["message"].split()))
    if status == -1:
        line = message
    elif status == 0:
        line = f"no answer from Kaggle ({message}); check the network and try again"
    elif status == 401 and credentials.found():
        line = f"Kaggle does not accept your credentials (expired, or revoked?): {LOGIN}"
    elif status == 401:
        line = f"no Kaggle credentials: {LOGIN}"
    elif status == 429:
        line = f"Kaggle asks for fewer calls (HTTP 429: {message}); try again in some minutes"
    else:
        line = f"Kaggle answered HTTP {status}: {message}"
    raise Declined(line, status, min(answer["pause"], 600.0))


class _Process:
    """One line of JSON in, one out. It is kept, since a start takes a second and logs in anew."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.process: subprocess.Popen[str] | None = None
        self.login: dict[str, str] = {}

    def ask(self, method: str, arguments: dict[str, Any], limit: float) -> dict[str, Any]:
        with self.lock:
            kept = self.process and self.process.poll() is None and self.login == _login_variables()
            if not kept:
                self._restart()
            answer = self._ask(method, arguments, limit)
            if kept and answer.get("status") == 401:  # its login may have run out
                self._restart()
                answer = self._ask(method, arguments, limit)
            return answer

    def _ask(self, method: str, arguments: dict[str, Any], limit: float) -> dict[str, Any]:
        timer = threading.Timer(limit, self.process.kill)
        timer.start()
        try:
            print(json.dumps([method, arguments]), file=self.process.stdin, flush=True)
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        except BaseException:  # Ctrl-C: the answer still to come must not be taken for the next one's
            self.stop()
            raise
        finally:
            timer.cancel()
        lost = {"status": 0, "message": f"the client ended, or took more than {limit:.0f} s", "pause": 0.0}
        return json.loads(line) if line else lost

    def _restart(self) -> None:
        self.stop()
        self.login = _login_variables()
        self.process = start("serve")

    def stop(self) -> None:
        if self.process:
            self.process.kill()
            self.process.communicate()


_PROCESS = _Process()
atexit.register(_PROCESS.stop)


def start(task: str, *arguments: str) -> subprocess.Popen[str]:
    """Start this module's other side: "serve", or "log" with a kernel, whose log it prints as it comes."""
    # -P: nothing in the working folder may stand in for the client's modules.
    # A session of its own: Ctrl-C is for this process to handle.
    command = [sys.executable, "-P", "-m", "comp.client", task, *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command, env=environment(), stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL,
        encoding="utf-8", errors="replace", start_new_session=True,
    )  # fmt: skip


class Log:
    """Says each line of a kernel's log once, however often Kaggle's stream of it begins anew."""

    def __init__(self, ref: str, say: Callable[[str], None]) -> None:
        self.ref, self.say, self.told = ref, say, 0
        self.process: subprocess.Popen[str] | None = None
        self.thread = threading.Thread()

    def listen(self) -> None:
        """Say lines as they come, in a thread, unless one does."""
        if not self.thread.is_alive():
            self.stop()
            self.process = start("log", self.ref)
            self.thread = threading.Thread(target=self.tell, args=(self.process.stdout,), daemon=True)
            self.thread.start()

    def tell(self, lines: Iterable[str]) -> None:
        """Say those of a log's lines, given from its first, that were not said before."""
        known = credentials.found()
        for number, line in enumerate(lines):
            if number >= self.told:
                self.told = number + 1
                self.say(credentials.strike(line.rstrip("\n"), known))

    def stop(self) -> None:
        if self.process:
            self.thread.join(timeout=1.0)  # at the run's end the stream ends by itself
            self.process.kill()
            self.thread.join()
            self.process.wait()


def environment() -> dict[str, str]:
    """This process's own, less the switches that make the client print its authorization header."""
    here = str(Path(__file__).resolve().parents[1])
    path = os.pathsep.join(filter(None, (here, os.environ.get("PYTHONPATH"))))
    kept = {key: value for key, value in os.environ.items() if key not in ("VERBOSE", "VERBOSE_OUTPUT")}
    return kept | {"PYTHONPATH": path, "PYTHONIOENCODING": "utf-8"}


def _login_variables() -> dict[str, str]:
    """What decides where the client goes, and as whom."""
    return {key: value for key, value in os.environ.items() if re.search(r"(?i)^kaggle_|home$|proxy$", key)}


# The other side, in the client's process


def _serve() -> None:
    answers = sys.stdout
    for line in sys.stdin:
        method, arguments = json.loads(line)
        with contextlib.redirect_stdout(io.StringIO()) as said:
            answer = _answer(method, arguments)
        lost = re.findall(r"^Upload unsuccessful: (.+)", said.getvalue(), flags=re.MULTILINE)
        if lost:  # the client goes on, and makes a dataset without the file
            message = f"upload of {', '.join(lost)} failed, the dataset is incomplete: run the same command again"
            answer = {"status": -1, "message": message, "pause": 0.0}
        print(json.dumps(answer), file=answers, flush=True)


def _answer(method: str, arguments: dict[str, Any]) -> dict[str, Any]:
    try:
        api = _login()
        if method == "user":
            return {"answer": api.config_values["username"]}
        call = _get_kernel if method == "get_kernel" else getattr(api, method)
        return {"answer": _plain(call(**arguments))}
    except (Exception, SystemExit) as error:
        return _failure(error)


def _login() -> Any:
    import kaggle
    import requests

    if not kaggle.api._authenticated:
        kaggle.api.authenticate()
    kaggle.api.with_retry = lambda call, **_: call  # the client would repeat writes without asking
    if requests.get is not _checked_get:
        requests.get = _checked_get
    return kaggle.api


def _checked_get(*arguments: Any, **options: Any) -> Any:
    """The client keeps whatever comes as a kernel's output file, an error page too; this raises instead."""
    from requests import api

    response = api.get(*arguments, **options)
    response.raise_for_status()
    return response


def _get_kernel(ref: str) -> Any:
    import kaggle
    from kagglesdk.kernels.types.kernels_api_service import ApiGetKernelRequest

    request = ApiGetKernelRequest()
    request.user_name, request.kernel_slug = ref.split("/")
    with kaggle.api.build_kaggle_client() as client:
        return client.kernels.kernels_api_client.get_kernel(request)


def _plain(value: Any) -> Any:
    if hasattr(value, "to_dict"):
        return value.to_dict(ignore_defaults=False)  # QUEUED and PENDING are defaults, and would be left out
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _failure(error: BaseException) -> dict[str, Any]:
    import requests
    import urllib3

    # The client puts words of its own around some HTTP errors; the status lies beneath.
    chain: list[BaseException] = []
    while error and error not in chain:
        chain.append(error)
        error = error.__cause__ or error.__context__
    responses = [link.response for link in chain if getattr(link, "response", None) is not None]
    unanswered = (requests.RequestException, urllib3.exceptions.HTTPError, json.JSONDecodeError)
    status, pause = -1, 0.0
    if isinstance(chain[0], SystemExit):  # nothing to log in with
        status = 401
    elif responses:
        status = responses[0].status_code
        with contextlib.suppress(ValueError):
            pause = float(responses[0].headers.get("Retry-After", 0))
    elif any(isinstance(link, unanswered) for link in chain):
        status = 0
    return {"status": status, "message": str(chain[0]) or type(chain[0]).__name__, "pause": pause}


def event_text(event: dict[str, Any]) -> str:
    """What one event of a kernel's log prints."""
    text = event.get("data") or ""
    return text if text.endswith("\n") or not text else text + "\n"


def _print_log(ref: str) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        api = _login()
    for event in api.kernels_logs_stream(ref):
        print(event_text(event), end="", flush=True)


if __name__ == "__main__":
    {"serve": _serve, "log": _print_log}[sys.argv[1]](*sys.argv[2:])
