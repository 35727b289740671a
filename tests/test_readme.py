"""The commands of the README and of docs/ are real: each composes to a valid config, and each path named exists."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXT = (ROOT / "README.md").read_text()
COMMANDS = [
    command.partition("#")[0].strip()
    for page in PAGES
    for command in re.findall(r"^ {4}python run\.py(.*)$", page.read_text().replace("\\\n", " "), flags=re.MULTILINE)
]


@pytest.mark.parametrize("command", sorted(set(COMMANDS)), ids=lambda c: c or "bare")
def test_command_composes(command):
    words = [word for word in shlex.split(command) if word not in ("-m", "--help")]
    first = [re.sub(r"=([^,]+),.*", r"=\1", word) for word in words]  # of a sweep, its first job
    answer = subprocess.run(
        [sys.executable, "run.py", *first, "--cfg", "job"], cwd=ROOT, capture_output=True, text=True
    )
    assert answer.returncode == 0, answer.stderr
    for word in first:
        key, _, value = word.partition("=")
        if "." in key:
            assert f"{key.rpartition('.')[2]}: {value}".replace('"', "") in answer.stdout


def test_there_are_commands():
    assert len(COMMANDS) >= 5


def test_linked_files_exist():
    for page in PAGES:
        text = page.read_text()
        for path in re.findall(r"\]\((?!http)([^)#]+)\)", text):
            assert (page.parent / path).exists(), path
        for path in re.findall(r"`(src/[\w/.]+)`", text):
            assert (ROOT / path).exists(), path


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"make (run|test|setup|lint)\b", TEXT):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE)
