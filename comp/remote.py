"""Kaggle from here: push a kernel, follow it, collect its output; upload datasets; submit and wait for scores.

    kernel_metadata(folder, f"{user()}/mars-unet-fold-0", "script.py", competitions=["an2dl-mars"])
    kernel = push(folder)
    follow(kernel.ref)
    collect(kernel.ref, Path("runs/…"))

Nothing that changes Kaggle is done twice: where an answer got lost, Kaggle is asked first.
"""

import contextlib
import filecmp
import io
import json
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from comp import bundle, client, credentials, files
from comp.client import SITE, Declined, read
from comp.errors import Refused

ACTIVE = ("QUEUED", "RUNNING", "CANCEL_REQUESTED")
HOURS = 3600.0
Say = Callable[[str], None]


@dataclass(frozen=True)
class Kernel:
    ref: str  # owner/slug
    version: int  # 0: Kaggle has none, or does not say
    url: str


@dataclass(frozen=True)
class Score:
    status: str  # PENDING, COMPLETE or ERROR
    public: float | None = None
    private: float | None = None
    error: str = ""


def user(poll: float = 2.0) -> str:
    """The user's name, as the client finds it. Raises Refused where there are no valid credentials."""
    return read("user", poll)


# Kernels


def kernel_metadata(
    folder: Path,
    ref: str,
    code_file: str,
    *,
    title: str = "",
    datasets: Iterable[str] = (),
    competitions: Iterable[str] = (),
    kernels: Iterable[str] = (),
    models: Iterable[str] = (),
    machine_shape: str = "NvidiaTeslaT4",
) -> dict[str, Any]:
    """Write kernel-metadata.json beside `code_file` (.py or .ipynb) in `folder`, every field set on purpose.

    `ref` is owner/slug; the title is the slug with spaces unless given; an empty `machine_shape` means no
    GPU; always private and without internet. Returns what was written. Raises Refused.
    """
    metadata = {
        "id": ref,
        "title": title or ref.partition("/")[2].replace("-", " "),
        "code_file": code_file,
        "language": "python",
        "kernel_type": "notebook" if code_file.endswith(".ipynb") else "script",
        "is_private": True,
        "enable_gpu": bool(machine_shape),
        "enable_tpu": False,
        "enable_internet": False,  # the client's own default is true
        "machine_shape": machine_shape or None,
        "keywords": [],
        "dataset_sources": list(datasets),
        "competition_sources": list(competitions),
        "kernel_sources": list(kernels),
        "model_sources": list(models),
    }
    _source(Path(folder), metadata)
    files.write_json(Path(folder) / "kernel-metadata.json", metadata)
    return metadata


def push(
    folder: Path,
    poll: float = 30.0,
    say: Say = print,
    keep: Sequence[str] = ("QUEUED", "RUNNING", "COMPLETE"),
) -> Kernel:
    """Push the kernel in `folder`, which starts it.

    Where Kaggle's latest version already has this very source and its run stands at one of `keep`, that
    version is returned and nothing pushed. While Kaggle runs as many kernels as it allows, waits. Raises Refused.
    """
    metadata = json.loads((Path(folder) / "kernel-metadata.json").read_text(encoding="utf-8"))
    ref, source = metadata["id"], _source(Path(folder), metadata)
    before, same_before = _latest(ref, source, poll)
    if same_before and status(ref, poll) in keep:
        say(f"{ref}: version {before.version} is this very source; not pushed again")
        return before

    def arrived() -> Kernel | None:
        now, same = _latest(ref, source, poll)
        newer = not same_before or now.version > before.version
        return now if same and (newer or status(ref, poll) in ACTIVE) else None

    waiting = False
    while True:
        answer = client.write("kernels_push", poll, arrived, folder=str(folder))
        if isinstance(answer, Kernel):
            return answer
        if "session count" not in (answer["error"] or ""):
            break
        if not waiting:
            say(f"{ref}: waits for a free place ({answer['error']})")
        waiting = True
        time.sleep(poll)
    if answer["error"]:
        raise Refused(f"{ref}: Kaggle refused the kernel: {answer['error']}")
    if not answer["versionNumber"]:
        raise Refused(f"{ref}: Kaggle took the kernel but started no run; see {SITE}/code/{ref}")
    kinds = ("dataset", "competition", "kernel", "model")
    refused = [f"{kind} {name}" for kind in kinds for name in answer[f"invalid{kind.title()}Sources"] or []]
    if refused:
        raise Refused(
            f"{ref}: Kaggle has no {', '.join(refused)} for you; version {answer['versionNumber']} runs without: "
            f"stop it at {answer['url']}, correct the source, push again"
        )
    return Kernel(ref, answer["versionNumber"], answer["url"])


def status(ref: str, poll: float = 2.0) -> str:
    """How a kernel's latest run stands: QUEUED, RUNNING, COMPLETE, ERROR or CANCEL_…. Raises Refused."""
    return read("kernels_status", poll, kernel=ref)["status"]


def log(ref: str, poll: float = 2.0) -> list[str]:
    """The log of a kernel's latest run; empty while Kaggle keeps none. Raises Refused."""
    return _log_lines(read("kernels_logs", poll, kernel=ref))


def follow(ref: str, poll: float = 30.0, fresh: float = 0.0, say: Say = print) -> str:
    """Wait until a kernel has run, saying each line of its log as it comes; returns "COMPLETE".

    Kaggle tells the status of a kernel and not of its version: for the first `fresh` seconds after a push
    an end is believed only once the run was seen alive. Ctrl-C leaves the kernel running. Raises Refused
    where the run failed.
    """
    told, began, alive = client.Log(ref, say), time.monotonic(), False
    try:
        while True:
            waited = alive or time.monotonic() - began >= fresh
            try:
                run = read("kernels_status", poll, tries=20, kernel=ref)
            except Declined as error:
                if error.status != 404 or waited:  # 404: no run yet
                    raise
                time.sleep(poll)
                continue
            alive = alive or run["status"] in ACTIVE
            if run["status"] not in ACTIVE and (alive or waited):
                break
            if run["status"] == "RUNNING":
                told.listen()
            time.sleep(poll)
    except KeyboardInterrupt:
        say(f"{ref} keeps running on Kaggle; the same command picks it up again")
        raise
    finally:
        told.stop()
    told.tell(log(ref, poll))
    if run["status"] != "COMPLETE":
        why = f": {run['failureMessage']}" if run["failureMessage"] else ""
        raise Refused(f"{ref}: ended on Kaggle as {run['status']}{why}; its log is above, and at {SITE}/code/{ref}")
    return run["status"]


def collect(ref: str, folder: Path, poll: float = 2.0) -> list[Path]:
    """Bring a kernel's output, and its log as plain <slug>.log, into `folder`; returns the files there.

    Everything is downloaded beside and then moved. A file that is there already must be the same (but for the
    log, which is replaced), else nothing is moved. Raises Refused.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".collect-", dir=folder) as temporary:
        beside = Path(temporary)
        read("kernels_output", poll, limit=6 * HOURS, kernel=ref, path=temporary)
        record = beside / f"{ref.partition('/')[2]}.log"
        if record.exists():
            record.write_text("\n".join(_log_lines(record.read_text(encoding="utf-8"))) + "\n", encoding="utf-8")
        arrived = sorted(path.relative_to(beside) for path in beside.rglob("*") if path.is_file())
        for path in arrived:
            there = folder / path
            fits = not there.exists() or (there.is_file() and filecmp.cmp(beside / path, there, shallow=False))
            if not fits and path != Path(record.name):
                raise Refused(f"{there}: not what {ref} brought under this name; move it away and collect again")
        (folder / record.name).unlink(missing_ok=True)
        _move(beside, folder)
        return [folder / path for path in arrived]


# Datasets


def upload(
    folder: Path, slug: str, title: str = "", poll: float = 10.0, patience: float = 1 * HOURS, say: Say = print
) -> str:
    """Make a private dataset of what lies in `folder`, or a version of it, and wait until it is ready.

    Subfolders stay subfolders. Returns owner/slug. Raises Refused.
    """
    folder, title = Path(folder), title or slug.replace("-", " ")
    for name, value in (("slug", slug), ("title", title)):
        if not 6 <= len(value) <= 50:
            raise Refused(f"dataset {name} {value!r}: {len(value)} characters; Kaggle takes 6 to 50")
    paths = [path for path in folder.rglob("*") if path.is_file()]
    if not paths:
        raise Refused(f"{folder}: nothing to upload")
    credentials.refuse(paths)
    ref = f"{user(poll)}/{slug}"
    before = _dataset(ref, poll)

    def arrived() -> dict[str, str] | None:
        return {"status": "ok"} if _dataset(ref, poll) != before else None

    with tempfile.TemporaryDirectory() as stage:
        # The client wants its metadata among the files; the user's folder stays as it is.
        for path in folder.iterdir():
            (Path(stage) / path.name).symlink_to(path.resolve())
        about = {"id": ref, "title": title, "licenses": [{"name": "other"}]}
        files.write_json(Path(stage) / "dataset-metadata.json", about)
        method = "dataset_create_version" if before else "dataset_create_new"
        notes = {"version_notes": title} if before else {}
        answer = client.write(method, poll, arrived, limit=6 * HOURS, folder=stage, dir_mode="zip", **notes)
    if answer["status"].lower() != "ok":
        raise Refused(f"dataset {ref}: Kaggle refused it: {answer['error']}")
    say(f"dataset {ref}: uploaded; waiting until Kaggle has it ready")
    end = time.monotonic() + patience
    while True:
        state, version = _dataset(ref, poll) or ("unknown", 0)
        # While a new version is worked on, Kaggle serves the one before, ready as ever.
        if state == "ready" and (not before or not version or version > before[1]):
            return ref
        if state in ("failed", "deleted"):
            raise Refused(f"dataset {ref}: Kaggle could not prepare it ({state}); see {SITE}/datasets/{ref}")
        if time.monotonic() > end:
            raise Refused(f"dataset {ref}: still not ready ({state}); see {SITE}/datasets/{ref} and try again later")
        time.sleep(poll)


# Submissions


def submit(competition: str, what: Path | Kernel, message: str, poll: float = 2.0) -> int:
    """Submit a file, or the submission.csv that a kernel's version left; returns the submission's number.

    `message` should be like no other: a submission whose answer got lost is found by it. Raises Refused.
    """
    before = {entry["ref"] for entry in _submissions(competition, poll)}
    about = {"competition": competition, "message": message}
    if isinstance(what, Kernel):
        if not what.version:
            raise Refused(f"{what.ref}: Kaggle does not say which version it is; submit it at {what.url}")
        method = "competition_submit_code"
        about |= {"kernel": what.ref, "kernel_version": what.version, "file_name": "submission.csv"}
    else:
        method = "competition_submit"
        about |= {"file_name": str(what)}

    def arrived() -> dict[str, int]:
        for _ in range(4):
            for entry in _submissions(competition, poll):
                if entry["ref"] not in before and entry["description"] == message:
                    return entry
            time.sleep(poll)
        page = f"{SITE}/competitions/{competition}/submissions"
        raise Refused(f"{competition}: no answer, and no such submission listed; see {page} before you submit again")

    with _joined(competition):
        answer = client.write(method, poll, arrived, limit=1 * HOURS, **about)
    if answer.get("message") == "Could not submit to competition":
        raise Refused(f"{competition}: the upload of {what} failed and nothing was submitted; try again")
    return answer["ref"] or arrived()["ref"]


def submitted(competition: str, message: str, poll: float = 2.0) -> int | None:
    """The number of the submission that bears this message, if there is one. Raises Refused."""
    return next((entry["ref"] for entry in _submissions(competition, poll) if entry["description"] == message), None)


def wait_score(competition: str, ref: int, poll: float = 10.0, patience: float = 1 * HOURS) -> Score:
    """Wait until a submission is scored; status PENDING where `patience` seconds did not do. Raises Refused."""
    end = time.monotonic() + patience
    while True:
        entry = next((entry for entry in _submissions(competition, poll) if entry["ref"] == ref), None)
        if entry and entry["status"] != "PENDING":
            public, private = (float(entry[key]) if entry[key] else None for key in ("publicScore", "privateScore"))
            return Score(entry["status"], public, private, entry["errorDescription"] or "")
        if time.monotonic() > end:
            return Score("PENDING")
        time.sleep(poll)


def _submissions(competition: str, poll: float) -> list[dict[str, Any]]:
    with _joined(competition):
        return read("competition_submissions", poll, competition=competition, page_size=100) or []


@contextlib.contextmanager
def _joined(competition: str) -> Any:
    try:
        yield
    except Declined as error:
        if error.status not in (403, 404):
            raise
        page = f"{SITE}/competitions/{competition}/rules"
        raise Refused(
            f"{competition}: not joined, or no such competition ({error}); accept its rules at {page}"
        ) from None


# Helpers


def _source(folder: Path, metadata: dict[str, Any]) -> str:
    """The source as the client will send it. Raises Refused for what Kaggle would not take."""
    slug, title, path = metadata["id"].partition("/")[2], metadata["title"], folder / metadata["code_file"]
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", slug) or not 5 <= len(slug) <= 50:
        raise Refused(f"kernel slug {slug!r}: 5 to 50 of a-z, 0-9 and single hyphens, as in mars-unet-fold-0")
    if re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") != slug:
        raise Refused(f"kernel title {title!r} makes another slug than {slug!r}; try {slug.replace('-', ' ')!r}")
    if not path.is_file():
        raise Refused(f"{path}: no such file")
    credentials.refuse([path])
    text = path.read_text(encoding="utf-8")
    if metadata["kernel_type"] == "notebook":
        text = json.dumps(json.loads(text) | {"cells": _cells(text)})
    if (size := len(text.encode())) >= bundle.LIMIT:
        raise Refused(f"{path}: {size:,} bytes; Kaggle takes fewer than {bundle.LIMIT:,}, so put data into a dataset")
    return text


def _cells(notebook: str) -> list[dict[str, Any]]:
    cells = json.loads(notebook)["cells"]
    return [
        cell | {"source": "".join(cell["source"])} | ({"outputs": []} if cell["cell_type"] == "code" else {})
        for cell in cells
    ]


def _latest(ref: str, source: str, poll: float) -> tuple[Kernel, bool]:
    """Kaggle's latest version of a kernel, and whether its source is `source`."""
    try:
        there = read("get_kernel", poll, ref=ref)
    except Declined as error:
        if error.status not in (403, 404):
            raise
        return Kernel(ref, 0, f"{SITE}/code/{ref}"), False
    texts = [there["blob"]["source"] or "", source]
    with contextlib.suppress(ValueError, KeyError):  # of a notebook the cells count, not how they are kept
        texts = ["\n".join(cell["source"] for cell in _cells(text)) for text in texts]
    version = there["metadata"]["currentVersionNumber"] or 0
    return Kernel(ref, version, f"{SITE}/code/{ref}"), texts[0].strip() == texts[1].strip()


def _dataset(ref: str, poll: float) -> tuple[str, int] | None:
    try:
        about = json.loads(read("dataset_status", poll, dataset=ref, format="json"))
    except Declined as error:
        if error.status not in (403, 404):
            raise
        return None
    return about["status"], about["current_version_number"] or 0


def _log_lines(text: str) -> list[str]:
    """Plain lines of a log as Kaggle keeps it: a JSON array of events."""
    with contextlib.suppress(json.JSONDecodeError):
        text = "".join(map(client.event_text, json.loads(text)))
    return [line.rstrip("\n") for line in io.StringIO(credentials.strike(text), newline=None)]


def _move(source: Path, target: Path) -> None:
    """Move a folder's entries, each whole; what is there already is the same."""
    for entry in source.iterdir():
        there = target / entry.name
        if not there.exists():
            os.replace(entry, there)
        elif entry.is_dir():
            _move(entry, there)
