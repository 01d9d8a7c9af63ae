"""The ladder's table: a run on each rung that its config says, and what trains the others."""

import csv
import io

from comparison.ladder import build_ladder, ladder_to_csv
from comparison.runs import read_runs
from comparison.texts import fill
from tests.comparison.made import make_run
from training.cells import LADDER


def test_no_rung_is_no_ladder(tmp_path):
    make_run(tmp_path, "as_run_mae_64", "as_run/mae_64", results={"rfid_as_run": 41.0})
    assert build_ladder(read_runs(tmp_path)[0]) == []


def test_of_equally_near_rungs_a_run_is_on_that_of_its_name(tmp_path):
    without = ["losses.lpips=0", "losses.convnext=0"]  # which leaves a run of rung 7 as near to rung 6
    make_run(tmp_path, "ladder_6_adversarial", "ladder/6_adversarial", *without)
    make_run(tmp_path, "ladder_7_losses", "ladder/7_losses", *without)
    rungs = build_ladder(read_runs(tmp_path)[0])
    assert [rung.run for rung in rungs if rung.steps] == ["ladder_6_adversarial", "ladder_7_losses"]


def test_each_run_is_on_its_rung_whatever_its_name(tmp_path):
    make_run(tmp_path, "lowest", "as_run/mae_64", results={"rfid_as_run": 41.25, "codebook": 0.4})
    make_run(tmp_path, "some", "ladder/3_decoder", results={"rfid_as_run": 39.5, "rfid": 30.125})
    make_run(tmp_path, "other", "ladder/2_projection", "losses.lpips=0", results={"rfid_as_run": 1.0})
    make_run(tmp_path, "unfinished", "ladder/9_crop", step=7, results={"rfid_as_run": 2.0})
    make_run(tmp_path, "a_third", "ladder/3_decoder", "losses.lpips=0", results={"rfid_as_run": 3.0})
    rungs = build_ladder(read_runs(tmp_path)[0])
    assert [rung.number for rung in rungs] == list(range(len(LADDER)))
    found = {
        rung.number: (rung.run, rung.values["rfid_as_run"], rung.values["rfid"])
        for rung in rungs
        if rung.steps
    }
    assert found == {
        0: ("lowest", 41.25, None),
        2: ("other", 1.0, None),
        3: ("some", 39.5, 30.125),  # and not the third, which is another training
        9: ("unfinished", 2.0, None),
    }
    assert {rung.number for rung in rungs if not rung.lacks} == {0, 3}
    assert rungs[2].note == "other: losses.lpips 0.0, not 1.0" and not rungs[3].note
    assert rungs[9].note.startswith("unfinished: 7 steps, not ")
    text = fill("ladder.md", ladder=rungs)
    assert "| 3 | a ViT for the decoder, as the text has it | 39.5 | 30.12 |  |  |  |" in text
    assert "--config configs/ladder/9_crop.yaml" in text and "ladder/3_decoder" not in text
    assert "- 2: other: losses.lpips 0.0, not 1.0" in text
    lines = list(csv.DictReader(io.StringIO(ladder_to_csv(rungs))))
    assert len(lines) == len(LADDER) and lines[3]["rfid"] == "30.125" and lines[1]["steps"] == ""
    assert lines[2]["differs"] == "losses.lpips 0.0, not 1.0"
