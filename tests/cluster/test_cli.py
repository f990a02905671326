from __future__ import annotations

import json
import subprocess
import sys

import pytest

from cluster.cli import in_flags, main


def run(capsys, *argv):
    code = main([str(arg) for arg in argv])
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture
def jobs(tmp_path):
    """A folder with an input file, and an output that another job wrote."""
    (tmp_path / "in.jsonl").write_text('{"prompt": "x"}\n')
    (tmp_path / "foreign.jsonl").write_text('{"text": "precious"}\n')
    (tmp_path / "job.jsonl.job.json").write_text('{"prompt": "x"}\n')
    (tmp_path / "link.jsonl").symlink_to("in.jsonl")
    return tmp_path


BATCH = [
    "generate",
    "--model",
    "{tiny}",
    "--workers",
    "0",
    "--input",
    "{jobs}/in.jsonl",
    "--output",
    "{jobs}/out.jsonl",
]
JOB_FILE = [*BATCH, "--input", "{jobs}/job.jsonl.job.json"]
PROMPT = ["generate", "--model", "{tiny}", "--prompt", "x"]
START = ["memory", "start", "--snapshot", "{tiny}/memory"]
PRESET = ["hash", "--preset", "engram-demo", "--tokenizer", "{tiny}"]


@pytest.mark.parametrize(
    ("argv", "names"),
    [
        (["nonsense"], ["nonsense", "generate", "--help"]),
        (["generate"], ["--model", "--help"]),
        (["generate", "--model", "{tiny}"], ["--prompt", "--input"]),
        ([*PROMPT, "--input", "x"], ["--prompt", "--input"]),
        (["generate", "--model", "{jobs}/nowhere", "--prompt", "x"], ["model", "nowhere", "config.json"]),
        (["generate", "--model", "{tiny}", "--prompt", ""], ["prompt", "empty"]),
        (["generate", "--model", "{tiny}", "--prompt", "x " * 400], ["prompt", "256", "shorten"]),
        (["generate", "--model", "{plain}", "--prompt", "x"], ["prompt", "tokenizer"]),
        ([*PROMPT, "--output", "y"], ["--output", "--input"]),
        ([*PROMPT, "--temperature", "-1"], ["temperature", "-1"]),
        ([*PROMPT, "--temperature", "hot"], ["--temperature", "hot"]),
        ([*PROMPT, "--top-p", "0"], ["--top-p", "0 leaves no token"]),
        ([*PROMPT, "--max-new-tokens", "0"], ["--max-new-tokens", "0"]),
        ([*PROMPT, "--max-batch", "0"], ["--max-batch: 0", "above zero"]),
        ([*PROMPT, "--max-context", "1000"], ["--max-context: 1,000", "256 positions"]),
        ([*PROMPT, "--max-context", "200", "--cache-tokens", "64"], ["--max-context: 200", "--cache-tokens, 64"]),
        ([*PROMPT, "--cache-tokens", "9" * 12], ["--cache-tokens: 999,999,999,999", "--cache-share"]),
        ([*PROMPT, "--cohorts", "3"], ["--cohorts: 3", "1, 2"]),
        ([*PROMPT, "--cohorts", "2", "--no-overlap"], ["--cohorts", "without --overlap"]),
        ([*PROMPT, "--drafts", "crystal"], ["--drafts", "crystal", "ngram"]),
        ([*PROMPT, "--drafts", "mtp"], ["--drafts", "multi-token prediction"]),
        ([*PROMPT, "--draft-price", "2"], ["--draft-price: 2.0"]),
        ([*PROMPT, "--device", "tpu"], ["--device: 'tpu'", "auto, cpu, cuda"]),
        ([*PROMPT, "--dtype", "int4"], ["--dtype: 'int4'", "bf16"]),
        ([*PROMPT, "--lookup-timeout", "0"], ["--lookup-timeout: 0.0", "above zero"]),
        ([*PROMPT, "--memory-hedge-share", "-1"], ["--memory-hedge-share: -1.0"]),
        ([*PROMPT, "--memory-cache", "1.5"], ["--memory-cache", "1.5 MiB"]),
        ([*PROMPT, "--memory", "127.0.0.1:1"], ["127.0.0.1:1"]),
        ([*PROMPT, "--trace", "{jobs}/none/trace.json"], ["none/trace.json", "check the path"]),
        ([*BATCH, "--workers", "1", "--trace", "{jobs}/trace.json"], ["--trace", "--workers 0"]),
        (BATCH[:-2], ["--output"]),
        ([*BATCH, "--json"], ["--json"]),
        ([*BATCH, "--workers", "-1"], ["--workers", "-1"]),
        ([*BATCH, "--shards", "0"], ["--shards", "0"]),
        ([*BATCH, "--replicas", "0"], ["--replicas", "0"]),
        ([*BATCH, "--batch-size", "0"], ["--batch-size", "0"]),
        ([*BATCH, "--input", "{jobs}/none.jsonl"], ["--input", "none.jsonl"]),
        ([*BATCH, "--output", "{jobs}/none/out.jsonl"], ["--output", "none"]),
        ([*BATCH, "--output", "{jobs}"], ["{jobs}"]),
        ([*BATCH, "--output", "{jobs}/in.jsonl"], ["--output", "is the input"]),
        ([*BATCH, "--output", "{jobs}/foreign.jsonl"], ["--output", "foreign.jsonl", "--overwrite"]),
        ([*BATCH, "--output", "/dev/full"], ["--output", "/dev/full is a device"]),
        (
            [*BATCH, "--output", "{jobs}/job.jsonl", "--input", "{jobs}/job.jsonl.job.json"],
            ["--output", "is the input"],
        ),
        ([*BATCH, "--output", "{jobs}/link.jsonl"], ["--output", "is the input"]),
        ([*BATCH, "--trace", "{jobs}/in.jsonl"], ["--trace", "is the input"]),
        ([*BATCH, "--trace", "{jobs}/out.jsonl"], ["--trace", "is the output"]),
        ([*BATCH, "--trace", "{jobs}/out.jsonl.job.json"], ["--trace", "is the job file beside the output"]),
        ([*BATCH, "--trace", "{jobs}"], ["--trace", "is a directory"]),
        ([*BATCH, "--output", "{tiny}/model.safetensors", "--overwrite"], ["--output", "is a file of the model"]),
        ([*PROMPT, "--trace", "{tiny}/config.json"], ["--trace", "is a file of the model"]),
        ([*BATCH, "--input", "{jobs}"], ["--input", "not a regular file"]),
        ([*BATCH, "--max-line-bytes", "0"], ["--max-line-bytes: 0", "at least 1"]),
        ([*BATCH, "--model", "{jobs}"], ["model", "config.json"]),
        ([*BATCH, "--workers", "1", "--address", "127.0.0.1:1"], ["--address", "127.0.0.1:1"]),
        ([*BATCH, "--workers", "1", "--address", "127.0.0.1:port"], ["--address", "HOST:PORT"]),
        (["hash"], ["--preset", "--model"]),
        (["hash", "--preset", "engram-demo", "--token-ids", "[1]"], ["--tokenizer", "engram-demo"]),
        (["hash", "--preset", "deepseek", "--token-ids", "[1]"], ["--preset", "deepseek-v4.1-flash"]),
        (["hash", "--model", "{plain}", "--token-ids", "[1]"], ["--tokenizer"]),
        (["hash", "--model", "{plain}", "--tokenizer", "{tiny}", "--token-ids", "[1]"], ["--model", "Engram"]),
        ([*PRESET, "--token-ids", "1,2"], ["--token-ids", "[12, 7, 99]"]),
        ([*PRESET, "--token-ids", '{{"a": 1}}'], ["--token-ids", "list"]),
        ([*PRESET, "--token-ids", "[1, 2.5]"], ["--token-ids", "2.5", "position 1"]),
        ([*PRESET, "--token-ids", "[1, -2]"], ["--token-ids", "-2", "position 1"]),
        ([*PRESET, "--token-ids", "[true]"], ["--token-ids", "True"]),
        ([*PRESET, "--token-ids", "[1, 400]"], ["token_ids[1]", "400", "vocabulary"]),
        ([*PRESET, "--token-ids", "[1e30]"], ["--token-ids", "1e+30"]),
        ([*PRESET, "--token-ids", "[9999999999999999999999]"], ["--token-ids", "9999999999999999999999"]),
        ([*PRESET, "--token-ids", "[1, 2]", "--blocked", "2"], ["--blocked", "2 tokens"]),
        ([*PRESET, "--token-ids", "[1, 2]", "--blocked", "a"], ["--blocked", "'a'"]),
        ([*PRESET, "--token-ids", "[1, 2]", "--documents", "1"], ["--documents", "1 numbers", "2 tokens"]),
        ([*PRESET, "--token-ids", "[1, 2]", "--documents", "1,x"], ["--documents", "'x'"]),
        (["memory", "describe", "127.0.0.1:1"], ["127.0.0.1:1"]),
        (["memory", "describe", "memory", "--address", "127.0.0.1:1"], ["--address", "127.0.0.1:1"]),
        (["memory", "serve", "--snapshot", "{jobs}"], ["snapshot", "{jobs}", "manifest.json"]),
        (["memory", "serve", "--snapshot", "{tiny}/memory", "--shard-index", "1"], ["--shard-index"]),
        (["memory", "serve", "--snapshot", "{tiny}/memory", "--peers", "a:1,b:2"], ["--port"]),
        (["memory", "start", "--snapshot", "{tiny}/memory", "--shards", "0"], ["--shards", "0", "at least 1"]),
        ([*START, "--replicas", "3"], ["--replicas", "3 copies", "2 shards", "more --shards"]),
        ([*START, "--name", "a/b"], ["--name", "'a/b'"]),
        ([*START, "--autoscale", "4"], ["--autoscale", "MIN:MAX"]),
        ([*START, "--autoscale", "3:8"], ["--autoscale", "3:8", "--shards 2"]),
        ([*START, "--autoscale", "1:8", "--replicas", "2"], ["--autoscale", "1:8", "--replicas 2"]),
        ([*START, "--address", "127.0.0.1:1"], ["--address", "127.0.0.1:1", "ray start"]),
        (["memory", "scale"], ["--shards", "--replicas"]),
        (["memory", "scale", "--shards", "2", "--address", "127.0.0.1:1"], ["--address", "127.0.0.1:1"]),
        (["memory", "stop", "--address", "127.0.0.1"], ["--address", "127.0.0.1"]),
        (["train", "--output", "{jobs}/m", "--steps", "0"], ["steps"]),
        (["train", "--output", "{jobs}/m", "--steps", "1", "--minutes", "1"], ["--steps", "--minutes"]),
        (["train", "--output", "{jobs}/m", "--steps", "1", "--source", "{jobs}/none"], ["--source", "{jobs}/none"]),
    ],
)
def test_a_users_mistake_is_one_line_with_what_to_do(capsys, jobs, tiny_model, plain_model, argv, names):
    places = {"tiny": tiny_model, "plain": plain_model, "jobs": jobs}
    code, out, err = run(capsys, *(arg.format(**places) for arg in argv))
    assert code == 2
    assert out == ""
    assert err.startswith("engram: error: ")
    assert err.count("\n") == 1
    for name in names:
        assert name.format(**places) in err
    assert (jobs / "foreign.jsonl").read_text() == '{"text": "precious"}\n'
    assert (jobs / "in.jsonl").read_text() == (jobs / "job.jsonl.job.json").read_text() == '{"prompt": "x"}\n'


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("max_batch: 0 is too few; use `cache_tokens`", "--max-batch: 0 is too few; use --cache-tokens"),
        ("max_batch=0 and max_batch too", "max_batch=0 and max_batch too"),
        ("unknown: run `ray start`; `unknown`", "unknown: run `ray start`; `unknown`"),
        ("no max_batch: none", "no max_batch: none"),
    ],
)
def test_fields_that_an_error_names_are_shown_as_flags(message, shown):
    assert in_flags(message, {"max_batch": "--max-batch", "cache_tokens": "--cache-tokens"}) == shown


def test_a_defect_of_ours_keeps_its_traceback(monkeypatch, tiny_model):
    monkeypatch.setattr("cluster.commands.hash._token_ids", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main([*PRESET[:-1], str(tiny_model)])


def test_an_interrupt_is_quiet(monkeypatch, capsys, jobs):
    def interrupt(args):
        raise KeyboardInterrupt

    monkeypatch.setattr("cluster.commands.train.run", interrupt)
    assert run(capsys, "train", "--output", jobs) == (130, "", "")


@pytest.mark.parametrize("command", [[], ["memory"]])
def test_without_a_command_the_help_is_printed(capsys, command):
    code, out, err = run(capsys, *command)
    assert (code, err) == (0, "")
    assert "commands" in out


@pytest.mark.parametrize(
    "command",
    [
        ["generate"],
        ["hash"],
        ["memory", "serve"],
        ["memory", "describe"],
        ["memory", "start"],
        ["memory", "scale"],
        ["memory", "stop"],
        ["train"],
    ],
    ids=" ".join,
)
def test_every_command_shows_an_example_in_its_help(capsys, command):
    with pytest.raises(SystemExit) as end:
        main([*command, "--help"])
    assert end.value.code == 0
    assert f"  engram {' '.join(command)} " in capsys.readouterr().out.split("example", 1)[1]


def test_help_needs_neither_torch_nor_ray():
    probe = "import sys, cluster.cli as c; c.build_parser(); print({'torch', 'ray'} & sys.modules.keys())"
    assert subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True).stdout == "set()\n"


def test_one_prompt_prints_its_continuation_or_the_whole_record(capsys, tiny_model):
    argv = ["generate", "--model", tiny_model, "--prompt", "def f(", "--max-new-tokens", 4]
    code, out, err = run(capsys, *argv, "--json")
    record = json.loads(out)
    assert (code, err, len(record["token_ids"])) == (0, "", 4)
    assert run(capsys, *argv)[1] == record["text"] + "\n"


@pytest.mark.parametrize("argv", [PROMPT, BATCH], ids=["prompt", "batch"])
def test_a_trace_shows_the_steps_of_one_prompt_or_a_batch(capsys, jobs, tiny_model, argv):
    places = {"tiny": tiny_model, "jobs": jobs}
    argv = [arg.format(**places) for arg in argv]
    code, _, err = run(capsys, *argv, "--max-new-tokens", 3, "--trace", jobs / "trace.json")
    assert code == 0, err
    events = json.loads((jobs / "trace.json").read_text())["traceEvents"]
    assert {"prompts", "cohort 0", "model"} <= {event["name"] for event in events}
