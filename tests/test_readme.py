"""The README's commands are real: each one composes to a valid config, and each path it names exists."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()
COMMANDS = re.findall(r"^ {4}python run\.py(.*)$", TEXT.replace("\\\n", " "), flags=re.MULTILINE)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: c.split("#")[0].strip() or "bare")
def test_command_composes(command):
    words = [word for word in command.split("#")[0].split() if word not in ("-m", "--help")]
    first = [re.sub(r"=([^,]+),.*", r"=\1", word) for word in words]  # of a sweep, its first job
    answer = subprocess.run(
        [sys.executable, "run.py", *first, "--cfg", "job"], cwd=ROOT, capture_output=True, text=True
    )
    assert answer.returncode == 0, answer.stderr
    for word in first:
        key, _, value = word.partition("=")
        if "." in key:
            assert f"{key.rpartition('.')[2]}: {value}" in answer.stdout


def test_there_are_commands():
    assert len(COMMANDS) >= 5


def test_linked_files_exist():
    for path in re.findall(r"\]\((?!http)([^)]+)\)", TEXT) + re.findall(r"`(src/[\w/.]+)`", TEXT):
        assert (ROOT / path).exists(), path


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"make (run|test|setup|lint)\b", TEXT):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE)
