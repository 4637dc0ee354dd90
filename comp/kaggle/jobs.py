"""The same command somewhere else: rehearsed in the sandbox, or run on Kaggle, its output brought back."""

import contextlib
import hashlib
import json
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from comp import files
from comp.config import Competition, Model
from comp.data import arrays
from comp.errors import Refused
from comp.kaggle import api, packing, sandbox
from comp.kaggle.client import call_client
from comp.model import hub
from comp.prepare import build
from comp.submission.check import check_against_input
from comp.train import pages
from comp.train.runs import METRICS, Fold, fold_files, has_begun

MARGIN = 1200  # seconds that a kernel has beside its time budget, to begin and to finish
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
    folds: Sequence[Fold] = ()  # what it reads: those of an ensemble, or those that it starts from
    models: Sequence[Model] = ()  # that it trains
    seconds: float = 0.0  # that the time budget gives it; 0: there is no budget


def make_slug(name: str) -> str:
    """A name as Kaggle takes it, 6 to 50 of a-z, 0-9 and "-"; a long one is cut in the middle, and stays itself."""
    plain = re.sub(r"[^a-z0-9]+", "-", f"comp-{name}".lower()).strip("-")
    if len(plain) <= 50:
        return plain
    return f"{plain[:27].strip('-')}-{hashlib.sha256(name.encode()).hexdigest()[:6]}-{plain[-15:].strip('-')}"


def push_drafts(jobs: Iterable[Job]) -> None:
    """Push each job as a private notebook that does not run yet, for work in Kaggle's editor. Raises Refused."""
    for job in jobs:
        source, reads = _make_kernel(job)
        ref = f"{api.username()}/{make_slug(f'{job.name}-notebook')}"
        api.push_kernel(ref, packing.make_notebook(source), draft=True, **reads)


def run_in_sandbox(jobs: Iterable[Job]) -> None:
    """Run each job as Kaggle would, without a network; bring its output back. Raises Refused."""
    for job in (job for job in jobs if not _is_done(job)):
        found = _find_inputs(job, job.folds)
        inputs = {f"datasets/me/{name}/{place}": file for name in found for place, file in found[name].items()}
        slug, code = job.competition.kaggle or job.competition.name, job.competition.code_competition
        if (data := job.input / slug).is_dir():  # as prepare.py downloaded it
            inputs[f"competitions/{slug}"] = data
        elif not code and (sample := arrays.find_sample_submission(job.competition, job.input)):
            inputs[f"competitions/{slug}/{arrays.SAMPLE}"] = sample
        with tempfile.TemporaryDirectory(prefix="comp-working-", ignore_cleanup_errors=True) as working:
            status = sandbox.run_script(packing.pack(job.entry, job.arguments), inputs, Path(working))
            line = f"{job.name}: the script ended with status {status} in the sandbox; see above"
            bring_home(job, Path(working), failed=line if status else "")


def run_on_kaggle(jobs: Iterable[Job]) -> None:
    """Push each job, follow it to its end, bring its output back; what runs already is picked up. Raises Refused."""
    pushed, refusals = list[tuple[Job, api.Kernel]](), list[Refused]()

    def finish(job: Job, kernel: api.Kernel) -> None:
        try:  # of one that failed comes what it had finished, and then the other kernels' output
            failed = api.follow_kernel(kernel, _watch(job))
            with contextlib.suppress(Refused):  # the output comes, whether Kaggle tells its image or not
                latest = api.find_latest(kernel.ref)[0]
                kernel = latest if latest.version == kernel.version else kernel
            with tempfile.TemporaryDirectory() as folder:
                call_client("kernels_output", kernel=kernel.path, path=folder)
                bring_home(job, Path(folder), kernel, failed)
        except Refused as refused:
            print(refused)
            refusals.append(refused)
        finally:  # the pages that showed its log give way to what there is
            for run in {leaf.parents[1] for leaf in job.leaves if leaf.match("fold-*/*")}:
                try:
                    pages.write_run_page(run)
                except Exception:  # nothing is here yet; whatever it is, other kernels' output comes
                    (run / "report.html").unlink(missing_ok=True)

    waiting = [job for job in jobs if not _is_done(job)]
    limits = [int(MARGIN + 1.1 * job.seconds) if job.seconds else 0 for job in waiting]
    for number, job in enumerate(waiting):
        ref, (source, reads) = f"{api.username()}/{make_slug(job.name)}", _make_kernel(job)
        while (kernel := api.push_kernel(ref, source, limits[number], sum(limits[number:]) / 3600, **reads)) is None:
            print(f"{job.name}: waits until Kaggle has a place for it", flush=True)
            finish(*pushed.pop(0)) if pushed else time.sleep(30)
        pushed.append((job, kernel))
    for job, kernel in pushed:
        finish(job, kernel)
    if refusals:
        raise refusals[0]


def _make_kernel(job: Job) -> tuple[str, dict[str, Any]]:
    """A kernel's source, and by kind what it reads there; what Kaggle lacks of that is uploaded. Raises Refused."""
    own, datasets, kernels = job.competition, _ensure_datasets(job), {*filter(None, map(find_kernel, job.folds))}
    # What it reads is named in the source, so that the same source is the same job.
    versions = [*own.models, *(f"{name} {api.find_version(name)}" for name in own.datasets)]
    versions += sorted({kernel.path for kernel in kernels})
    reads = {"competition": [*filter(None, [own.kaggle])], "dataset": datasets, "model": [*own.models]}
    reads["kernel"] = sorted({kernel.ref for kernel in kernels})
    return packing.pack(job.entry, job.arguments) + "".join(f"# reads {name}\n" for name in datasets + versions), reads


def _watch(job: Job) -> Callable[[str], None]:
    """Something to say a kernel's lines to: it prints them, and shows them on the page of the run that it trains."""
    lines, due = list[str](), 0.0
    runs = {leaf.parents[1] for leaf in job.leaves if leaf.match("fold-*/*")}

    def say(line: str) -> None:
        nonlocal due
        print(line, flush=True)
        lines.append(line)
        if "epoch " in line and time.monotonic() > due:
            due = time.monotonic() + 20  # seconds, after which the page loads itself anew
            for run in runs:
                with contextlib.suppress(Exception):  # whatever becomes of the page, the kernel is followed
                    pages.write_run_page(run, pages.Section(f"On Kaggle: {job.name}", text="\n".join(lines)))

    return say


def bring_home(job: Job, folder: Path, kernel: api.Kernel | None = None, failed: str = "") -> None:
    """Put a kernel's output where the same command here would have left it.

    Raises Refused for what lacks, and with `failed`, why a kernel did not complete, once what it finished is here."""
    came = {leaf.parent: folder / "runs" / leaf.relative_to(job.runs) for leaf in job.leaves}
    there = [place for place, leaf in came.items() if leaf.exists()]
    lacking = [place for place in came if place not in there]
    # A run's own files stay as they are here, but where nothing was trained with them.
    fresh = [place.parent for place in there if came[place].name == METRICS and not has_begun(place.parent)]
    # metrics.json comes last: it says that the fold is finished.
    for source in sorted((folder / "runs").rglob("[!.]*"), key=lambda path: (path.name == METRICS, path)):
        target = job.runs / source.relative_to(folder / "runs")
        replaced = target.parent in there + fresh or not target.exists()
        if source.is_file() and replaced and target.parent not in lacking:
            with files.atomic_write(target) as beside:
                shutil.copyfile(source, beside)
    # No other kernel can read the output of one that failed.
    about = {"kernel": kernel._asdict()} if kernel and not failed else {}
    for place in there:
        if about:
            files.write_json(place / KERNEL, about["kernel"])
        else:
            (place / KERNEL).unlink(missing_ok=True)
        report = pages.write_run_page(place.parent) if place.name.startswith("fold-") else place / "report.html"
        print(f"{place}: brought here" + (f"; {report}" if report.exists() else ""))
    if failed or lacking:
        raise Refused(failed or f"{job.name}: its output holds no finished {lacking[0]}")
    if job.submissions is None:
        return
    made, side = folder / f"submission{job.competition.submission.ending}", folder / "submission.json"
    if not side.exists():
        raise Refused(f"{job.name}: its output holds no {made.name} with its .json")
    rows = check_against_input(made, job.competition, job.input)
    made_by = json.loads(side.read_text(encoding="utf-8"))
    target = job.submissions / re.sub(r"[^A-Za-z0-9._+-]", "_", made_by["name"])
    with files.atomic_write(target) as beside:
        shutil.copyfile(made, beside)
    files.write_json(target.with_suffix(".json"), made_by | about)
    print(f"{target}: {rows} rows")


def _is_done(job: Job) -> bool:
    if done := bool(job.leaves) and all(leaf.exists() for leaf in job.leaves):
        print(f"{job.name} is finished, in {job.leaves[-1].parent}; name another --run to train it again")
    return done


def _find_inputs(job: Job, folds: Iterable[Fold], with_arrays: bool = True) -> dict[str, dict[str, Path]]:
    """What a job needs of this machine: by a dataset's name, its files by their places in it. Raises Refused."""
    competition, weights = job.competition, dict[str, Path]()
    for model in job.models:
        local, wanted = Path(model.encoder_weights), hub.files_to_send(model)
        if local.suffix == ".safetensors" and not local.is_relative_to("/kaggle"):  # there it is of a dataset of theirs
            wanted[local.name] = local
        for name, path in wanted.items():
            if not path.is_file():
                raise Refused(f"model.encoder_weights = {path}: no such file")
            if weights.setdefault(name, path) != path:
                raise Refused(f"{path} and {weights[name]}: in a kernel, files of one name would be one; rename one")
    found = {f"{competition.name}-weights": weights}
    if with_arrays and competition.name != "demo":  # which is drawn where it runs
        build.check_hidden_test(competition, job.input)
        file = arrays.find_npz(competition.file, job.input)
        found[f"{competition.name}-arrays"] = {file.name: file}
    if extra := competition.arrays.extra:
        found[f"{competition.name}-extra"] = {Path(extra).name: arrays.find_npz(extra, job.input)}
    trained = [file for fold in folds for file in fold_files(fold.folder)]
    found[f"{job.name}-folds"] = {f"runs/{Path(*file.parts[-4:])}": file for file in trained}
    return {name: contents for name, contents in found.items() if contents}


def find_kernel(fold: Fold) -> api.Kernel | None:
    """The kernel that trained a fold; None for a fold that was trained here."""
    file = fold.folder / KERNEL
    return api.Kernel(**json.loads(file.read_text(encoding="utf-8"))) if file.exists() else None


def _ensure_datasets(job: Job) -> list[str]:
    """The Kaggle datasets that a job reads, as owner/slug; what Kaggle lacks is uploaded as such."""
    competition, here = job.competition, [fold for fold in job.folds if not find_kernel(fold)]
    refs, own = list(competition.datasets), job.input / competition.file
    size = api.find_size(competition.kaggle, own.name) if competition.kaggle and not refs else None
    if size and own.exists() and own.stat().st_size != size:
        raise Refused(f"{own}: not as large as the competition's own file of that name; to send it, rename arrays.file")
    for name, contents in _find_inputs(job, here, with_arrays=not refs and size is None).items():
        # Other contents are another dataset: a kernel reads the newest version of one, whichever it was pushed with.
        listed = "".join(f"{place} {files.sha256(file)}\n" for place, file in contents.items())
        slug = make_slug(f"{name}-{hashlib.sha256(listed.encode()).hexdigest()[:6]}")
        refs.append(api.upload_dataset(contents, slug))
    return refs
