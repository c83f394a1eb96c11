"""Progress of a training: the estimates, the bar on a terminal and the lines elsewhere."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from idaa_lightly.bench.run.pace import WARM_UP, Pace
from idaa_lightly.cli import main
from idaa_lightly.training import Evaluation

RUN = ["run", "--limit-train", "96", "--backbone", "resnet9-w2", "--batch-size", "8", "--epochs", "5", "--aug", "none"]
RUN += ["--accelerator", "cpu", "--out", "run"]


def test_the_warm_up_counts_in_no_estimate() -> None:
    pace = Pace(images=32, steps=105)
    for done in range(1, WARM_UP + 1):
        pace.tick(done, 60.0 * done)
        assert pace.images_per_s == 0
    pace.tick(WARM_UP + 1, 300.5)
    pace.tick(WARM_UP + 20, 310.0)
    assert pace.images_per_s == 20 * 32 / 10
    assert pace.left(evaluations=3, seconds_each=2.0) == 80 * 0.5 + 6
    assert pace.speed_in_words() == "64 images/s"
    pace.tick(WARM_UP + 30, 1580.0)
    assert pace.speed_in_words() == "0.8 images/s"


def test_a_resumed_training_warms_up_as_well() -> None:
    pace = Pace(images=10, steps=200, done=100)
    pace.tick(100 + WARM_UP, 5.0)
    pace.tick(110 + WARM_UP, 6.0)
    assert pace.images_per_s == 100
    assert pace.left(0, 0.0) == pytest.approx((90 - WARM_UP) / 10)


def test_evaluations_are_expected_to_take_as_long_as_the_ones_before() -> None:
    evaluation = Evaluation(lambda method, epoch: {}, epochs=20)
    evaluation.history, evaluation.first_seconds = [{"epoch": 0}], 7.0
    assert evaluation.expected(finished=0) == (10, 7.0)
    evaluation.history, evaluation.seconds = [{"epoch": 0}, {"epoch": 2}, {"epoch": 4}], 5.0
    assert evaluation.expected(finished=4) == (8, 2.5)


def test_a_line_per_tenth() -> None:
    result = CliRunner().invoke(main, RUN)
    assert result.exit_code == 0, result.output
    assert "Trains on 1 × cpu, in precision 32-true, not compiled." in result.output
    lines = re.findall(r"^(\d+) %: epoch (\d)/5, loss [\d.]+, \d+ images/s, .* left\.$", result.output, re.MULTILINE)
    # 12 steps make an epoch of five. The line at 10 % is missing, because only one step was timed by then.
    assert [int(percent) for percent, _ in lines] == [10, 20, 30, 40, 50, 60, 70, 80, 90]
    assert [int(epoch) for _, epoch in lines] == [1, 1, 2, 2, 3, 3, 4, 4, 5]


@pytest.mark.slow
@pytest.mark.parametrize("colours", [True, False])
def test_a_bar_on_a_terminal(colours: bool) -> None:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "TERM": "xterm-256color", "COLUMNS": "120"}
    env = {**env, "NO_COLOR": "" if colours else "1"}
    ours, theirs = pty.openpty()
    process = subprocess.Popen([sys.executable, "-m", "idaa_lightly.cli", *RUN], stdout=theirs, stderr=theirs, env=env)
    os.close(theirs)
    output = b""
    while True:
        try:
            part = os.read(ours, 4096)
        except OSError:  # Linux raises it when the other end is closed.
            break
        if not part:
            break
        output += part
    text = output.decode()
    assert process.wait() == 0, text
    assert re.search(r"epoch [1-5]/5 .*loss [\d.]+, \d+ images/s, .* left", text)
    assert "epoch 5/5: kNN on validation" in text
    assert bool(re.search(r"\x1b\[[\d;]*3[1-8]", text)) == colours
    assert Path("run/record.json").exists()
