"""The same command somewhere else: rehearsed in the sandbox, or run on Kaggle, its output brought back."""

import dataclasses
import hashlib
import json
import re
import shutil
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from comp import arrays, bundle, files, page, remote, sandbox, submission
from comp.config import Config
from comp.errors import Refused
from comp.runs import METRICS, MODEL, OOF, Fold

KERNEL = "kernel.json"  # beside a fold that Kaggle trained: which kernel, which version


@dataclass(frozen=True)
class Job:
    """One kernel: an entry script with its arguments, what it reads, and what it leaves."""

    entry: Path
    arguments: Sequence[str]
    name: str  # becomes the kernel's slug
    config: Config
    input: Path
    runs: Path
    leaves: Sequence[Path] = ()  # the last file of each folder below `runs` that the job fills
    submissions: Path | None = None  # where its submission.csv belongs, if it makes one
    folds: Sequence[Fold] = ()  # what an ensemble reads
    weights: Sequence[str] = ()  # `model.encoder_weights` of what it trains


def slug(name: str) -> str:
    """A name as Kaggle takes it, 6 to 50 of a-z, 0-9 and "-"; a long one is cut in the middle, and stays itself."""
    plain = re.sub(r"[^a-z0-9]+", "-", f"comp-{name}".lower()).strip("-")
    if len(plain) <= 50:
        return plain
    return f"{plain[:27].strip('-')}-{hashlib.sha256(name.encode()).hexdigest()[:6]}-{plain[-15:].strip('-')}"


def notebooks(jobs: Iterable[Job]) -> None:
    """Write each job as a notebook, for those who work in Kaggle's editor. Raises Refused."""
    for job in jobs:
        path = job.runs / job.config.competition.name / f"{job.name}.ipynb"
        files.write_text(path, bundle.notebook(bundle.pack(job.entry, job.arguments)))
        competition = job.config.competition
        reads = [competition.kaggle, *competition.datasets, *(str(file) for file in (*_arrays(job), *_weights(job)))]
        reads += [str(fold.folder) for fold in job.folds]
        print(f"{path}: upload it on Kaggle, and attach what it reads: {', '.join(filter(None, reads)) or 'nothing'}")


def rehearse(jobs: Iterable[Job], form: Literal["namespaces", "guard"] = "namespaces") -> None:
    """Run each job as Kaggle would, without a network; bring its output back. Raises Refused."""
    for job in jobs:
        if _done(job):
            continue
        competition = job.config.competition
        home = f"competitions/{competition.kaggle}" if competition.kaggle else f"datasets/me/{competition.name}"
        inputs = {f"{home}/{file.name}": file for file in _arrays(job)}
        if sample := arrays.sample_submission(competition, job.input):
            inputs[f"{home}/{arrays.SAMPLE}"] = sample
        inputs |= {f"datasets/me/weights/{file.name}": file for file in _weights(job)}
        for fold in job.folds:
            inputs |= {f"notebooks/me/{job.name}/{place}": file for place, file in _fold_files(job, fold).items()}
        result = sandbox.rehearse(_packed(job), inputs, form=form)
        try:
            if result.status:
                raise Refused(f"{job.name}: the script ended with status {result.status} in the sandbox; see above")
            bring(job, result.folder)
        finally:
            shutil.rmtree(result.folder, ignore_errors=True)


def kaggle(jobs: Iterable[Job]) -> None:
    """Push each job, follow it to its end, bring its output back; what runs already is picked up. Raises Refused."""
    waiting = [job for job in jobs if not _done(job)]
    if not waiting:
        return
    user = remote.user()
    pushed: list[tuple[Job, remote.Kernel]] = []
    failed: list[Refused] = []

    def finish(job: Job, kernel: remote.Kernel) -> None:
        try:
            remote.follow(kernel.ref)
            with tempfile.TemporaryDirectory() as folder:
                remote.output(kernel.ref, Path(folder))
                bring(job, Path(folder), kernel)
        except Refused as refused:  # the other kernels' output is wanted all the same
            print(refused)
            failed.append(refused)

    for job in waiting:
        competition = [job.config.competition.kaggle] if job.config.competition.kaggle else []
        datasets, kernels = _datasets(job), sorted({ref for ref, _ in map(_kernel_of, job.folds) if ref})
        reads = [*datasets.items(), *(map(_kernel_of, job.folds))]
        # What it reads is named in the source, so that the same source is the same job.
        source = _packed(job) + "".join(f"# reads {ref}: {state}\n" for ref, state in sorted(set(reads)) if ref)
        about = {"competitions": competition, "datasets": sorted(datasets), "kernels": kernels}
        while (kernel := remote.push(f"{user}/{slug(job.name)}", source, **about)) is None:
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


def bring(job: Job, folder: Path, kernel: remote.Kernel | None = None) -> None:
    """Put a kernel's output where the same command here would have left it. Raises Refused."""
    about = dataclasses.asdict(kernel) if kernel else None
    for leaf in job.leaves:
        came = folder / "runs" / leaf.relative_to(job.runs)
        if not came.exists():
            raise Refused(f"{job.name}: its output holds no finished {came.parent.relative_to(folder)}")
        if about:
            files.write_json(came.with_name(KERNEL), about)
    filled = [leaf.parent for leaf in job.leaves]
    arrived = [path for path in (folder / "runs").rglob("*") if path.is_file() and path.name[0] != "."]
    # metrics.json comes last: it says that the fold is finished.
    for source in sorted(arrived, key=lambda path: (path.name == METRICS, path)):
        target = job.runs / source.relative_to(folder / "runs")
        # Files of the run and the competition stay as they are here.
        if target.parent in filled or not target.exists():
            _place(source, target)
    for place in filled:
        report = page.run_page(place.parent) if place.name.startswith("fold-") else place / "report.html"
        print(f"{place}: brought here" + (f"; {report}" if report.exists() else ""))
    if job.submissions is None:
        return
    came = folder / "submission.csv"
    if not came.exists():
        raise Refused(f"{job.name}: its output holds no submission.csv")
    made_by = json.loads(came.with_suffix(".json").read_text(encoding="utf-8"))
    target = job.submissions / re.sub(r"[^A-Za-z0-9._+-]", "_", made_by["name"])
    competition = job.config.competition
    test, sample = arrays.load_test(competition, job.input), arrays.sample_submission(competition, job.input)
    rows = submission.check(came, competition, test.ids, test.shapes, sample)
    _place(came, target)
    files.write_json(target.with_suffix(".json"), made_by | ({"kernel": about} if about else {}))
    print(f"{target}: {rows} rows, as Kaggle wants it")


def _place(source: Path, target: Path) -> None:
    with files.whole(target) as beside:
        shutil.copyfile(source, beside)


def _done(job: Job) -> bool:
    done = bool(job.leaves) and all(leaf.exists() for leaf in job.leaves)
    if done:
        print(f"{job.name} is finished, in {job.leaves[-1].parent}; name another --run to train it again")
    return done


def _packed(job: Job) -> str:
    pack = bundle.pack(job.entry, job.arguments)
    script = bundle.script(pack)
    print(f"{job.name}: packed, {len(script) / 1000:.0f} KB, sha256 {pack.sha256[:12]}", flush=True)
    return script


# What a job reads


def _arrays(job: Job) -> list[Path]:
    # The demo is made where it runs.
    competition = job.config.competition
    return [] if competition.name == "demo" else [arrays.find(competition.file, job.input)]


def _weights(job: Job) -> list[Path]:
    """Local files of encoder weights. Raises Refused for what a kernel cannot get."""
    found = []
    for weights in {weights for weights in job.weights if weights != "none"}:
        if not weights.endswith(".safetensors"):
            raise Refused(
                f"model.encoder_weights = {weights}: a kernel has no network to fetch it; "
                "give a local .safetensors file, which travels along, or none"
            )
        if weights.startswith("/kaggle/"):  # it is there, in one of the competition's `datasets`
            continue
        if not Path(weights).is_file():
            raise Refused(f"model.encoder_weights = {weights}: no such file")
        found.append(Path(weights))
    return found


def _fold_files(job: Job, fold: Fold) -> dict[str, Path]:
    """What an ensemble reads of a fold, by where it looks for it below /kaggle/input/<…>."""
    place = f"runs/{job.config.competition.name}/{fold.folder.parent.name}/{fold.folder.name}"
    return {f"{place}/{name}": fold.folder / name for name in (MODEL, OOF, METRICS)}


def _kernel_of(fold: Fold) -> tuple[str, str]:
    """The kernel that trained a fold, and its version; nothing for a fold that was trained here."""
    file = fold.folder / KERNEL
    about = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {"ref": "", "version": ""}
    return about["ref"], str(about["version"])


def _datasets(job: Job) -> dict[str, str]:
    """The Kaggle datasets that a job reads, each with its state; what Kaggle lacks is uploaded as such."""
    competition = job.config.competition
    datasets = dict.fromkeys(competition.datasets, "as it is")
    folds = {}
    for fold in job.folds:
        if not _kernel_of(fold)[0]:
            folds |= _fold_files(job, fold)
    lacking = {f"{job.name}-folds": folds}
    for file in _weights(job):
        lacking[f"{competition.name}-{file.stem}"] = {file.name: file}
    if not competition.datasets:
        for file in _arrays(job):
            if not (competition.kaggle and remote.has_file(competition.kaggle, file.name)):
                lacking[f"{competition.name}-arrays"] = {file.name: file}
    for name, contents in lacking.items():
        if contents:
            ref, state = _upload(job, slug(name), contents)
            datasets[ref] = state
    return datasets


def _upload(job: Job, name: str, contents: dict[str, Path]) -> tuple[str, str]:
    """Upload files, unless they went up before as they are; the dataset's owner/slug, and a hash of what it holds."""
    state = hashlib.sha256("".join(f"{place} {files.sha256(file)}\n" for place, file in contents.items()).encode())
    record = job.runs / job.config.competition.name / f"{name}.uploaded.json"
    if not record.exists() or json.loads(record.read_text(encoding="utf-8"))["sha256"] != state.hexdigest():
        ref = remote.upload(contents, name)
        files.write_json(record, {"ref": ref, "sha256": state.hexdigest()})
    return json.loads(record.read_text(encoding="utf-8"))["ref"], state.hexdigest()
