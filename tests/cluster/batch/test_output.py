from __future__ import annotations

import json

import pytest

from cluster.batch.lines import read_raw
from cluster.batch.output import JobIdentity, JobOutput

IDENTITY = JobIdentity("/models/a", {"temperature": 0.0, "max_new_tokens": 8})


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text("a\nb\n\nc\nd\n")
    return path


@pytest.fixture
def target(tmp_path):
    return tmp_path / "out.jsonl"


def raws(source):
    return [raw for _, raw in read_raw(source)]


def write(source, target, count, identity=IDENTITY):
    """Do the next `count` lines of a job, and leave it as a killed process would."""
    with JobOutput(target, source, identity) as output:
        todo = raws(source)[output.done : output.done + count]
        output.write(todo, [{"id": raw.decode()} for raw in todo])


def ids(target):
    return [json.loads(line)["id"] for line in target.read_text().splitlines()]


def test_a_job_continues_after_its_last_complete_line(source, target):
    write(source, target, 3)
    with JobOutput(target, source, IDENTITY) as output:
        assert (output.done, output.total) == (3, 4)
    write(source, target, 1)
    assert ids(target) == ["a", "b", "c", "d"]


@pytest.mark.parametrize("tail", [b"", b"{", b'{"id": "b"}', b"x" * 3_000_000])
def test_an_interrupted_last_line_is_cut_off(source, target, tail):
    write(source, target, 1)
    with open(target, "ab") as file:
        file.write(tail)
    write(source, target, 3)
    assert ids(target) == ["a", "b", "c", "d"]


def test_an_output_ahead_of_its_sidecar_is_trusted(source, target):
    write(source, target, 1)
    with open(target, "ab") as file:  # killed between writing the line and the sidecar
        file.write(b'{"id": "b"}\n')
    write(source, target, 2)
    assert ids(target) == ["a", "b", "c", "d"]


def test_an_output_that_lost_lines_is_filled_up(source, target):
    write(source, target, 3)
    target.write_bytes(target.read_bytes()[:14])
    write(source, target, 3)
    assert ids(target) == ["a", "b", "c", "d"]


def test_lines_appended_to_the_input_continue_the_job(source, target):
    write(source, target, 4)
    with open(source, "a") as file:
        file.write("e\n")
    write(source, target, 5)
    assert ids(target) == ["a", "b", "c", "d", "e"]


def test_lines_not_consumed_yet_may_change(source, target):
    write(source, target, 2)
    source.write_text("a\nb\nC\n")
    write(source, target, 5)
    assert ids(target) == ["a", "b", "C"]


@pytest.mark.parametrize("changed", ["a\nB\nc\nd\n", "b\na\nc\nd\n", "a\n", "", "a\nbc\n"])
def test_changed_input_is_refused(source, target, changed):
    write(source, target, 2)
    source.write_text(changed)
    with pytest.raises(ValueError, match=r"input: .*(changed|has . lines).*`overwrite`"):
        JobOutput(target, source, IDENTITY)
    assert ids(target) == ["a", "b"]


@pytest.mark.parametrize(
    ("identity", "message"),
    [
        (JobIdentity("/models/b", IDENTITY.sampling), "model was /models/a, is /models/b"),
        (JobIdentity("/models/a", {"temperature": 0.7, "max_new_tokens": 8}), "temperature was 0.0, is 0.7"),
    ],
)
def test_another_job_on_the_same_output_is_refused_by_name(source, target, identity, message):
    write(source, target, 2)
    with pytest.raises(ValueError, match=f"output: .*{message}.*`overwrite`"):
        JobOutput(target, source, identity)
    with JobOutput(target, source, identity, overwrite=True) as output:
        assert output.done == 0
    assert target.read_bytes() == b""


@pytest.mark.parametrize("sidecar", [None, b"", b"{", b"[]", b'{"sampling": 3}'])
def test_lines_of_unknown_origin_are_not_appended_to(source, target, sidecar):
    write(source, target, 2)
    path = target.with_name("out.jsonl.job.json")
    path.unlink() if sidecar is None else path.write_bytes(sidecar)
    with pytest.raises(ValueError, match="`overwrite`"):
        JobOutput(target, source, IDENTITY)
    assert ids(target) == ["a", "b"]


def test_two_runs_do_not_write_one_output(source, target):
    with JobOutput(target, source, IDENTITY), pytest.raises(ValueError, match="another run"):
        JobOutput(target, source, IDENTITY)
    JobOutput(target, source, IDENTITY).close()


def test_the_input_is_not_overwritten(source):
    with pytest.raises(ValueError, match="is the input"):
        JobOutput(source, source, IDENTITY, overwrite=True)
    assert raws(source) == [b"a", b"b", b"c", b"d"]
