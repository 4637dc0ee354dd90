"""Train one fold of a competition, or all of them.

    python kernels/train_fold.py --fold 0                       # the demo competition; no data needed
    python kernels/train_fold.py --competition mars --fold all   # on two GPUs, two folds at a time
    python kernels/train_fold.py --competition mars --fold full  # one model of all images, validated on none
    python kernels/train_fold.py --competition mars --fold 0 --time-budget 10m --set model.encoder=resnet34
    python kernels/train_fold.py --competition mars --fold 0 --on sandbox      # or: --on kaggle

Leaves runs/<competition>/<run>/fold-<k>/: model.safetensors, oof.npz, history.csv, metrics.json and
figures; beside the folds, report.html. The same command again goes on where it stopped."""

import argparse
import concurrent.futures
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from comp import cli


def arguments() -> argparse.ArgumentParser:
    parser = cli.parser(__doc__)
    parser.add_argument("--fold", required=True, help="a fold's number, several as 0,1, all, or full")
    cli.add_training_arguments(parser)
    return parser


def main(args: argparse.Namespace) -> int:
    config = cli.config(args)
    numbers = [] if args.fold == "full" else cli.fold_numbers(args.fold, config.folds.count)
    run_folder = args.runs / config.competition.name / cli.run_names(args, config)[0]

    from comp.model import hub

    hub.find_weights(config.model)  # what cannot be had is told before anything is read, or imported for seconds

    # after the configuration is known to be sound
    from comp import device, distributed, files
    from comp.data import arrays, batches
    from comp.data.folds import EXCLUDED, FULL, load_training_data
    from comp.errors import spare_what_is_trained
    from comp.prepare import build
    from comp.train import pages, runs
    from comp.train.train_fold import check_folds, train_fold

    distributed.join()
    build.check_hidden_test(config.competition, args.input)
    data = load_training_data(config, args.input, args.runs)
    if not arrays.has_test(config.competition, args.input, data.split):
        print(f"there are no {config.competition.arrays.test_images} to make a submission of, only training images")
    numbers = numbers or [FULL]
    check_folds(data, numbers, run_folder)  # before any is trained
    folders = {number: runs.fold_folder(run_folder, number) for number in numbers}
    waiting = [number for number, folder in folders.items() if not runs.is_finished(folder)]
    devices = device.find_devices(args.device)[: max(1, len(waiting))]
    left_out = f", {excluded} of them left out" if (excluded := (data.folds == EXCLUDED).sum()) else ""
    what = f"{config.competition.title or config.competition.name}: {len(data.folds)} images{left_out}"
    failed: list[str] = []
    if len(devices) > 1:
        print(f"{what}; {len(devices)} folds at a time, on {', '.join(devices)}")
        names = {f"fold {number}": number for number in waiting}
        statuses = run_on_devices(names, devices, lambda name, on: train_one(args, names[name], on, len(devices)))
        failed = [f"{name} ended with status {status}" for name, status in sorted(statuses.items()) if status]
    else:
        chosen = device.choose_device(devices[0])
        print(f"{what}, on {chosen}")
        workers = batches.default_workers(chosen.device, distributed.world_size())
        started = cli.STARTED
        for number in numbers:
            deadline = cli.deadline(started, args.time_budget)
            machine = device.Machine(chosen, workers if args.workers is None else args.workers, deadline)
            train_fold(data, number, run_folder, machine)
            started = time.monotonic()
    done = [runs.read_fold(folder) for folder in folders.values() if runs.is_finished(folder)]
    if len(done) > 1:
        print(f"\n{runs.summarize_folds(done, config)}")
    if done and not distributed.rank():
        files.write_text(run_folder / "command.txt", cli.command() + "\n")
        if FULL not in numbers:
            with spare_what_is_trained("report.html"):
                print(pages.write_run_page(run_folder))
    distributed.leave()
    if failed:
        raise cli.Refused(f"{', '.join(failed)}; the lines behind its name say why, and the same command goes on")
    return 0


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


def train_one(args: argparse.Namespace, number: int, device: str, processes: int) -> list[str]:
    """This command for one fold on one device, beside `processes` - 1 others."""
    import torch

    from comp.data import batches

    workers = batches.default_workers(torch.device(device), processes) if args.workers is None else args.workers
    given = cli.arguments_but("--fold", "--device", "--workers", "--time-budget")
    own = ["--fold", str(number), "--device", device, "--workers", str(workers)]
    left = cli.deadline(time.monotonic(), args.time_budget) - time.monotonic()
    if left < math.inf:
        own.append(f"--time-budget={max(1, left):.0f}s")
    return [sys.executable, sys.argv[0], *given, *own]


def jobs(args: argparse.Namespace) -> list:
    """One kernel for every two folds: it has two GPUs, whose hours Kaggle counts together."""
    from comp import files
    from comp.kaggle.jobs import Job
    from comp.train import runs

    config = cli.config(args)
    run_folder = args.runs / config.competition.name / cli.run_names(args, config)[0]
    numbers = [runs.FULL] if args.fold == "full" else cli.fold_numbers(args.fold, config.folds.count)
    runs.check_configuration(run_folder, config, numbers[0])
    if args.on == "kaggle" and not runs.has_begun(run_folder):  # for the page, which shows how it goes there
        files.write_text(run_folder / runs.CONFIG, config.model_dump_json(indent=2) + "\n")
    made = []
    for start in range(0, len(numbers), 2):
        folders = [runs.fold_folder(run_folder, number) for number in numbers[start : start + 2]]
        # Where one of the two is here already, the other alone.
        folders = [folder for folder in folders if not runs.is_finished(folder)] or folders
        names = [folder.name.removeprefix("fold-") for folder in folders]
        names_of_start = [folder.name for folder in folders if config.model.start]
        made.append(
            Job(
                entry=Path(__file__),
                arguments=[*cli.arguments_but("--fold", *cli.HERE), "--fold", ",".join(names)],
                name="-".join([config.competition.name, run_folder.name, folders[0].name, *names[1:]]),
                competition=config.competition,
                input=args.input,
                runs=args.runs,
                leaves=[folder / runs.METRICS for folder in folders],
                models=[config.model],
                folds=[fold for name in names_of_start for fold in runs.find_folds(Path(config.model.start), name)],
                seconds=args.time_budget or 0,
            )
        )
    return made


if __name__ == "__main__":
    cli.entry(arguments(), main, jobs)
