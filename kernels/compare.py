"""Train several recipes, or values of one setting, on the same folds; leave one table and one figure.

    python kernels/compare.py --competition mars --recipes default mars-a mars-b-unet --fold 0 --time-budget 5m
    python kernels/compare.py --competition mars --vary optimizer.lr 3e-4 1e-3 3e-3 --fold 0 --time-budget 2m
    python kernels/compare.py --competition mars --recipes default mars-a --time-budget 30m --on kaggle

Each variant is a run like any other, runs/<competition>/<variant>/, so the same command goes on where it
stopped; --run begins their names. The comparison lies in runs/<competition>/compare-<name>/: table.csv,
curves.png and report.html."""

import argparse
import re
import time
from pathlib import Path

import numpy as np

from comp import cli


def arguments() -> argparse.ArgumentParser:
    parser = cli.parser(__doc__)
    variants = parser.add_mutually_exclusive_group(required=True)
    variants.add_argument("--recipes", nargs="+", help="names that ship, or .toml files")
    variants.add_argument("--vary", nargs="+", metavar=("KEY", "VALUE"), help="one setting, and the values to try")
    parser.add_argument("--fold", default="0", help="fold numbers such as 0,1, or all (default: 0)")
    cli.add_training_arguments(parser)
    return parser


def main(args: argparse.Namespace) -> int:
    variants = configurations(args)

    from comp import device, distributed
    from comp.data import augment, batches
    from comp.data.folds import EXTRA, load_training_data
    from comp.errors import spare_what_is_trained
    from comp.model import segmenter
    from comp.prepare import build
    from comp.train import pages, runs
    from comp.train.train_fold import check_folds, train_fold

    distributed.join()
    competition = next(iter(variants.values())).competition
    chosen = device.choose_device(args.device)
    workers = batches.default_workers(chosen.device, distributed.world_size()) if args.workers is None else args.workers
    folder = comparison_folder(args, competition)
    build.check_hidden_test(competition, args.input)
    data = {name: load_training_data(config, args.input, args.runs) for name, config in variants.items()}
    numbers = {name: cli.fold_numbers(args.fold, config.folds.count, "or all") for name, config in variants.items()}
    dealt = {name: one.folds[one.folds != EXTRA] for name, one in data.items()}
    first, *others = variants
    for name in others:
        if not np.array_equal(dealt[name], dealt[first]):
            raise cli.Refused(f"{name}: is scored on other images than {first}, so the two cannot be compared")
    for name, config in variants.items():
        # What cannot be built is refused before anything trains, and no variant's clock pays for imports.
        check_folds(data[name], numbers[name], folder.parent / name)
        images = data[name].split.inputs
        mean_and_deviation = segmenter.measure_normalisation(images, np.arange(1))
        segmenter.build_segmenter(config.model, images.shape[3], len(competition.classes), *mean_and_deviation)
        augment.build_transforms(config.augment.transforms)

    done: dict[str, list[runs.Fold]] = {}
    notes: list[str] = []
    failed: list[str] = []
    table = ""
    for name in variants:
        print(f"\n{name}, on {chosen}")
        for number in numbers[name]:
            before = runs.is_finished(runs.fold_folder(folder.parent / name, number))
            deadline = cli.deadline(time.monotonic(), args.time_budget)
            try:
                fold = train_fold(data[name], number, folder.parent / name, device.Machine(chosen, workers, deadline))
            except cli.Refused as refused:  # training diverged, say; the others' scores are wanted all the same
                failed.append(f"{name}, fold {number}: {refused}")
                print(failed[-1])
                continue
            done.setdefault(name, []).append(fold)
            if before:
                now = ", whatever the time budget is now" if args.time_budget else ""
                notes.append(f"{name}, fold {number}: finished before, in {fold.metrics['seconds']:.0f} s{now}")
                print(notes[-1])
        if done and not distributed.rank():  # after each variant: a comparison that is stopped shows what is done
            with spare_what_is_trained("the comparison"):
                table = pages.write_comparison(folder, variants, done, cli.command(), notes + failed)
    if table:
        print(f"\n{table}\n\n{folder}")
    if failed:
        raise cli.Refused(failed[0])
    distributed.leave()  # of a job of several processes, which it ends with status 0
    return 0


def configurations(args: argparse.Namespace) -> dict[str, "cli.configs.Config"]:
    """The runs to compare, by name, each with its configuration. Raises Refused."""
    asked: list[tuple[str, str | None, list[str]]]  # name, recipe, overrides of its own
    if args.recipes:
        asked = [(Path(recipe).stem, recipe, []) for recipe in args.recipes]
    else:
        key, *values = args.vary
        start = f"{cli.config(args).recipe}-{key.rpartition('.')[2]}-"
        asked = [(start + re.sub(r"[^A-Za-z0-9.]+", "_", v), args.recipe, [f"{key}={v}"]) for v in values]
    variants: dict[str, cli.configs.Config] = {}
    for name, recipe, varied in asked:
        try:
            config = cli.configs.load_config(args.competition, recipe, [*args.overrides, *varied])
        except cli.Refused as refused:
            raise cli.Refused(f"{name}: {refused}") from None
        name = config.recipe if args.recipes else name
        name = f"{cli.run_names(args, config)[0]}-{name}" if args.run else name
        for other, known in variants.items():
            if name == other or config == known:
                raise cli.Refused(f"{name}: is the same run as {other}; name each once")
            if config.competition.metric != known.competition.metric:
                raise cli.Refused(f"{name}: is scored by another metric than {other}, so the two cannot be compared")
        variants[name] = config
    if len(variants) < 2:
        raise cli.Refused("one run alone; name two recipes, or a key and two values, or more")
    return variants


def comparison_folder(args: argparse.Namespace, competition: "cli.configs.Competition") -> Path:
    given = args.run or (args.vary[0] if args.vary else "-".join(Path(recipe).stem for recipe in args.recipes))
    return args.runs / competition.name / f"compare-{re.sub(r'[^A-Za-z0-9._-]+', '_', given)[:80]}"


def jobs(args: argparse.Namespace) -> list:
    """One kernel, which leaves all the runs."""
    from comp.kaggle.jobs import Job
    from comp.train import runs

    variants = configurations(args)
    config = next(iter(variants.values()))
    folder = comparison_folder(args, config.competition)
    numbers = cli.fold_numbers(args.fold, config.folds.count, "or all")
    folds = [runs.fold_folder(folder.parent / run, number) for run in variants for number in numbers]
    return [
        Job(
            entry=Path(__file__),
            arguments=cli.arguments_but(*cli.HERE),
            name=f"{config.competition.name}-{folder.name}",
            competition=config.competition,
            input=args.input,
            runs=args.runs,
            leaves=[*(fold / runs.METRICS for fold in folds), folder / "report.html"],
            models=[one.model for one in variants.values()],
            seconds=(args.time_budget or 0) * len(variants) * len(numbers),
        )
    ]


if __name__ == "__main__":
    cli.entry(arguments(), main, jobs)
