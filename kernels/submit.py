"""Check a submission, send it to Kaggle, wait for its score, and keep the ledger.

    python kernels/submit.py submissions/mars-default-1a2b3c4d.csv
    python kernels/submit.py                                       # only the ledger

The competition is read from the .json beside the CSV; one of your own is named with --competition. Where it is a
code competition, the kernel that made the file is submitted instead of the file."""

import argparse
import contextlib
import datetime
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from comp import cli, files
from comp import config as configs
from comp.kaggle import api
from comp.submission.check import check_against_input

COLUMNS = ("when", "competition", "file", "sha256", "runs", "out_of_fold", "public", "private", "status", "ref")


def arguments() -> argparse.ArgumentParser:
    parser = cli.Parser(description=__doc__)
    parser.add_argument("file", type=Path, nargs="?", help="a CSV that kernels/ensemble.py made")
    parser.add_argument("--competition", help="a name that ships, or a .toml file (default: what the .json says)")
    parser.add_argument("--message", default="", help="what Kaggle shows beside the score")
    parser.add_argument("--input", type=Path, default=Path("input"), help="folder of the npz (default: input)")
    parser.add_argument("--ledger", type=Path, help="(default: ledger.csv beside the file)")
    return parser


def main(args: argparse.Namespace) -> int:
    book = args.ledger or (args.file.parent if args.file else Path("submissions")) / "ledger.csv"
    if args.file:
        submit(args, book)
    for row in read_ledger(book):
        if row["status"] == "PENDING":  # Kaggle was slower than an earlier start had patience
            settle(book, row, patience=0)
    rows = read_ledger(book)
    print(ledger_table(rows) if rows else f"{book}: nothing was submitted yet")
    return 0


def submit(args: argparse.Namespace, book: Path) -> None:
    about = made_by(args.file)
    name = args.competition or about["competition"]
    if not args.competition and name not in configs.shipped_names("competitions"):
        raise cli.Refused(f"{args.file}: of a competition of your own; name its file, as --competition {name}.toml")
    competition = configs.load_config(name).competition
    if not competition.kaggle:
        raise cli.Refused(f'{competition.name}: its TOML names no competition on Kaggle; set kaggle = "<slug>"')
    rows = check_against_input(args.file, competition, args.input)
    digest = files.sha256(args.file)
    if about["sha256"] != digest:
        raise cli.Refused(f"{args.file}: changed since it was made; make it again with kernels/ensemble.py")
    for sent in read_ledger(book):
        if sent["sha256"] == digest and sent["status"] != "ERROR" and sent["competition"] == competition.kaggle:
            raise cli.Refused(
                f"{args.file}: was submitted on {sent['when'][:16]} (submission {sent['ref']}); see {book}"
            )
    own = Path(competition.submission.function).name
    print(f"{args.file}: {rows} rows, {f'as {own} wrote them' if own else 'as Kaggle wants it'}")

    what: Path | api.Kernel = args.file
    if competition.code_competition:
        if "kernel" not in about:
            raise cli.Refused(f"{args.file}: a code competition takes a kernel's output; make it with --on kaggle")
        what = api.Kernel(**about["kernel"])
    # A submission that an interrupted start sent is found by its last word, whatever came before it.
    message = f"{args.message} {args.file.stem} {digest[:12]}".strip()
    row: dict[str, Any] = {
        "when": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "competition": competition.kaggle,
        "file": args.file.name,
        "sha256": digest,
        "runs": "+".join(about["runs"]),
        "out_of_fold": about["score"]["out_of_fold"],
        "status": "PENDING",
        "ref": api.send_submission(competition.kaggle, what, message),
    }
    record_submission(book, row)  # before the wait, so that a lost score can be asked for again
    settle(book, row, patience=api.PATIENCE)


def settle(book: Path, row: dict[str, Any], patience: float) -> None:
    """Wait for a submission's score and write it into the ledger."""
    score = api.wait_score(row["competition"], int(row["ref"]), patience)
    record_submission(book, row | score)
    if score["status"] == "ERROR":
        raise cli.Refused(f"{row['file']}: Kaggle could not score it: {score['error']}")


def read_ledger(path: Path) -> list[dict[str, str]]:
    """All rows of ledger.csv, oldest first; none where there is no ledger. Raises Refused."""
    import pandas as pd  # half a second, which refusals need not wait for

    if not path.exists():
        return []
    try:
        return pd.read_csv(path, dtype=str, keep_default_na=False)[[*COLUMNS]].to_dict("records")
    except (ValueError, KeyError) as error:
        raise cli.Refused(f"{path}: not a ledger ({error}); move it away to begin another") from None


def record_submission(path: Path, row: Mapping[str, object]) -> None:
    """Add a row, or replace the one with the same ref; values that are None stay blank."""
    import pandas as pd

    rows = [old for old in read_ledger(path) if old["ref"] != str(row["ref"])]
    files.write_text(path, pd.DataFrame([*rows, row], columns=COLUMNS).to_csv(index=False, lineterminator="\n"))


def ledger_table(rows: list[dict[str, str]]) -> str:
    """The ledger as aligned text: out-of-fold beside public and private score, and their difference."""
    import pandas as pd

    from comp.report import tables

    scores = ["out_of_fold", "public", "private"]
    frame = pd.DataFrame(rows).replace("", "nan").astype(dict.fromkeys(scores, float)).set_index("file")
    frame["when"] = frame["when"].str[:16]
    frame["public - oof"] = frame["public"] - frame["out_of_fold"]
    return tables.to_text(frame[["when", *scores, "public - oof"]])


def made_by(file: Path) -> dict:
    if not file.exists():
        raise cli.Refused(f"{file}: no such file; kernels/ensemble.py makes submissions")
    side = file.with_suffix(".json")
    with contextlib.suppress(OSError, ValueError, AttributeError):
        about = json.loads(side.read_text(encoding="utf-8"))
        if {"competition", "sha256", "runs", "score"} <= about.keys():
            return about
    raise cli.Refused(f"{side}: missing or damaged; it says what made the submission")


if __name__ == "__main__":
    cli.entry(arguments(), main)
