"""The same command somewhere else: rehearsed in the sandbox, or run on Kaggle, its output brought back."""

import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from comp import arrays, bundle, files, page, remote, sandbox, submission
from comp.config import Competition
from comp.errors import Refused
from comp.runs import FULL, METRICS, MODEL, OOF, Fold

KERNEL = "kernel.json"  # beside a fold that Kaggle trained: which kernel, which version


@dataclass(frozen=True)
class Job:
    """One kernel: an entry script with its arguments, what it reads, and where its output belongs here."""

    entry: Path
    arguments: Sequence[str]
    name: str  # becomes the kernel's slug
    competition: Competition
    input: Path
    runs: Path
    submissions: Path = Path("submissions")
    fold: Path | None = None  # the folder that a training job fills
    folds: Sequence[Fold] = field(default_factory=tuple)  # what an ensemble reads

    @property
    def slug(self) -> str:
        return slug(self.name)


def slug(name: str) -> str:
    """A name as Kaggle takes it, 6 to 50 of a-z, 0-9 and "-"; a long one is cut in the middle, and stays itself."""
    plain = re.sub(r"[^a-z0-9]+", "-", f"comp-{name}".lower()).strip("-")
    if len(plain) <= 50:
        return plain
    return f"{plain[:27].strip('-')}-{hashlib.sha256(name.encode()).hexdigest()[:6]}-{plain[-15:].strip('-')}"


def notebooks(jobs: Iterable[Job]) -> None:
    """Write each job as a notebook, for those who work in Kaggle's editor. Raises Refused."""
    for job in jobs:
        path = job.runs / job.competition.name / f"{job.name}.ipynb"
        files.write_text(path, bundle.notebook(bundle.pack(job.entry, job.arguments)))
        print(f"{path}: upload it on Kaggle, and attach what it reads")


def rehearse(jobs: Iterable[Job], form: Literal["namespaces", "guard"] = "namespaces") -> None:
    """Run each job as Kaggle would, without a network; bring its output back. Raises Refused."""
    for job in jobs:
        if _done(job):
            continue
        script = _packed(job)
        result = sandbox.rehearse(script, _sandbox_inputs(job), form=form)
        try:
            if result.status:
                raise Refused(f"{job.name}: the script ended with status {result.status} in the sandbox; see above")
            bring(job, result.folder)
        finally:
            shutil.rmtree(result.folder, ignore_errors=True)


def kaggle(jobs: Iterable[Job], poll: float = 30.0) -> None:
    """Push each job, follow it to its end, bring its output back; what runs already is picked up. Raises Refused."""
    waiting = [job for job in jobs if not _done(job)]
    if not waiting:
        return
    user, pushed = remote.user(poll), []
    for job in waiting:
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "script.py").write_text(_packed(job), encoding="utf-8")
            remote.kernel_metadata(
                Path(folder),
                f"{user}/{job.slug}",
                "script.py",
                competitions=[job.competition.kaggle] if job.competition.kaggle else [],
                datasets=_datasets(job, poll),
                kernels=sorted({ref for fold in job.folds if (ref := _kernel_of(fold))}),
            )
            # Retrained folds do not change an ensemble's source, so one that is complete is run again.
            keep = ("QUEUED", "RUNNING", "COMPLETE") if job.fold else ("QUEUED", "RUNNING")
            kernel = remote.push(Path(folder), poll, keep=keep)
            print(f"{job.name}: {kernel.url}")
            pushed.append((job, kernel))
    failed: list[Refused] = []
    for job, kernel in pushed:
        try:
            remote.follow(kernel.ref, poll, fresh=4 * poll)
            with tempfile.TemporaryDirectory() as folder:
                remote.collect(kernel.ref, Path(folder), poll)
                bring(job, Path(folder), kernel)
        except Refused as refused:  # the other kernels' output is wanted all the same
            print(refused)
            failed.append(refused)
    if failed:
        raise failed[0]


def bring(job: Job, folder: Path, kernel: remote.Kernel | None = None) -> None:
    """Put a kernel's output where the same command here would have left it. Raises Refused."""
    about = {"ref": kernel.ref, "version": kernel.version, "url": kernel.url} if kernel else None
    if job.fold is not None:
        came = folder / "runs" / job.fold.relative_to(job.runs)
        if not (came / METRICS).exists():
            raise Refused(f"{job.name}: its output holds no finished {came.relative_to(folder)}")
        if about:
            files.write_json(came / KERNEL, about)
        # metrics.json comes last: it says that the fold is finished.
        for source in sorted((path for path in (folder / "runs").rglob("*") if path.is_file()), key=_metrics_last):
            target = job.runs / source.relative_to(folder / "runs")
            # The fold's own files, and those of the run and the competition that are not here yet.
            if not source.name.startswith(".") and (source.is_relative_to(came) or not target.exists()):
                with files.whole(target) as beside:
                    shutil.copyfile(source, beside)
        if job.fold.name != FULL:
            page.run_page(job.fold.parent)
        print(f"{job.fold}: {', '.join(sorted(path.name for path in job.fold.iterdir() if path.name[0] != '.'))}")
        return
    came = folder / "submission.csv"
    if not came.exists():
        raise Refused(f"{job.name}: its output holds no submission.csv")
    made_by = json.loads(came.with_suffix(".json").read_text(encoding="utf-8"))
    target = job.submissions / re.sub(r"[^A-Za-z0-9._+-]", "_", made_by["name"])
    test = arrays.load_test(job.competition, job.input)
    rows = submission.check(
        came, job.competition, test.ids, test.shapes, arrays.sample_submission(job.competition, job.input)
    )
    with files.whole(target) as beside:
        shutil.copyfile(came, beside)
    files.write_json(target.with_suffix(".json"), made_by | ({"kernel": about} if about else {}))
    print(f"{target}: {rows} rows, as Kaggle wants it")


def _metrics_last(path: Path) -> tuple[bool, Path]:
    return path.name == METRICS, path


def _done(job: Job) -> bool:
    if job.fold is not None and (job.fold / METRICS).exists():
        print(f"{job.fold} is finished; name another --run to train it again")
        return True
    return False


def _packed(job: Job) -> str:
    pack = bundle.pack(job.entry, job.arguments)
    script = bundle.script(pack)
    print(f"{job.name}: packed, {len(script) / 1000:.0f} KB, sha256 {pack.sha256[:12]}")
    return script


def _npz(job: Job) -> Path | None:
    # The demo is made where it runs.
    return None if job.competition.name == "demo" else arrays.find(job.competition.file, job.input)


def _sandbox_inputs(job: Job) -> dict[str, Path]:
    home = f"competitions/{job.competition.kaggle}" if job.competition.kaggle else f"datasets/me/{job.competition.name}"
    inputs = {
        f"{home}/{path.name}": path
        for path in (_npz(job), arrays.sample_submission(job.competition, job.input))
        if path
    }
    for fold in job.folds:
        run = fold.folder.parent.name
        inputs[f"notebooks/me/{run}-{fold.folder.name}/{_below_runs(job, fold)}"] = fold.folder
    return inputs


def _below_runs(job: Job, fold: Fold) -> Path:
    return Path("runs") / job.competition.name / fold.folder.parent.name / fold.folder.name


def _kernel_of(fold: Fold) -> str | None:
    file = fold.folder / KERNEL
    return json.loads(file.read_text(encoding="utf-8"))["ref"] if file.exists() else None


def _datasets(job: Job, poll: float) -> list[str]:
    """Kaggle datasets that the job reads; folds trained here and arrays that Kaggle lacks are uploaded as such."""
    refs = list(job.competition.datasets)
    files_of = {
        _below_runs(job, fold) / name: fold.folder / name
        for fold in job.folds
        if not _kernel_of(fold)
        for name in (MODEL, OOF, METRICS)
        if (fold.folder / name).exists()
    }
    if files_of:
        refs.append(_upload(job, slug(f"{job.name}-folds"), files_of, poll))
    if not job.competition.kaggle and not job.competition.datasets and (npz := _npz(job)):
        refs.append(_upload(job, slug(f"{job.competition.name}-arrays"), {Path(npz.name): npz}, poll))
    return refs


def _upload(job: Job, name: str, files_of: dict[Path, Path], poll: float) -> str:
    """Upload files (where they lie in the dataset: where they lie here), unless they went up before as they are."""
    stats = [(str(path), str(source), source.stat()) for path, source in sorted(files_of.items())]
    state = [(path, source, stat.st_size, stat.st_mtime_ns) for path, source, stat in stats]
    digest = hashlib.sha256(repr(state).encode()).hexdigest()
    record = job.runs / job.competition.name / f"{name}.uploaded.json"
    if record.exists() and (before := json.loads(record.read_text(encoding="utf-8")))["digest"] == digest:
        return before["ref"]
    with tempfile.TemporaryDirectory() as folder:
        for path, source in files_of.items():
            (Path(folder) / path).parent.mkdir(parents=True, exist_ok=True)
            (Path(folder) / path).symlink_to(source.absolute())
        ref = remote.upload(Path(folder), name, poll=poll)
    files.write_json(record, {"ref": ref, "digest": digest})
    return ref
