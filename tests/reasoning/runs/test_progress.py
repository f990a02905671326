"""Records of a run: one line a step, TensorBoard, a plot; what was undone is dropped."""

from __future__ import annotations

import dataclasses
import json
import struct
import xml.etree.ElementTree as ElementTree

from tensorboardX.proto.event_pb2 import Event, SessionLog

from reasoning.runs.progress import Bar, Records, plot_loss, read_log
from reasoning.training.trainer import StepReport


def report(step, loss=2.5):
    return StepReport(
        step=step, loss=loss, tokens=96, rate=1e-3, gradient_norm=0.5, seconds=0.25, rows_wait_s=0.05,
        push_wait_s=0.025, expert_load=1.5, gates={0: 0.25, 2: 0.75},
    )  # fmt: skip


def record(folder, first, last, start, losses=2.5):
    with Records(folder, start) as records:
        for step in range(first, last + 1):
            records.on_step(report(step, losses), step / 10)


def test_a_line_holds_all_of_a_step(tmp_path):
    record(tmp_path, 1, 2, 0)
    lines = [json.loads(line) for line in (tmp_path / "training.jsonl").read_text().splitlines()]
    expected = {**dataclasses.asdict(report(2)), "share": 0.2, "gates": {"0": 0.25, "2": 0.75}}
    assert lines[1] == expected
    assert read_log(tmp_path) == lines


def test_lines_can_be_read_as_soon_as_they_are_written(tmp_path):
    with Records(tmp_path, 0) as records:
        records.on_step(report(1), 0.1)
        assert [line["step"] for line in read_log(tmp_path)] == [1]


def test_steps_that_were_undone_are_dropped_and_taken_again(tmp_path):
    record(tmp_path, 1, 5, 0)
    with Records(tmp_path, 0):
        pass
    assert read_log(tmp_path) == []
    record(tmp_path, 1, 5, 0)
    record(tmp_path, 4, 6, 3, losses=1.5)
    assert [(line["step"], line["loss"]) for line in read_log(tmp_path)] == [
        (1, 2.5), (2, 2.5), (3, 2.5), (4, 1.5), (5, 1.5), (6, 1.5),
    ]  # fmt: skip


def test_a_line_that_was_cut_off_is_dropped(tmp_path):
    record(tmp_path, 1, 3, 0)
    path = tmp_path / "training.jsonl"
    path.write_text(path.read_text()[:-20])
    assert [line["step"] for line in read_log(tmp_path)] == [1, 2]
    record(tmp_path, 3, 4, 2)
    assert [line["step"] for line in read_log(tmp_path)] == [1, 2, 3, 4]


def test_problems_are_kept(tmp_path):
    with Records(tmp_path, 0) as records:
        records.on_step(report(1), 0.1)
        records.on_problem("checkpoint: the disk is full")
    record(tmp_path, 2, 2, 1)
    assert [line.get("problem", line.get("step")) for line in read_log(tmp_path)] == [
        1,
        "checkpoint: the disk is full",
        2,
    ]


def test_no_log_is_an_empty_one(tmp_path):
    assert read_log(tmp_path) == []


def events_of(folder):
    """The events of all files, in the order in which they were begun."""
    events = []
    for path in sorted((folder / "tensorboard").iterdir(), key=lambda path: path.stat().st_mtime_ns):
        content = path.read_bytes()
        while content:  # each is its length, a checksum, itself, and a checksum
            (length,) = struct.unpack("<Q", content[:8])
            events.append(Event.FromString(content[12 : 12 + length]))
            content = content[16 + length :]
    return events


def test_tensorboard_has_the_scalars_of_each_step(tmp_path):
    record(tmp_path, 1, 3, 0)
    found = {}
    for event in events_of(tmp_path):
        for value in event.summary.value:
            found.setdefault(value.tag, []).append((event.step, value.simple_value))
    assert found["loss"] == [(1, 2.5), (2, 2.5), (3, 2.5)]
    assert found["tokens_per_second"] == [(1, 384), (2, 384), (3, 384)]
    assert set(found) == {
        *("loss", "learning_rate", "gradient_norm", "tokens_per_second", "wait/rows", "wait/pushes"),
        *("experts/busiest", "gates/0", "gates/2"),
    }


def test_tensorboard_is_told_which_steps_were_undone(tmp_path):
    record(tmp_path, 1, 5, 0)
    record(tmp_path, 4, 4, 3)
    begun = [event.step for event in events_of(tmp_path) if event.session_log.status == SessionLog.START]
    assert begun[-1] == 4


def test_the_plot_shows_the_losses(tmp_path):
    record(tmp_path, 1, 30, 0)
    text = (tmp_path / "loss.svg").read_text()
    assert ElementTree.fromstring(text).tag == "{http://www.w3.org/2000/svg}svg"
    few, many = tmp_path / "few.svg", tmp_path / "many.svg"
    plot_loss([{"step": 1, "loss": 3.0}, {"problem": "x"}], few)
    plot_loss([{"step": step, "loss": 3.0 + step % 7} for step in range(1, 300)], many)
    assert len(many.read_text()) > len(few.read_text()) + 2000


def test_nothing_is_drawn_before_the_first_step(tmp_path):
    plot_loss([{"problem": "x"}], tmp_path / "loss.svg")
    assert not (tmp_path / "loss.svg").exists()


def test_the_bar_follows_the_log_and_says_problems(tmp_path, capsys):
    with Bar(tmp_path) as bar, Records(tmp_path, 0) as records:
        records.on_step(report(1, loss=4.125), 0.25)
        records.on_problem("checkpoint: the disk is full")
        records.on_step(report(2, loss=3.5), 0.5)
    said = capsys.readouterr().err
    assert bar._bar.n == 50
    assert "engram train: checkpoint: the disk is full" in said
    assert "step=2" in said
    assert "loss=3.500" in said
    assert "tokens_s=384" in said
    assert "rows_wait=20%" in said


def test_a_quiet_bar_says_nothing_but_problems(tmp_path, capsys):
    with Bar(tmp_path, quiet=True), Records(tmp_path, 0) as records:
        records.on_step(report(1), 0.25)
    assert capsys.readouterr().err == ""
