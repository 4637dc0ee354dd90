"""Blend the folds of one or more runs into a submission, checked as Kaggle checks it.

    python kernels/ensemble.py                                    # the demo; prints its leaderboard score
    python kernels/ensemble.py --competition mars --tta d4
    python kernels/ensemble.py --competition mars --run default --run segformer
    python kernels/ensemble.py --competition mars --folds full    # the models of all pictures, weighted equally
    python kernels/ensemble.py --competition mars --on sandbox    # or: --on kaggle

Writes submissions/<competition>-<runs>-<hash>.csv and, beside it, a .json that says what made it.
"""

import argparse
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from comp import cli

HEEDED = ("competition.", "predict.batch_size", "recipe=")  # of the configuration


def arguments() -> argparse.ArgumentParser:
    parser = cli.parser(__doc__, runs="append")
    parser.add_argument("--folds", default="all", help="fold numbers such as 0,1, or full (default: all)")
    parser.add_argument("--tta", choices=["none", "hflip", "flips", "d4", "scales"], help="(default: each model's own)")
    parser.add_argument("--submissions", type=Path, default=Path("submissions"), help="(default: submissions)")
    return parser


def main(args: argparse.Namespace) -> int:
    config = cli.config(args)
    competition = config.competition
    names = cli.run_names(args, config)

    from comp import device, distributed, files
    from comp.data import arrays
    from comp.ensemble import blending
    from comp.model import metrics, predict
    from comp.prepare import build
    from comp.report import tables
    from comp.submission import csv_file

    distributed.join(args.device)
    for override in args.overrides:
        if not override.startswith(HEEDED):
            print(f"--set {override}: changes nothing here, since the models are trained; --tta can")
    found = find(args, config)
    # Each model's own by default: one that was trained without flips may tell left from right.
    tta = args.tta or "+".join(dict.fromkeys(fold.metrics["tta"] for run in found for fold in run))
    computing = device.choose_device(args.device)
    metric = metrics.describe_metric(competition.metric)
    if args.folds == "full":
        chosen, blend = found, blending.equal_weights(len(names), len(competition.classes))
        print("models of all pictures: none is left to score them on, so they weigh the same")
    else:
        chosen = blending.same_folds(found, cli.fold_numbers(args.folds, found[0][0].metrics["folds"]))
        with distributed.first():
            split = arrays.load_train(competition, args.input)
        blend = blending.search_weights(chosen, split, competition)
        print(f"{metric}, out-of-fold, weights scored on folds they did not see:")
        for kind, score in blend.scores.items():
            print(f"  {score:.4f}  {kind}{'  <- used' if kind == blend.kind else ''}")

    in_kernel = os.environ.get("KAGGLE_KERNEL_RUN_TYPE")
    with distributed.first():
        place = (
            build.prepare_hidden_test(competition, args.input)
            if in_kernel and competition.code_competition
            else args.input
        )
        test = arrays.load_test(competition, place)
        index = arrays.build_index(test, competition, place)
    made_of = blending.identify(competition, chosen, blend, tta, test, index)
    # In a kernel it is what a code competition collects.
    path = Path("submission.csv") if in_kernel else args.submissions / made_of["name"]
    sample = arrays.find_sample_submission(competition, args.input)
    if path.exists() and path.with_suffix(".json").exists():
        print(f"{path} is there already, made of the same models with the same settings")
        csv_file.check_submission(path, competition, test.ids, test.shapes, sample)
        return 0

    print(f"{len(test.ids)} pictures; models: {len(made_of['models'])}; test-time augmentation: {tta}; on {computing}")

    def labelled() -> Iterator[distributed.Item]:
        """Rows, their labels, and where pictures had sizes of their own the labels of each at that size."""
        batch_size = config.predict.batch_size
        for rows, probabilities in blending.predict_blend(chosen, blend.runs, test, args.tta, batch_size, computing):
            sizes = [] if test.sizes is None else test.sizes[rows].tolist()
            originals = [
                blending.label_images(
                    predict.resize_to_original(one, size, competition.arrays.fit)[None], blend.classes
                )[0]
                for one, size in zip(probabilities, sizes, strict=bool(sizes))
            ]
            yield rows, blending.label_images(probabilities, blend.classes), *originals

    batches = distributed.gather_in_order(labelled())
    if distributed.rank():
        return len(list(batches))
    confusions = []
    with csv_file.open_writer(path, competition) as write:
        for rows, labels, *originals in batches:
            if test.masks is not None:  # a practice competition
                truth = np.ascontiguousarray(test.masks[rows])
                confusions.append(
                    metrics.count_confusion(truth, labels, len(blend.classes), competition.arrays.ignored)
                )
            write(test.ids[rows], originals or labels)
    count = csv_file.check_submission(path, competition, test.ids, test.shapes, sample)
    about = made_of | {
        "score": {"metric": metric, "out_of_fold": blend.scores.get(blend.kind)},
        "sha256": files.sha256(path),
    }
    if confusions:
        scores = metrics.scores(np.concatenate(confusions), competition.classes, competition.metric)
        about["score"]["leaderboard"] = scores["score"]
        print(f"\nleaderboard, since the test labels are known here\n{tables.score_table(scores)}\n")
    files.write_json(path.with_suffix(".json"), about)
    print(f"{path}: {count} rows, {path.stat().st_size / 1e6:.1f} MB, as Kaggle wants it")
    return 0


def jobs(args: argparse.Namespace) -> list:
    """One kernel, which reads the folds' output."""
    from comp.kaggle.jobs import Job

    config = cli.config(args)
    names, competition = cli.run_names(args, config), config.competition.name
    return [
        Job(
            entry=Path(__file__),
            arguments=cli.arguments_but(),
            name=f"{competition}-{'-'.join(names)}-ensemble",
            competition=config.competition,
            input=args.input,
            runs=args.runs,
            submissions=args.submissions,
            folds=[fold for run in find(args, config) for fold in run],
        )
    ]


def find(args: argparse.Namespace, config: "cli.configs.Config") -> list[list]:
    """The finished folds of each run, or the one model of all pictures. Raises Refused."""
    from comp.train import runs

    pattern = "full" if args.folds == "full" else "fold-*"
    names = cli.run_names(args, config)
    return [runs.find_folds(args.runs / config.competition.name / name, pattern) for name in names]


if __name__ == "__main__":
    cli.entry(arguments(), main, jobs)
