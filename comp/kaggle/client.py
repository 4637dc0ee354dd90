"""Kaggle's own client, asked through its Python methods and told apart where it fails.

Its commands exit 0 on failure and leave out what decides here: HTTP status, number and error of a submission,
refused sources. Importing it logs in and prints, so that happens on first use, and what it prints is kept back.
Credentials reach it through environment and home folder, as on its own; they are struck out of what comes back."""

import contextlib
import functools
import io
import itertools
import json
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

from comp.errors import Refused
from comp.kaggle import credentials

SITE = "https://www.kaggle.com"
CONNECT, SILENCE = 10.0, 120.0  # seconds without an answer after which a connection counts as lost


class Declined(Refused):
    """Kaggle said no. `status`: as in HTTP; 0: no answer came; -1: the client itself declined."""

    def __init__(self, line: str, status: int):
        super().__init__(line)
        self.status = status
        self.in_doubt = status == 0 or status >= 500  # a change may have arrived


class Missing(Declined):
    """There is no such thing, or not for this user: HTTP 403 and 404."""


def call_client(
    method: str, arrived: Callable[[], Any] = lambda: None, tries: int = 8, again: tuple = (), **arguments: Any
) -> Any:
    """Call a method of KaggleApi, or "get_kernel"; returns JSON values. Raises Declined.

    HTTP 429, 5xx and those of `again`, and lost connections are tried again with growing pauses. Before a change whose
    answer got lost is asked for again, `arrived` finds out whether it was made: it returns what stands in, or None."""
    for attempt in itertools.count(1):
        try:
            with _declining(), contextlib.redirect_stdout(io.StringIO()):
                return _plain(getattr(log_in(), method)(**arguments))
        except Declined as error:
            if not (error.in_doubt or error.status in (429, *again)):
                raise
            pause = min(2.0**attempt, 300.0)
            if pause >= 4:
                print(f"{error}; asking again in {pause:.0f} s", flush=True)
            time.sleep(pause)
            if error.in_doubt and (found := arrived()) is not None:
                return found
            if attempt == tries:
                raise


def read_log(ref: str) -> Iterator[str]:
    """Lines of the log of a kernel's run from its first, as they come while it runs. Raises Declined."""
    with _declining():
        for event in log_in().kernels_logs_stream(ref):
            yield from credentials.redact(event.get("data") or "").splitlines()


@functools.cache
def log_in() -> Any:
    """Kaggle's KaggleApi, logged in, with `get_kernel` and `get_gpu_hours` besides."""
    for name in ("VERBOSE", "VERBOSE_OUTPUT"):  # they make the client print its authorization header
        os.environ.pop(name, None)
    with contextlib.redirect_stdout(io.StringIO()):
        _limit_waiting()
        from kaggle.api.kaggle_api_extended import ApiGetKernelRequest, KaggleApi

        api: Any = KaggleApi()
        api.authenticate()
    api.with_retry = lambda call, **_: call  # the client would repeat writes without asking

    def get_kernel(ref: str) -> Any:
        request = ApiGetKernelRequest()
        request.user_name, request.kernel_slug = ref.split("/")
        with api.build_kaggle_client() as client:
            return client.kernels.kernels_api_client.get_kernel(request)

    def get_gpu_hours() -> list[float]:  # used and allowed in this week; as JSON they would lose whole days
        quota = api.quota_view().gpu_quota
        return [time.total_seconds() / 3600 for time in (quota.time_used, quota.total_time_allowed)] if quota else []

    api.get_kernel, api.get_gpu_hours = get_kernel, get_gpu_hours
    return api


def _limit_waiting() -> None:
    """Give the client's own connections a time limit; without one, requests waits for ever."""
    from kagglesdk import kaggle_client, kaggle_http_client
    from requests.adapters import HTTPAdapter

    class Adapter(HTTPAdapter):
        def send(self, *request: Any, **options: Any) -> Any:
            return super().send(*request, **options | {"timeout": options.get("timeout") or (CONNECT, SILENCE)})

    class HttpClient(kaggle_http_client.KaggleHttpClient):
        def _init_session(self) -> None:
            super()._init_session()
            self._session.adapters = dict.fromkeys(self._session.adapters, Adapter())

    kaggle_client.KaggleHttpClient = HttpClient
    from kaggle.api import kaggle_api_extended  # which logs in

    kaggle_api_extended.HTTPAdapter = Adapter  # for uploads


def _plain(value: Any) -> Any:
    if hasattr(value, "to_dict"):
        return value.to_dict(ignore_defaults=False)  # QUEUED and PENDING are defaults, and would be left out
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


@contextlib.contextmanager
def _declining() -> Iterator[None]:
    """Turn whatever the client raises into Declined."""
    try:
        yield
    except (Exception, SystemExit) as error:
        import requests
        import urllib3

        chain: list[Any] = [error]
        while (link := chain[-1].__cause__ or chain[-1].__context__) and link not in chain:
            chain.append(link)
        # The client puts words of its own around some HTTP errors; the status lies beneath.
        responses = [link.response for link in chain if getattr(link, "response", None) is not None]
        unanswered = (requests.RequestException, urllib3.exceptions.HTTPError, json.JSONDecodeError)
        message = credentials.redact(" ".join(str(error).split()) or type(error).__name__)
        status, line = -1, f"Kaggle's client: {message}"
        if responses:
            status, line = responses[0].status_code, f"Kaggle answered HTTP {responses[0].status_code}: {message}"
        elif any(isinstance(link, unanswered) for link in chain):
            status, line = 0, f"no answer from Kaggle ({message}); check the network and try again"
        if status == 401 or isinstance(error, SystemExit):  # there is nothing to log in with
            log_in.cache_clear()  # the token may be renewed meanwhile
            advice = f"make a token at {SITE}/settings/api and put it into ~/.kaggle/access_token (or KAGGLE_API_TOKEN)"
            status, line = 401, f"{credentials.explain_refusal()} {advice}"
        raise (Missing if status in (403, 404) else Declined)(line, status) from None
