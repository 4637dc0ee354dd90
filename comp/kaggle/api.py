"""Kaggle from here: push a kernel, follow it, collect its output; upload datasets; submit and wait for scores.

    kernel = push(f"{user()}/comp-mars-fold-0", source, competitions=["an2dl-mars"])
    follow(kernel.ref)
    output(kernel.ref, folder)

Nothing that changes Kaggle is done twice: where an answer got lost, Kaggle is asked first.
"""

import contextlib
import itertools
import json
import re
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from comp import files
from comp.errors import Refused
from comp.kaggle import client, credentials
from comp.kaggle.client import SITE, Declined, call_client

ACTIVE = ("QUEUED", "RUNNING", "CANCEL_REQUESTED")
PATIENCE = 3600.0  # seconds to wait for a dataset or a score


@dataclass(frozen=True)
class Kernel:
    ref: str  # owner/slug
    version: int  # 0: Kaggle has none, or does not say

    @property
    def url(self) -> str:
        return f"{SITE}/code/{self.ref}"


@dataclass(frozen=True)
class Score:
    status: str  # PENDING, COMPLETE or ERROR
    public: float | None = None
    private: float | None = None
    error: str = ""


def username() -> str:
    """The user's name, as the client finds it. Raises Refused where there are no valid credentials."""
    # The first call of all: without a network it should not wait for long.
    return call_client("get_config_value", tries=2, name="username")


# Kernels


def push_kernel(
    ref: str, source: str, competitions: Sequence[str] = (), datasets: Sequence[str] = (), kernels: Sequence[str] = ()
) -> Kernel | None:
    """Push a script as a private kernel on T4s without internet, which starts it; None while Kaggle has no place free.

    Where Kaggle's latest version already has this very source and is not a failure, that version is returned
    and nothing pushed. Raises Refused.
    """
    slug = ref.partition("/")[2]
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", slug) or not 5 <= len(slug) <= 50:
        raise Refused(f"kernel slug {slug!r}: 5 to 50 of a-z, 0-9 and single hyphens, as in mars-unet-fold-0")
    about = {
        "id": ref, "title": slug.replace("-", " "),  # another title would make another slug
        "code_file": "script.py", "language": "python", "kernel_type": "script", "is_private": True,
        "enable_internet": False,  # the client's default is true
        "enable_gpu": True, "machine_shape": "NvidiaTeslaT4", "competition_sources": list(competitions),
        "dataset_sources": list(datasets), "kernel_sources": list(kernels),
    }  # fmt: skip
    same, version = before = _latest(ref, source)
    if same and (state := _status(ref)) in (*ACTIVE, "COMPLETE"):
        print(f"{ref}: version {version} is this very job, {state.lower()}; not pushed again")
        return Kernel(ref, version)

    def arrived() -> Kernel | None:
        same, version = now = _latest(ref, source)
        return Kernel(ref, version) if same and (now > before or _status(ref) in ACTIVE) else None

    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "script.py"
        script.write_text(source, encoding="utf-8")
        credentials.refuse_credentials([script])
        files.write_json(Path(folder) / "kernel-metadata.json", about)
        answer = call_client("kernels_push", arrived, folder=folder)
    if isinstance(answer, Kernel):
        return answer
    if "session count" in (answer["error"] or ""):
        return None
    if answer["error"]:
        raise Refused(f"{ref}: Kaggle refused the kernel: {answer['error']}")
    kernel = Kernel(ref, answer["versionNumber"])
    if not kernel.version:
        raise Refused(f"{ref}: Kaggle took the kernel but started no run; see {kernel.url}")
    kinds = ("dataset", "competition", "kernel")
    if lost := [f"{kind} {name}" for kind in kinds for name in answer[f"invalid{kind.title()}Sources"] or []]:
        raise Refused(
            f"{ref}: Kaggle has no {', '.join(lost)} for you; version {kernel.version} runs without: "
            f"stop it at {kernel.url}, correct the source, push again"
        )
    print(f"{ref}: version {kernel.version} pushed, {kernel.url}", flush=True)
    # Kaggle tells the status of a kernel and not of its version: wait until it no longer means the run before.
    for _ in range(4):
        if _status(ref) in ACTIVE:
            break
        time.sleep(30)
    return kernel


def follow_kernel(ref: str) -> None:
    """Wait until a kernel has run, printing each line of its log once, as it comes.

    Ctrl-C leaves the kernel running. Raises Refused where the run failed.
    """
    told = 0
    try:
        while True:
            run = call_client("kernels_status", tries=20, kernel=ref)
            if run["status"] != "QUEUED":
                with contextlib.suppress(Declined):  # the stream is cut now and then, and begins anew
                    for line in itertools.islice(client.read_log(ref), told, None):
                        print(line, flush=True)
                        told += 1
            if run["status"] not in ACTIVE:
                break
            time.sleep(30)
    except KeyboardInterrupt:
        print(f"{ref} keeps running on Kaggle; the same command picks it up again")
        raise
    if run["status"] != "COMPLETE":
        why = f": {run['failureMessage']}" if run["failureMessage"] else ""
        raise Refused(f"{ref}: ended on Kaggle as {run['status']}{why}; its log is above, and at {SITE}/code/{ref}")


def download_output(ref: str, folder: Path) -> None:
    """Bring what a kernel left, and its log, into an empty folder. Raises Refused."""
    call_client("kernels_output", kernel=ref, path=str(folder))


def _status(ref: str) -> str:
    """How a kernel's latest run stands: QUEUED, RUNNING, COMPLETE, ERROR or CANCEL_…; "" where there is none."""
    run = _find("kernels_status", kernel=ref)
    return run["status"] if run else ""


def _latest(ref: str, source: str) -> tuple[bool, int]:
    """Whether the latest version of a kernel has this source; its number, or 0 where Kaggle has or says none."""
    there = _find("get_kernel", ref=ref)
    if there is None:
        return False, 0
    return (there["blob"]["source"] or "").strip() == source.strip(), there["metadata"]["currentVersionNumber"] or 0


def _find(method: str, **arguments: Any) -> Any:
    """Ask about what may not be there; None where it is not, or not for this user."""
    try:
        return call_client(method, **arguments)
    except Declined as error:
        if error.status in (403, 404):
            return None
        raise


# Datasets


def upload_dataset(contents: Mapping[str, Path], slug: str) -> str:
    """Make a private dataset of some files, or a version of it, and wait until it is ready; returns owner/slug.

    `contents` maps where a file lies in the dataset to where it lies here. Raises Refused.
    """
    credentials.refuse_credentials(contents.values())
    ref = f"{username()}/{slug}"
    before = find_dataset(ref)
    size = sum(path.stat().st_size for path in contents.values()) / 1e6
    print(f"dataset {ref}: {'a new version' if before else 'new'}, {len(contents)} files, {size:.1f} MB", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for place, path in contents.items():
            link = Path(folder) / place
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path.resolve())
        title = slug.replace("-", " ")
        about = {"id": ref, "title": title, "licenses": [{"name": "other"}]}
        files.write_json(Path(folder) / "dataset-metadata.json", about)
        arguments: dict[str, Any] = {"folder": folder, "dir_mode": "zip"} | ({"version_notes": title} if before else {})
        method = "dataset_create_version" if before else "dataset_create_new"
        answer = call_client(method, lambda: {"status": "ok"} if find_dataset(ref) != before else None, **arguments)
    if answer["status"].lower() != "ok":
        raise Refused(f"dataset {ref}: Kaggle refused it: {answer['error']}")
    end = time.monotonic() + PATIENCE
    while True:
        state, version = find_dataset(ref) or ("unknown", 0)
        # While a new version is worked on, Kaggle serves the one before, ready as ever.
        if state == "ready" and (not before or not version or version > before[1]):
            return ref
        if state in ("failed", "deleted"):
            raise Refused(f"dataset {ref}: Kaggle could not prepare it ({state}); see {SITE}/datasets/{ref}")
        if time.monotonic() > end:
            raise Refused(f"dataset {ref}: still not ready ({state}); see {SITE}/datasets/{ref} and try again later")
        time.sleep(10)


def find_dataset(ref: str) -> tuple[str, int] | None:
    """Status and version of a dataset, owner/slug; None where there is none for this user. Raises Refused."""
    if (found := _find("dataset_status", dataset=ref, format="json")) is None:
        return None
    about = json.loads(found)
    return about["status"], about["current_version_number"] or 0


# Competitions


def find_size(competition: str, name: str) -> int | None:
    """Bytes of a file among the first 200 of a competition's data, 0 where Kaggle does not say; None: no such file.

    Raises Refused.
    """
    listed = _ask_about(competition, "competition_list_files", page_size=200)["files"] or []
    sizes = (file["totalBytes"] or 0 for file in listed if file["name"].rpartition("/")[2] == name)
    return next(sizes, None)


def send_submission(competition: str, what: Path | Kernel, message: str) -> int:
    """Submit a file, or the submission.csv that a kernel's version left; returns the submission's number.

    The last word of `message` must be like no other: a submission that ends in it already, of an interrupted
    start or with an answer that got lost, is found by it and not sent again. Raises Refused.
    """

    word = message.split(" ")[-1]
    page = f"{SITE}/competitions/{competition}/submissions"

    def find() -> dict[str, Any] | None:
        same = (entry for entry in _submissions(competition) if (entry["description"] or "").split(" ")[-1] == word)
        return next((entry for entry in same if entry["status"] != "ERROR"), None)

    def arrived() -> dict[str, Any]:
        for _ in range(4):
            if entry := find():
                return entry
            time.sleep(2)
        raise Refused(f"{competition}: no answer, and no such submission listed; see {page} before you submit again")

    if entry := find():
        return entry["ref"]
    about: dict[str, Any] = {"competition": competition, "message": message}
    if isinstance(what, Kernel):
        if not what.version:
            raise Refused(f"{what.ref}: Kaggle does not say which version it is; submit it at {what.url}")
        about |= {"kernel": what.ref, "kernel_version": what.version, "file_name": "submission.csv"}
        answer = call_client("competition_submit_code", arrived, **about)
    else:
        answer = call_client("competition_submit", arrived, file_name=str(what), **about)
    if answer.get("message") == "Could not submit to competition":
        raise Refused(f"{competition}: the upload of {what} failed and nothing was submitted; try again")
    return answer["ref"] or arrived()["ref"]


def wait_score(competition: str, ref: int, patience: float = PATIENCE) -> Score:
    """Wait until a submission is scored; status PENDING where `patience` seconds did not do. Raises Refused."""
    end = time.monotonic() + patience
    while True:
        entry = next((entry for entry in _submissions(competition) if entry["ref"] == ref), None)
        if entry and entry["status"] != "PENDING":
            public, private = (float(entry[key]) if entry[key] else None for key in ("publicScore", "privateScore"))
            return Score(entry["status"], public, private, entry["errorDescription"] or "")
        if time.monotonic() > end:
            return Score("PENDING")
        time.sleep(10)


def _submissions(competition: str) -> list[dict[str, Any]]:
    return _ask_about(competition, "competition_submissions", page_size=100) or []


def _ask_about(competition: str, method: str, **arguments: Any) -> Any:
    """Ask about a competition. Raises Refused where it was not joined."""
    try:
        return call_client(method, competition=competition, **arguments)
    except Declined as error:
        if error.status not in (403, 404):
            raise
        page = f"{SITE}/competitions/{competition}/rules"
        line = f"{competition}: not joined, or no such competition ({error}); accept its rules at {page}"
        raise Refused(line) from None
