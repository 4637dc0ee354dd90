"""The ledger of submissions: a row for each, replaced when its score arrives, and a table that compares scores."""

import pytest
from conftest import load

from comp.errors import Refused

ledger = load("submit.py")


def test_a_score_replaces_its_row_and_the_table_shows_what_is_missing(tmp_path):
    path = tmp_path / "ledger.csv"
    assert ledger.read_ledger(path) == []
    sent = {"when": "2026-11-30T01:02:03+00:00", "file": "a.csv", "out_of_fold": 0.71234, "status": "PENDING"}
    ledger.record_submission(path, sent | {"ref": 17})
    ledger.record_submission(path, sent | {"ref": 18, "file": "second.csv", "public": None})
    ledger.record_submission(path, ledger.read_ledger(path)[0] | {"public": 0.7, "status": "COMPLETE"})
    rows = ledger.read_ledger(path)
    assert [(row["ref"], row["status"], row["public"]) for row in rows] == [
        ("18", "PENDING", ""), ("17", "COMPLETE", "0.7")
    ]  # fmt: skip
    head, second, first = (line.split() for line in ledger.ledger_table(rows).splitlines())
    assert head == ["file", "when", "out_of_fold", "public", "private", "public", "-", "oof"]
    assert second == ["second.csv", "2026-11-30T01:02", "0.7123", "–", "–", "–"]
    assert first == ["a.csv", "2026-11-30T01:02", "0.7123", "0.7000", "–", "-0.0123"]


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n", "when\n1,2,3\n"])
def test_a_file_that_is_not_a_ledger_is_one_line(tmp_path, text):
    (tmp_path / "ledger.csv").write_text(text)
    with pytest.raises(Refused, match="not a ledger"):
        ledger.read_ledger(tmp_path / "ledger.csv")
