from __future__ import annotations

import json
import os
import resource
from pathlib import Path

import pytest

from cluster.batch.output import JobOutput
from cluster.batch.reading import read_lines
from cluster.batch.sidecar import Attempt, JobIdentity

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
    return [line.content for line in read_lines(source, 100)]


def write(source, target, count, identity=IDENTITY):
    """Do the next `count` lines of a job, and leave it as a killed process would."""
    with JobOutput(target, source, identity) as output:
        todo = list(read_lines(source, 100))[output.done : output.done + count]
        output.write([{"id": line.content.decode()} for line in todo], todo[-1].digest)


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


def test_nothing_of_a_file_of_unknown_origin_is_cut_off(source, target):
    target.write_text('{"one line": "without its end"}')
    with pytest.raises(ValueError, match=r"has lines, but no out\.jsonl\.job\.json"):
        JobOutput(target, source, IDENTITY)
    assert target.read_text() == '{"one line": "without its end"}'


def test_an_output_is_not_emptied_for_an_input_that_cannot_be_used(source, target, tmp_path):
    write(source, target, 2)
    for wrong in (tmp_path / "none.jsonl", tmp_path):
        with pytest.raises(ValueError, match="input: "):
            JobOutput(target, wrong, IDENTITY, overwrite=True)
    assert ids(target) == ["a", "b"]


def test_blank_lines_that_come_and_go_change_nothing(source, target):
    write(source, target, 3)
    source.write_text("\n\na\n\nb\nc\n\n\nd\ne\n")
    with JobOutput(target, source, IDENTITY) as output:
        assert (output.done, output.total) == (3, 5)


def older(target):
    """Make a job file look like one of the version that numbered blank lines as well."""
    path = target.with_name("out.jsonl.job.json")
    saved = json.loads(path.read_text())
    del saved["format"], saved["engine"]
    path.write_text(json.dumps(saved))


def test_an_older_output_is_continued_if_its_input_has_no_blank_lines(target, tmp_path):
    source = tmp_path / "in.jsonl"
    source.write_text("a\nb\nc\n")
    write(source, target, 2)
    older(target)
    write(source, target, 1)
    assert ids(target) == ["a", "b", "c"]
    source.write_text("\na\nb\nc\nd\n")
    write(source, target, 1)
    assert ids(target) == ["a", "b", "c", "d"]


def test_an_older_output_is_refused_if_its_rest_would_be_numbered_otherwise(source, target):
    write(source, target, 3)
    older(target)
    with pytest.raises(ValueError, match="begun by an earlier version, which numbered blank lines"):
        JobOutput(target, source, IDENTITY)
    assert ids(target) == ["a", "b", "c"]


def test_a_finished_older_output_is_left_alone(source, target):
    write(source, target, 4)
    older(target)
    for _ in range(2):
        JobOutput(target, source, IDENTITY).close()
    with open(source, "a") as file:
        file.write("e\n")
    with pytest.raises(ValueError, match="begun by an earlier version"):
        JobOutput(target, source, IDENTITY)


@pytest.mark.parametrize("name", ["out.jsonl", "out.jsonl.job.json", "out.jsonl.job.json.tmp"])
@pytest.mark.parametrize("link", [None, "symlink_to", "hardlink_to"])
def test_no_file_of_a_job_may_be_its_input(source, target, name, link):
    path = target.with_name(name)
    if link is None:
        source = source.rename(path)
    else:
        getattr(path, link)(source)
    with pytest.raises(ValueError, match=r"output: .* is the input; give another file"):
        JobOutput(target, source, IDENTITY, overwrite=True)
    assert raws(source) == [b"a", b"b", b"c", b"d"]


@pytest.mark.parametrize("name", ["out.jsonl", "out.jsonl.job.json", "out.jsonl.job.json.tmp"])
@pytest.mark.parametrize(("make", "kind"), [(os.mkdir, "a directory"), (os.mkfifo, "a pipe")])
def test_what_is_no_file_is_refused_instead_of_opened(source, target, name, make, kind):
    make(target.with_name(name))
    with pytest.raises(ValueError, match=f"output: .*{name} is {kind}, not a file"):
        JobOutput(target, source, IDENTITY)


def test_a_device_is_refused_at_once(source):
    with pytest.raises(ValueError, match="output: /dev/full is a device, not a file"):
        JobOutput(Path("/dev/full"), source, IDENTITY)


@pytest.fixture
def full_disk(monkeypatch):
    """Let files grow to so many bytes and no further, as a disk that is full would."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(size):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))

    yield limit
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_leaves_whole_records_and_a_job_that_can_be_continued(tmp_path, target, full_disk):
    source = tmp_path / "in.jsonl"
    source.write_text("".join(f"{i}\n" for i in range(100)))
    lines = list(read_lines(source, 100))
    full_disk(5000)  # the job file fits, the output does not

    def fill(output):
        for line in lines:
            output.write([{"id": line.content.decode() * 300}], line.digest)

    said = r"output: .*out.jsonl cannot be written \(File too large\).*to continue"
    with JobOutput(target, source, IDENTITY) as output, pytest.raises(ValueError, match=said):
        fill(output)
    done = len(ids(target))
    assert 0 < done < 100
    with JobOutput(target, source, IDENTITY) as output:
        assert output.done == done
    full_disk(resource.RLIM_INFINITY)
    write(source, target, 100)
    assert ids(target)[done:] == [str(i) for i in range(done, 100)]


def test_a_full_disk_that_stops_the_job_file_is_named_too(tmp_path, source, target, full_disk):
    output = JobOutput(target, source, IDENTITY)
    full_disk(100)
    [line, *_] = read_lines(source, 100)
    with output, pytest.raises(ValueError, match=r"output: .*out.jsonl.job.json cannot be written"):
        output.write([{"id": "a"}], line.digest)
    full_disk(resource.RLIM_INFINITY)
    write(source, target, 3)
    assert ids(target) == ["a", "b", "c", "d"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl", "out.jsonl.job.json"]


def test_an_attempt_is_found_with_a_death_more_by_the_next_process(source, target):
    lines = list(read_lines(source, 100))
    for deaths in (1, 2):
        with JobOutput(target, source, IDENTITY) as output:
            output.begin(Attempt(1, 2, deaths - 1, lines[1].digest))
        with JobOutput(target, source, IDENTITY) as output:
            assert output.attempt == Attempt(1, 2, deaths, lines[1].digest)
    with JobOutput(target, source, IDENTITY) as output:
        output.begin(None)
    assert JobOutput(target, source, IDENTITY).attempt is None


def test_an_attempt_is_forgotten_once_its_lines_are_written_or_changed(source, target):
    lines = list(read_lines(source, 100))
    with JobOutput(target, source, IDENTITY) as output:
        output.begin(Attempt(1, 2, 0, lines[1].digest))
    with open(target, "ab") as file:  # killed between writing the lines and the job file
        file.write(b'{"id": "a"}\n{"id": "b"}\n')
    with JobOutput(target, source, IDENTITY) as output:
        assert (output.done, output.attempt) == (2, None)
        output.begin(Attempt(3, 1, 0, lines[2].digest))
    source.write_text("a\nb\nC\n")
    with JobOutput(target, source, IDENTITY) as output:
        assert output.attempt is None
