"""The page shows lengths, examples beside the data, and the worst answers first."""

from finetune.tasks.seq2seq.page import EXAMPLES, text_sections
from finetune.tasks.seq2seq.pairs import Pair
from pretrain.report.page import Table, plain


def test_sections_of_written_texts():
    pairs = [Pair(f"Say {number}", f"number {number}", f"a.jsonl:{number}") for number in range(120)]
    answers = [pair.target or "" for pair in pairs]
    answers[7], answers[9], answers[11] = "number 8", "", " number 11 "
    lengths, examples, worst = text_sections(pairs, answers, ["chrf", "f1"])

    said, table, counted = lengths.blocks
    assert counted.startswith("sacreBLEU counts chrf so: nrefs:1|case:mixed|")
    assert "1 of them are empty" in said and isinstance(table, Table)
    assert [plain(row[0]) for row in table.rows] == ["source", "in the data", "predicted"]
    assert [plain(row[3]) for row in table.rows] == ["7", "10", "11"]

    _, table = examples.blocks
    rows = [[plain(cell) for cell in row] for row in table.rows]
    assert rows[0] == ["Say 0", "a.jsonl:0", "number 0", "number 0", "100.0"]
    assert len(rows) <= EXAMPLES and rows[-1][1] == "a.jsonl:117"
    assert ["Say 9", "a.jsonl:9", "nothing", "number 9", "0.0"] in rows

    said, table = worst.blocks
    assert said.startswith("2 of 120 answers differ from the data. Sorted by chrF, worst first.")
    assert [plain(row[4]) for row in table.rows] == ["a.jsonl:9", "a.jsonl:7"]
