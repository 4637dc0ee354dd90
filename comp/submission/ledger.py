"""submissions/ledger.csv: what was sent to Kaggle, and how it scored."""

from collections.abc import Mapping
from pathlib import Path

from comp import files
from comp.errors import Refused

COLUMNS = ("when", "competition", "file", "sha256", "runs", "out_of_fold", "public", "private", "status", "ref")


def read_ledger(path: Path) -> list[dict[str, str]]:
    """All rows, oldest first; none where there is no ledger. Raises Refused."""
    import pandas as pd  # half a second, which refusals need not wait for

    if not path.exists():
        return []
    try:
        return pd.read_csv(path, dtype=str, keep_default_na=False)[[*COLUMNS]].to_dict("records")
    except (ValueError, KeyError) as error:
        raise Refused(f"{path}: not a ledger ({error}); move it away to begin another") from None


def record_submission(path: Path, row: Mapping[str, object]) -> None:
    """Add a row, or replace the one with the same ref; values that are None stay blank."""
    import pandas as pd

    rows = [old for old in read_ledger(path) if old["ref"] != str(row["ref"])]
    files.write_text(path, pd.DataFrame([*rows, row], columns=COLUMNS).to_csv(index=False, lineterminator="\n"))


def ledger_table(rows: list[dict[str, str]]) -> str:
    """The ledger as aligned text: out-of-fold beside public and private score, and their difference."""
    import pandas as pd

    from comp.report.tables import to_text

    scores = ["out_of_fold", "public", "private"]
    frame = pd.DataFrame(rows).replace("", "nan").astype(dict.fromkeys(scores, float)).set_index("file")
    frame["when"] = frame["when"].str[:16]
    frame["public - oof"] = frame["public"] - frame["out_of_fold"]
    return to_text(frame[["when", *scores, "public - oof"]])
