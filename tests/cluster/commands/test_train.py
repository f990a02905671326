from __future__ import annotations

import math

from cluster.cli import main
from reasoning.training import run
from reasoning.training.evaluation import HeldOutLoss
from reasoning.training.recipe import TINY_CODE


def test_a_run_ends_with_its_bits_a_byte_on_held_out_files(monkeypatch, tmp_path, capsys):
    given = []

    def train(*arguments):
        given.extend(arguments)
        return HeldOutLoss(nats=math.log(2) * 3000, tokens=700, bytes=2000)

    monkeypatch.setattr(run, "train", train)
    assert main(["train", "--output", str(tmp_path / "m"), "--steps", "4"]) == 0
    said = capsys.readouterr().out
    assert said == f"{tmp_path / 'm'}: 1.500 bits a byte on 2,000 bytes of files held out of training\n"
    assert (given[0], given[1].steps, given[2]) == (TINY_CODE, 4, tmp_path / "m")
