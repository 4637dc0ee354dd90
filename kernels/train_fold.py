"""Train one fold of a competition, or all of them.

    python kernels/train_fold.py --fold 0                       # the demo competition; no data needed
    python kernels/train_fold.py --competition mars --fold all
    python kernels/train_fold.py --competition mars --fold 0 --time-budget 10m --set model.encoder=resnet34
    python kernels/train_fold.py --competition mars --fold 0 --on sandbox      # or: --on kaggle

Leaves runs/<competition>/<run>/fold-<k>/: model.safetensors, oof.npz, history.csv, metrics.json and
pictures. The same command again goes on where it stopped.
"""

import argparse
import os
import time
from pathlib import Path

from comp import cli

KAGGLE_LIMIT = 11.5 * 3600  # seconds; Kaggle stops a kernel after 12 hours and keeps nothing that is unfinished


def arguments() -> argparse.ArgumentParser:
    parser = cli.parser(__doc__)
    parser.add_argument("--fold", required=True, help="a fold's number, or all")
    parser.add_argument("--time-budget", type=cli.duration, help="such as 10m: training ends in time (per fold)")
    parser.add_argument("--workers", type=int, help="processes that augment (default: by the number of cores)")
    return parser


def main(args: argparse.Namespace) -> int:
    config = cli.config(args)
    numbers = fold_numbers(args.fold, config.folds.count)
    run_folder = args.runs / config.competition.name / cli.run_names(args, config)[0]

    from comp import batches, demo, device, fit, runs  # after the configuration is known to be sound

    if config.competition.name == "demo":
        from comp import demo

        demo.ensure(args.input)
    chosen = device.choose(args.device)
    data = runs.data(config, args.input, args.runs)
    print(f"{config.competition.title or config.competition.name}: {len(data.split.ids)} pictures, on {chosen}")
    workers = batches.default_workers() if args.workers is None else args.workers
    budget = args.time_budget or (KAGGLE_LIMIT if os.environ.get("KAGGLE_KERNEL_RUN_TYPE") else None)
    done, started = [], cli.STARTED
    for number in numbers:
        deadline = started + budget if budget else None
        try:
            done.append(runs.train_fold(config, data, number, run_folder, chosen, workers, deadline))
        except fit.Interrupted:
            print("interrupted; the same command goes on from here")
            return 130
        started = time.monotonic()
    if len(done) > 1:
        print(f"\n{runs.summary(done, config)}")
    return 0


def jobs(args: argparse.Namespace) -> list:
    """One kernel a fold."""
    from comp import elsewhere

    config = cli.config(args)
    run = cli.run_names(args, config)[0]
    given = cli.arguments_but("--fold", "--on", "--workers", "--device")
    return [
        elsewhere.Job(
            entry=Path(__file__),
            arguments=[*given, "--fold", str(number)],
            name=f"{config.competition.name}-{run}-fold-{number}",
            competition=config.competition,
            input=args.input,
            runs=args.runs,
            fold=args.runs / config.competition.name / run / f"fold-{number}",
        )
        for number in fold_numbers(args.fold, config.folds.count)
    ]


def fold_numbers(text: str, count: int) -> list[int]:
    if text == "all":
        return list(range(count))
    if not text.isdigit() or int(text) >= count:
        raise cli.Refused(f"--fold {text}: there are folds 0 to {count - 1}, and all")
    return [int(text)]


if __name__ == "__main__":
    cli.entry(arguments(), main, jobs)
