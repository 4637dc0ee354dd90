"""submissions/ledger.csv: what was sent to Kaggle, and how it scored."""

import csv
from pathlib import Path

from comp import files
from comp.report import tables

COLUMNS = ("when", "competition", "file", "sha256", "runs", "out_of_fold", "public", "private", "status", "ref")


def read_ledger(path: Path) -> list[dict[str, str]]:
    """All rows, oldest first; none where there is no ledger."""
    if not path.exists():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def record_submission(path: Path, row: dict[str, object]) -> None:
    """Add a row, or replace the one with the same ref; values that are None stay blank."""
    new = {column: "" if row.get(column) is None else str(row[column]) for column in COLUMNS}
    rows = [old for old in read_ledger(path) if not new["ref"] or old["ref"] != new["ref"]]
    files.write_csv(path, [COLUMNS, *([row.get(column, "") for column in COLUMNS] for row in [*rows, new])])


def ledger_table(rows: list[dict[str, str]]) -> str:
    """The ledger as aligned text: out-of-fold beside public and private score, and their difference."""
    lines = [("when", "file", "out-of-fold", "public", "private", "public - oof")]
    for row in rows:
        scores = [tables.format_number(float(row[key] or "nan")) for key in ("out_of_fold", "public", "private")]
        both = row["out_of_fold"] and row["public"]
        apart = f"{float(row['public']) - float(row['out_of_fold']):+.4f}" if both else "–"
        lines.append((row["when"][:16].replace("T", " "), row["file"], *scores, apart))
    return tables.aligned(lines, left=2)
