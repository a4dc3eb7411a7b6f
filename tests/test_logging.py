"""What a run tells on the screen and in its log file."""

import logging

import pytest

from benchmark.commands.shared import log, log_to


@pytest.fixture
def restored():
    before = list(log.handlers), log.level
    yield
    for handler in log.handlers:
        handler.close()
    log.handlers, level = before[0], before[1]
    log.setLevel(level)


def test_a_label_is_text_and_no_format(tmp_path, capsys, restored):
    log_to(tmp_path / "train.log", "HSTU, 50 % of %(users)s")
    logging.getLogger("benchmark.training.trainer").info("epoch %d", 1)
    assert capsys.readouterr().err == "[HSTU, 50 % of %(users)s] epoch 1\n"
    assert (tmp_path / "train.log").read_text().endswith("INFO epoch 1\n")
