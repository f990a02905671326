"""Batch jobs in this process, with the memory embedded or on the network."""

from __future__ import annotations

import json
import os
import shutil
import signal

import pytest

from cluster.batch.output import JobOutput
from cluster.cli import main
from memory_service.server.process import ServeConfig, start


@pytest.fixture
def generate(tiny_model, tmp_path):
    """Run `engram generate` on tmp_path/in.jsonl without Ray; the exit code."""

    def run(target="out.jsonl", *extra, model=tiny_model):
        output = target if target == "-" else tmp_path / target
        argv = ["generate", "--model", model, "--input", tmp_path / "in.jsonl", "--output", output]
        argv += ["--workers", 0, "--max-new-tokens", 6]
        return main([str(arg) for arg in [*argv, *extra]])

    return run


@pytest.fixture
def expected(generate, tmp_path, write_prompts, read_records):
    """The records of 20 prompts with the memory embedded."""
    write_prompts(tmp_path / "in.jsonl", 20)
    assert generate("expected.jsonl") == 0
    return read_records(tmp_path / "expected.jsonl")


@pytest.fixture
def after_first_write(monkeypatch):
    """Function that has something done once, when the first lines of a job are written."""

    def install(action):
        write = JobOutput.write

        def spy(self, records, digest):
            write(self, records, digest)
            monkeypatch.setattr(JobOutput, "write", write)
            action()

        monkeypatch.setattr(JobOutput, "write", spy)

    return install


def test_every_line_is_answered_in_order(expected):
    assert [record["id"] for record in expected] == [f"p{i}" for i in range(20)]
    assert {record["finish_reason"] for record in expected} == {"length"}
    assert all(record["completion_tokens"] == len(record["token_ids"]) == 6 for record in expected)
    assert len({tuple(record["token_ids"]) for record in expected}) > 10


def test_the_summary_says_what_the_memory_did(expected, generate, capsys):
    assert generate() == 0
    err = capsys.readouterr().err
    assert "20 lines (0 with errors), 120 tokens" in err
    assert "rows fetched: local " in err
    assert "mean lookup: " in err


@pytest.mark.parametrize("batch_size", [1, 7])
def test_the_batch_size_does_not_show(expected, generate, tmp_path, read_records, batch_size):
    assert generate("out.jsonl", "--batch-size", batch_size) == 0
    assert read_records(tmp_path / "out.jsonl") == expected


def test_a_line_samples_the_same_in_any_batch_and_run(expected, generate, tmp_path, read_records):
    sampling = ["--temperature", 1.5, "--seed", 4]
    assert generate("a.jsonl", *sampling, "--batch-size", 3) == 0
    assert generate("b.jsonl", *sampling, "--batch-size", 16) == 0
    assert generate("c.jsonl", "--temperature", 1.5, "--seed", 5) == 0
    a, b, c = (read_records(tmp_path / f"{name}.jsonl") for name in "abc")
    assert a == b
    assert a not in (c, expected)


def test_a_finished_job_is_left_alone_until_its_input_grows(
    expected, generate, tmp_path, write_prompts, read_records, capsys
):
    assert generate("expected.jsonl") == 0
    assert "is complete: 20 lines, nothing to do" in capsys.readouterr().err
    write_prompts(tmp_path / "in.jsonl", 23)
    assert generate("expected.jsonl") == 0
    assert "continuing" in capsys.readouterr().err
    assert [record["id"] for record in read_records(tmp_path / "expected.jsonl")] == [f"p{i}" for i in range(23)]


def test_other_sampling_on_the_same_output_is_refused(expected, generate, tmp_path, read_records, capsys):
    assert generate("expected.jsonl", "--temperature", 0.5) == 2
    assert "temperature was 0.0, is 0.5" in capsys.readouterr().err
    assert read_records(tmp_path / "expected.jsonl") == expected
    assert generate("expected.jsonl", "--temperature", 0.5, "--overwrite") == 0
    assert read_records(tmp_path / "expected.jsonl") != expected


def test_requests_that_the_model_cannot_serve_are_reported_in_their_place(generate, tmp_path, read_records):
    lines = [
        {"prompt": "fine"},
        {"prompt": ""},
        {"prompt": "x " * 400},
        {"prompt_token_ids": []},
        {"prompt_token_ids": [1, 400]},
        {"prompt_token_ids": [1, -1]},
        {"prompt_token_ids": [10**30]},
        {"prompt": "x", "max_new_tokens": 0},
        {"prompt": "x", "seed": 10**400},
        {"prompt_token_ids": [1, 2], "max_new_tokens": 3},
    ]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert generate("out.jsonl", "--batch-size", 3) == 0
    records = read_records(tmp_path / "out.jsonl")
    assert [record.get("error", {}).get("field") for record in records] == [
        None,
        "prompt",
        "prompt",
        "prompt_token_ids",
        "prompt_token_ids",
        "prompt_token_ids",
        "prompt_token_ids",
        "max_new_tokens",
        "seed",
        None,
    ]
    assert [record["line"] for record in records[1:9]] == list(range(2, 10))
    assert records[9]["completion_tokens"] == 3


def test_lines_and_flags_say_where_to_stop_and_what_to_report(expected, generate, tmp_path, read_records):
    first = expected[0]["token_ids"]
    lines = [
        {"prompt": "fine", "stop": "never comes", "n": 1},
        {"prompt": "fine", "logprobs": None, "stop_token_ids": []},
        {"prompt": "fine", "logprobs": 0, "stop_tokens": [1]},
    ]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert generate("out.jsonl", "--logprobs", 1, "--stop", "x\ny", "--stop", "z\nz", "--stop-token-ids", *first) == 0
    one, two, refused = read_records(tmp_path / "out.jsonl")
    assert [entry["token_id"] for entry in one["logprobs"]] == one["token_ids"]
    assert all(entry["top"] == [[entry["token_id"], entry["logprob"]]] for entry in one["logprobs"])
    assert two["token_ids"][: len(one["token_ids"])] == one["token_ids"]
    assert "do you mean stop_token_ids" in refused["error"]["message"]


def test_several_samples_of_a_line_are_its_choices(expected, generate, tmp_path, read_records):
    assert generate("out.jsonl", "--n", 2, "--temperature", 1.5) == 0
    records = read_records(tmp_path / "out.jsonl")
    assert [record["id"] for record in records] == [record["id"] for record in expected]
    for record in records:
        assert [choice["index"] for choice in record["choices"]] == [0, 1]
        assert record["token_ids"] == record["choices"][0]["token_ids"] != record["choices"][1]["token_ids"]
        assert record["completion_tokens"] == 12


def test_a_model_without_engram_or_tokenizer_answers_token_ids(generate, plain_model, tmp_path, read_records):
    (tmp_path / "in.jsonl").write_text('{"prompt_token_ids": [3, 1, 4]}\n{"prompt": "text"}\n')
    assert generate(model=plain_model) == 0
    first, second = read_records(tmp_path / "out.jsonl")
    assert (first["text"], len(first["token_ids"]), first["prompt_tokens"]) == ("", 6, 3)
    assert second["error"]["field"] == "prompt"
    assert "prompt_token_ids" in second["error"]["message"]


def test_a_memory_on_the_network_gives_the_same_answers(expected, generate, tmp_path, tiny_model, read_records):
    with start(ServeConfig(tiny_model / "memory")) as server:
        assert generate("out.jsonl", "--memory", server.address) == 0
        assert server.shard.stats().rows > 0
    assert read_records(tmp_path / "out.jsonl") == expected


def test_a_cache_of_hot_rows_and_shared_memory_give_the_same_answers(
    expected, generate, tmp_path, tiny_model, read_records, capsys
):
    with start(ServeConfig(tiny_model / "memory", share_memory=True)) as server:
        assert generate("cached.jsonl", "--memory", server.address, "--memory-cache", 1) == 0
        asked = server.shard.stats().rows
        assert generate("mapped.jsonl", "--memory", server.address, "--map-memory") == 0
        assert server.shard.stats().rows == asked > 0
        assert generate("bad.jsonl", "--memory", server.address, "--memory-cache", -1) == 2
    assert "--memory-cache: -1 MiB" in capsys.readouterr().err
    assert read_records(tmp_path / "cached.jsonl") == expected
    assert read_records(tmp_path / "mapped.jsonl") == expected


def test_a_memory_of_another_model_is_refused(expected, generate, tmp_path, tiny_model, capsys):
    other = tmp_path / "other"
    shutil.copytree(tiny_model, other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"engram_pad_token_id": 5}))
    with start(ServeConfig(tiny_model / "memory")) as server:
        assert generate("out.jsonl", "--memory", server.address, model=other) == 2
    err = capsys.readouterr().err.splitlines()[-1]
    assert "fingerprint" in err
    assert "pad_id" in err


def test_a_memory_that_comes_back_is_used_again(
    expected, generate, tmp_path, tiny_model, read_records, after_first_write
):
    servers = [start(ServeConfig(tiny_model / "memory"))]
    host, port = servers[0].address.split(":")

    def restart():
        servers[0].stop()
        servers.append(start(ServeConfig(tiny_model / "memory", host=host, port=int(port))))

    after_first_write(restart)
    try:
        assert generate("out.jsonl", "--memory", servers[0].address, "--batch-size", 4) == 0
        assert servers[1].shard.stats().rows > 0
    finally:
        servers[-1].stop()
    assert read_records(tmp_path / "out.jsonl") == expected


def test_a_memory_lost_for_good_ends_the_job_which_can_be_continued(
    expected, generate, tmp_path, tiny_model, read_records, after_first_write, capsys
):
    server = start(ServeConfig(tiny_model / "memory"))
    after_first_write(server.stop)
    assert generate("out.jsonl", "--memory", server.address, "--batch-size", 4) == 2
    assert server.address in capsys.readouterr().err.splitlines()[-1]
    assert read_records(tmp_path / "out.jsonl") == expected[:4]
    assert generate() == 0
    assert read_records(tmp_path / "out.jsonl") == expected


def interrupt():
    raise KeyboardInterrupt


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize(("happens", "code"), [(interrupt, 130), (terminate, 143)])
def test_an_interrupt_leaves_a_job_that_can_be_continued(
    expected, generate, tmp_path, read_records, after_first_write, capsys, happens, code
):
    after_first_write(happens)
    assert generate("out.jsonl", "--batch-size", 4) == code
    assert "Traceback" not in capsys.readouterr().err
    assert "attempt" not in json.loads((tmp_path / "out.jsonl.job.json").read_text())
    assert read_records(tmp_path / "out.jsonl") == expected[:4]
    assert generate("out.jsonl", "--batch-size", 4) == 0
    assert read_records(tmp_path / "out.jsonl") == expected


def test_records_stream_to_standard_output_and_nothing_else_does(expected, generate, tmp_path, capfd):
    assert generate("-") == 0
    out, err = capfd.readouterr()
    assert [json.loads(line) for line in out.splitlines()] == expected
    assert "writing to standard output: what is interrupted cannot be continued" in err
    assert not list(tmp_path.glob("*-*"))


def test_every_option_of_an_engine_gives_the_same_answers(expected, generate, tmp_path, read_records, capsys):
    options = [
        "--max-batch",
        3,
        "--max-context",
        200,
        "--cache-tokens",
        320,
        "--prefill-tokens",
        16,
        "--drafts",
        "none",
    ]
    assert generate("out.jsonl", *options, "--no-prefix-cache", "--no-overlap", "--batch-size", 7) == 0
    assert read_records(tmp_path / "out.jsonl") == expected
    assert (
        "context 200 tokens of the model's 256, cache 320 tokens in 0.2 MiB at each engine" in capsys.readouterr().err
    )


def test_a_line_beyond_the_context_is_refused_whatever_its_size(generate, tmp_path, read_records):
    lines = ['{"prompt": "fine"}', json.dumps({"prompt": "x " * 2_000_000}), "[" * 2_000_000, '{"prompt": "fine"}']
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    assert generate() == 0
    records = read_records(tmp_path / "out.jsonl")
    assert [record["finish_reason"] for record in records] == ["length", "error", "error", "length"]
    assert all("bytes are more than the" in record["error"]["message"] for record in records[1:3])
    assert generate("raised.jsonl", "--max-line-bytes", 10_000_000) == 0
    raised = read_records(tmp_path / "raised.jsonl")
    assert "tokens leave no room in a context of 256" in raised[1]["error"]["message"]
    assert "not valid JSON" in raised[2]["error"]["message"]
