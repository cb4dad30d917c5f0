"""The checks for a real device pass on the stand-in, and print what their README says."""

from __future__ import annotations

import re

from tests.hardware import check
from tests.tiny import make_checkpoint
from tests.tree import ROOT


def test_all_checks_pass_and_print_what_the_readme_shows(newest, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("NEURON_COMPILED_ARTIFACTS", str(tmp_path / "artifacts"))
    passed = check.run(check.Checks(str(make_checkpoint(tmp_path / "model")), 1))
    printed = capsys.readouterr().out
    assert passed, printed
    shown = re.search(r"```text\n(.*?)```", (ROOT / "tests/hardware/README.md").read_text(), re.DOTALL)[1]
    assert printed == shown


def test_without_a_device_it_says_so_and_stops(clean_environment, monkeypatch, capsys):
    from vllm.settings import host_platform

    monkeypatch.setattr(host_platform, "has_neuron_device", lambda: False)
    assert not check.run(check.Checks("nowhere", 1))
    captured = capsys.readouterr()
    assert captured.out.count("FAILED") == 1 and "no Neuron device on this machine" in captured.err
