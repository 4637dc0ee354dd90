"""The same command somewhere else: rehearsed in the sandbox, or run on Kaggle, its output brought back."""

import contextlib
import dataclasses
import hashlib
import itertools
import json
import re
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from comp import files
from comp.config import Competition
from comp.data import arrays
from comp.errors import Refused
from comp.kaggle import api, packing, sandbox
from comp.submission.check import check_against_input
from comp.train import overview
from comp.train.runs import METRICS, Fold, fold_files, has_begun

KERNEL = "kernel.json"  # beside a fold that Kaggle trained: which kernel, which version


@dataclass(frozen=True)
class Job:
    """One kernel: an entry script with its arguments, what it reads, and what it leaves."""

    entry: Path
    arguments: Sequence[str]
    name: str  # becomes the kernel's slug
    competition: Competition
    input: Path
    runs: Path
    leaves: Sequence[Path] = ()  # the last file of each folder below `runs` that the job fills
    submissions: Path | None = None  # where its submission.csv belongs, if it makes one
    folds: Sequence[Fold] = ()  # what an ensemble reads
    weights: Sequence[str] = ()  # `model.encoder_weights` of what it trains


def make_slug(name: str) -> str:
    """A name as Kaggle takes it, 6 to 50 of a-z, 0-9 and "-"; a long one is cut in the middle, and stays itself."""
    plain = re.sub(r"[^a-z0-9]+", "-", f"comp-{name}".lower()).strip("-")
    if len(plain) <= 50:
        return plain
    return f"{plain[:27].strip('-')}-{hashlib.sha256(name.encode()).hexdigest()[:6]}-{plain[-15:].strip('-')}"


def write_notebooks(jobs: Iterable[Job]) -> None:
    """Write each job as a notebook, for those who work in Kaggle's editor. Raises Refused."""
    for job in jobs:
        competition, path = job.competition, job.runs / job.competition.name / f"{job.name}.ipynb"
        files.write_text(path, packing.write_notebook(packing.pack(job.entry, job.arguments)))
        here = [*_arrays(job), *_weights(job), *(fold.folder for fold in job.folds)]
        reads = ", ".join(filter(None, [competition.kaggle, *competition.datasets, *map(str, here)]))
        print(f"{path}: upload it on Kaggle, and attach what it reads: {reads or 'nothing'}")


def run_in_sandbox(jobs: Iterable[Job]) -> None:
    """Run each job as Kaggle would, without a network; bring its output back. Raises Refused."""
    for job in jobs:
        if _done(job):
            continue
        competition = job.competition
        home = f"competitions/{competition.kaggle}" if competition.kaggle else f"datasets/me/{competition.name}"
        inputs = {f"{home}/{file.name}": file for file in _arrays(job)}
        if sample := arrays.find_sample_submission(competition, job.input):
            inputs[f"{home}/{arrays.SAMPLE}"] = sample
        inputs |= {f"datasets/me/weights/{file.name}": file for file in _weights(job)}
        for fold in job.folds:
            inputs |= {f"notebooks/me/{job.name}/{place}": file for place, file in _fold_files(job, fold).items()}
        with tempfile.TemporaryDirectory(prefix="comp-working-", ignore_cleanup_errors=True) as working:
            status = sandbox.run_script(_pack(job), inputs, Path(working))
            with contextlib.suppress(Refused) if status else contextlib.nullcontext():
                bring_home(job, Path(working))  # of one that failed what it had finished
            if status:
                raise Refused(f"{job.name}: the script ended with status {status} in the sandbox; see above")


def run_on_kaggle(jobs: Iterable[Job]) -> None:
    """Push each job, follow it to its end, bring its output back; what runs already is picked up. Raises Refused."""
    pushed: list[tuple[Job, api.Kernel]] = []
    failed: list[Refused] = []

    def finish(job: Job, kernel: api.Kernel) -> None:
        complete = None
        with _postponed(failed):
            api.follow_kernel(kernel.ref)
            complete = kernel
        # Of one that failed, too, for what it had finished; no other kernel could read it there.
        with _postponed(failed), tempfile.TemporaryDirectory() as folder:
            api.download_output(kernel.ref, Path(folder))
            bring_home(job, Path(folder), complete)

    for job in jobs:
        if _done(job):
            continue
        ref = f"{api.username()}/{make_slug(job.name)}"
        datasets, kernels = _datasets(job), dict(filter(None, map(_kernel_of, job.folds)))
        # What it reads is named in the source, so that the same source is the same job.
        reads = sorted((datasets | kernels).items())
        source = _pack(job) + "".join(f"# reads {name}: {state}\n" for name, state in reads)
        competitions = [job.competition.kaggle] if job.competition.kaggle else []
        while (kernel := api.push_kernel(ref, source, competitions, sorted(datasets), sorted(kernels))) is None:
            print(f"{job.name}: waits until Kaggle has a place for it", flush=True)
            if pushed:
                finish(*pushed.pop(0))
            else:
                time.sleep(30)
        pushed.append((job, kernel))
    for job, kernel in pushed:
        finish(job, kernel)
    if failed:
        raise failed[0]


@contextlib.contextmanager
def _postponed(failed: list[Refused]) -> Iterator[None]:
    """Keep a refusal for later: the other kernels' output is wanted all the same."""
    try:
        yield
    except Refused as refused:
        print(refused)
        failed.append(refused)


def bring_home(job: Job, folder: Path, kernel: api.Kernel | None = None) -> None:
    """Put a kernel's output where the same command here would have left it. Raises Refused for what it lacks."""
    about = {"kernel": dataclasses.asdict(kernel)} if kernel else {}
    came = {leaf.parent: folder / "runs" / leaf.relative_to(job.runs) for leaf in job.leaves}
    there = [place for place, leaf in came.items() if leaf.exists()]
    lacking = [place for place in came if place not in there]
    # A run's own files stay as they are here, but where nothing was trained with them.
    fresh = {place.parent for place in there if came[place].name == METRICS and not has_begun(place.parent)}
    # metrics.json comes last: it says that the fold is finished.
    for source in sorted((folder / "runs").rglob("[!.]*"), key=lambda path: (path.name == METRICS, path)):
        target = job.runs / source.relative_to(folder / "runs")
        replaced = target.parent in there or target.parent in fresh or not target.exists()
        if source.is_file() and replaced and target.parent not in lacking:
            _copy(source, target)
    for place in there:
        if kernel:
            files.write_json(place / KERNEL, about["kernel"])
        else:
            (place / KERNEL).unlink(missing_ok=True)
        report = overview.write_run_page(place.parent) if place.name.startswith("fold-") else place / "report.html"
        print(f"{place}: brought here" + (f"; {report}" if report.exists() else ""))
    if lacking:
        raise Refused(f"{job.name}: its output holds no finished {lacking[0]}")
    if job.submissions is None:
        return
    made = folder / "submission.csv"
    if not (made.exists() and made.with_suffix(".json").exists()):
        raise Refused(f"{job.name}: its output holds no submission.csv")
    made_by = json.loads(made.with_suffix(".json").read_text(encoding="utf-8"))
    target = job.submissions / re.sub(r"[^A-Za-z0-9._+-]", "_", made_by["name"])
    rows = check_against_input(made, job.competition, job.input)
    _copy(made, target)
    files.write_json(target.with_suffix(".json"), made_by | about)
    print(f"{target}: {rows} rows, as Kaggle wants it")


def _copy(source: Path, target: Path) -> None:
    with files.atomic_write(target) as beside:
        shutil.copyfile(source, beside)


def _done(job: Job) -> bool:
    done = bool(job.leaves) and all(leaf.exists() for leaf in job.leaves)
    if done:
        print(f"{job.name} is finished, in {job.leaves[-1].parent}; name another --run to train it again")
    return done


def _pack(job: Job) -> str:
    pack = packing.pack(job.entry, job.arguments)
    script = packing.write_script(pack)
    print(f"{job.name}: packed, {len(script) / 1000:.0f} KB, sha256 {pack.sha256[:12]}", flush=True)
    return script


# What a job reads


def _arrays(job: Job) -> list[Path]:
    # The demo is made where it runs.
    competition = job.competition
    return [] if competition.name == "demo" else [arrays.find_npz(competition.file, job.input)]


def _weights(job: Job) -> list[Path]:
    """Local files of encoder weights. Raises Refused for what a kernel cannot get."""
    found: dict[str, Path] = {}
    for weights in sorted({*job.weights} - {"none"}):
        if not weights.endswith(".safetensors"):
            raise Refused(
                f"model.encoder_weights = {weights}: a kernel has no network to fetch it; "
                "give a local .safetensors file, which travels along, or none"
            )
        if weights.startswith("/kaggle/"):  # it is there, in one of the competition's `datasets`
            continue
        if not Path(weights).is_file():
            raise Refused(f"model.encoder_weights = {weights}: no such file")
        path = Path(weights)
        if found.setdefault(path.name, path).resolve() != path.resolve():
            raise Refused(f"{path} and {found[path.name]}: in a kernel, files of one name would be one; rename one")
    return [*found.values()]


def _fold_files(job: Job, fold: Fold) -> dict[str, Path]:
    """What an ensemble reads of a fold, by where it looks for it below /kaggle/input/<…>."""
    place = f"runs/{job.competition.name}/{fold.folder.parent.name}/{fold.folder.name}"
    return {f"{place}/{file.name}": file for file in fold_files(fold.folder)}


def _kernel_of(fold: Fold) -> tuple[str, int] | None:
    """The kernel that trained a fold, and its version; None for a fold that was trained here."""
    file = fold.folder / KERNEL
    if not file.exists():
        return None
    about = json.loads(file.read_text(encoding="utf-8"))
    return about["ref"], about["version"]


def _datasets(job: Job) -> dict[str, str]:
    """The Kaggle datasets that a job reads, each with its state; what Kaggle lacks is uploaded as such."""
    competition = job.competition
    here = [_fold_files(job, fold).items() for fold in job.folds if not _kernel_of(fold)]
    lacking = {f"{job.name}-folds": dict(itertools.chain(*here))}
    for file in _weights(job):
        # Other weights are another dataset: a kernel reads the newest version of one, whichever it was pushed with.
        lacking[f"{competition.name}-{file.stem}-{files.sha256(file)[:6]}"] = {file.name: file}
    if not competition.datasets:
        for file in _arrays(job):
            there = api.find_size(competition.kaggle, file.name) if competition.kaggle else None
            if there is None:
                lacking[f"{competition.name}-arrays"] = {file.name: file}
            elif there not in (0, file.stat().st_size):
                print(
                    f"{file}: not as large as the competition's own file of that name, which the kernel reads; "
                    "to send yours, give it another name, as competition.arrays.file"
                )
    uploaded = (_upload(job, make_slug(name), contents) for name, contents in lacking.items() if contents)
    versions = {ref: str((api.find_dataset(ref) or ("", 0))[1]) for ref in competition.datasets}
    return versions | dict(uploaded)


def _upload(job: Job, name: str, contents: dict[str, Path]) -> tuple[str, str]:
    """Upload files, unless they went up before as they are; the dataset's owner/slug, and a hash of what it holds."""
    listed = "".join(f"{place} {files.sha256(file)}\n" for place, file in contents.items())
    state = hashlib.sha256(listed.encode()).hexdigest()
    record = job.runs / job.competition.name / f"{name}.uploaded.json"
    before = json.loads(record.read_text(encoding="utf-8")) if record.exists() else {"sha256": ""}
    ours = before["sha256"] == state and before["ref"].startswith(f"{api.username()}/")
    if not (ours and api.find_dataset(before["ref"])):
        before = {"ref": api.upload_dataset(contents, name), "sha256": state}
        files.write_json(record, before)
    return before["ref"], state
