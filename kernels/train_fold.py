"""Train one fold of a competition, or all of them.

    python kernels/train_fold.py --fold 0                       # the demo competition; no data needed
    python kernels/train_fold.py --competition mars --fold all
    python kernels/train_fold.py --competition mars --fold full  # one model of all images, validated on none
    python kernels/train_fold.py --competition mars --fold 0 --time-budget 10m --set model.encoder=resnet34
    python kernels/train_fold.py --competition mars --fold 0 --on sandbox      # or: --on kaggle

Leaves runs/<competition>/<run>/fold-<k>/: model.safetensors, oof.npz, history.csv, metrics.json and
figures; beside the folds, report.html. The same command again goes on where it stopped.
"""

import argparse
import time
from pathlib import Path

from comp import cli


def arguments() -> argparse.ArgumentParser:
    parser = cli.parser(__doc__)
    parser.add_argument("--fold", required=True, help="a fold's number, several as 0,1, all, or full")
    parser.add_argument("--time-budget", type=cli.duration, help="such as 10m: training ends in time (per fold)")
    parser.add_argument(
        "--workers",
        type=int,
        choices=range(33),
        metavar="N",
        help="processes that augment (default: 0 on a CPU, whose cores train)",
    )
    return parser


def main(args: argparse.Namespace) -> int:
    config = cli.config(args)
    numbers = [] if args.fold == "full" else cli.fold_numbers(args.fold, config.folds.count)
    run_folder = args.runs / config.competition.name / cli.run_names(args, config)[0]

    # after the configuration is known to be sound
    from comp import device, distributed, files
    from comp.data import arrays, batches, folds
    from comp.data.training_data import FULL, load_training_data
    from comp.train import overview, runs
    from comp.train.train_fold import train_fold

    distributed.join()
    chosen = device.choose_device(args.device)
    data = load_training_data(config, args.input, args.runs)
    if not arrays.has_test(config.competition, args.input, data.split):
        print(f"there are no {config.competition.arrays.test_images} to make a submission of, only training images")
    left_out = f", {excluded} of them left out" if (excluded := (data.folds < 0).sum()) else ""
    print(f"{config.competition.title or config.competition.name}: {len(data.folds)} images{left_out}, on {chosen}")
    for number in numbers:  # before any is trained
        folds.check_training(data.index, data.folds, number, config.competition.classes)
    workers = batches.default_workers(chosen.device) if args.workers is None else args.workers
    done, started = [], cli.STARTED
    for number in numbers or [FULL]:
        machine = device.Machine(chosen, workers, cli.deadline(started, args.time_budget))
        done.append(train_fold(data, number, run_folder, machine))
        started = time.monotonic()
    if len(done) > 1:
        print(f"\n{runs.summarize_folds(done, config)}")
    if not distributed.rank():
        files.write_text(run_folder / "command.txt", cli.command() + "\n")
        if numbers:
            print(overview.write_run_page(run_folder))
    distributed.leave()
    return 0


def jobs(args: argparse.Namespace) -> list:
    """One kernel a fold."""
    from comp.kaggle.jobs import Job
    from comp.train import runs

    config = cli.config(args)
    run_folder = args.runs / config.competition.name / cli.run_names(args, config)[0]
    numbers = [runs.FULL] if args.fold == "full" else cli.fold_numbers(args.fold, config.folds.count)
    runs.check_configuration(run_folder, config, numbers[0])
    folders = [runs.fold_folder(run_folder, number) for number in numbers]
    given = cli.arguments_but("--fold", "--workers")
    return [
        Job(
            entry=Path(__file__),
            arguments=[*given, "--fold", folder.name.removeprefix("fold-")],
            name=f"{config.competition.name}-{run_folder.name}-{folder.name}",
            competition=config.competition,
            input=args.input,
            runs=args.runs,
            leaves=[folder / runs.METRICS],
            weights=[config.model.encoder_weights],
        )
        for folder in folders
    ]


if __name__ == "__main__":
    cli.entry(arguments(), main, jobs)
