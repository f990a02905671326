from __future__ import annotations

import json

import pytest

from cluster.batch.sidecar import Attempt, JobIdentity, Progress, Sidecar
from reasoning.engine import EngineConfig
from reasoning.request import SamplingParams

IDENTITY = JobIdentity("/models/a", {"temperature": 0.5, "stop": ("x",)}, {"dtype": "auto", "max_context": None})
PROGRESS = Progress(7, "ab" * 16, Attempt(8, 4, 1, "cd" * 16))


@pytest.fixture
def sidecar(tmp_path):
    return Sidecar(tmp_path / "out.jsonl", IDENTITY)


def test_what_is_saved_is_loaded(sidecar):
    for progress in (PROGRESS, Progress(0, ""), Progress(1, "x", counts_blank_lines=True)):
        sidecar.save(progress)
        assert sidecar.load() == progress
        assert not sidecar.scratch.exists()


@pytest.mark.parametrize(
    ("identity", "difference"),
    [
        (JobIdentity("/models/b", IDENTITY.sampling), "model was /models/a, is /models/b"),
        (JobIdentity("/models/a", {"temperature": 0.7}), "temperature was 0.5, is 0.7"),
        (JobIdentity("/models/a", {"stop": ("y",)}), r"stop was \['x'\], is \['y'\]"),
        (JobIdentity("/models/a", {}, {"dtype": "bf16"}), "dtype was auto, is bf16"),
    ],
)
def test_another_job_is_told_by_what_differs(sidecar, tmp_path, identity, difference):
    sidecar.save(PROGRESS)
    with pytest.raises(ValueError, match=f"belongs to another job: {difference}"):
        Sidecar(tmp_path / "out.jsonl", identity).load()


def test_options_that_came_later_count_as_their_defaults(sidecar, tmp_path):
    sidecar.save(Progress(1, "x"))
    saved = json.loads(sidecar.path.read_text())
    saved["sampling"].pop("temperature")
    saved.pop("engine")
    saved.pop("format")
    sidecar.path.write_text(json.dumps(saved))
    engine = {"max_context": None, "dtype": "auto"}
    same = JobIdentity("/models/a", {"temperature": 0.0, "stop": ["x"], "top_p": 1.0}, engine)
    assert Sidecar(tmp_path / "out.jsonl", same).load() == Progress(1, "x", counts_blank_lines=True)
    other = JobIdentity("/models/a", {"temperature": 0.5, "stop": ["x"]})
    with pytest.raises(ValueError, match=r"temperature was 0\.0, is 0\.5"):
        Sidecar(tmp_path / "out.jsonl", other).load()


@pytest.mark.parametrize(
    "change",
    [
        {"lines": "7"},
        {"lines": -1},
        {"lines": True},
        {"lines": None},
        {"input_xxh3_128": 5},
        {"sampling": 5},
        {"sampling": None},
        {"engine": [1]},
        {"attempt": []},
        {"attempt": {"first": 1}},
        {"attempt": {"first": 0, "count": 1, "deaths": 1, "digest": ""}},
        {"attempt": {"first": 1, "count": 1, "deaths": "many", "digest": ""}},
    ],
    ids=str,
)
def test_a_file_edited_by_hand_is_told_to_be_damaged(sidecar, change):
    sidecar.save(PROGRESS)
    sidecar.path.write_text(json.dumps(json.loads(sidecar.path.read_text()) | change))
    with pytest.raises(ValueError, match=r"has a damaged out\.jsonl\.job\.json"):
        sidecar.load()


def test_nesting_without_end_is_damage_too(sidecar):
    sidecar.path.write_text("[" * 100_000)
    with pytest.raises(ValueError, match="has a damaged"):
        sidecar.load()


def test_a_link_in_place_of_the_scratch_file_is_not_followed(sidecar, tmp_path):
    (tmp_path / "precious").write_text("precious")
    sidecar.scratch.symlink_to("precious")
    sidecar.save(PROGRESS)
    assert (tmp_path / "precious").read_text() == "precious"
    assert sidecar.load() == PROGRESS


def test_a_job_is_known_by_model_sampling_and_what_of_the_engine_shows(tmp_path):
    identity = JobIdentity.of(tmp_path, SamplingParams(top_k=3), EngineConfig(max_batch=9, max_context=50))
    assert identity.model == str(tmp_path)
    assert identity.sampling["top_k"] == 3
    assert identity.engine == {"dtype": "auto", "max_context": 50}
