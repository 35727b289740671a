"""Accidents, with the real thing: each is noticed, named in a sentence, and recovered from or refused.

What was good before stays as it was. Others have their own place: broken transfers in data/test_download.py, broken
source files beside each source, kills at any step and signals in training/test_resume.py, and a kill of one process
after the other for hours in `python -m benchmarks.soak`.
"""

from __future__ import annotations

import ast
import http.server
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from omegaconf import OmegaConf

from deepinterest import experiment, plain
from deepinterest.compare.__main__ import main as compare
from deepinterest.config import EventFileConfig, LeaveLastOutConfig, SyntheticConfig
from deepinterest.data import store
from deepinterest.data.prepare import damaged
from deepinterest.errors import UserError
from deepinterest.settings import restored
from deepinterest.training.lost import LostProcess

ROOT = Path(__file__).parents[1]
SMALL = SyntheticConfig(users=120, events_per_user=12)
TEMPORARY = (".preparing-", ".partitions-", ".damaged-")
Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def trained(settings: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run, beside the cache of its data."""
    folder = tmp_path_factory.mktemp("trained")
    experiment.run(*settings("dnn", folder))
    return folder / "run"


def command(folder: Path, *words: str, run: str = "run", before: str = "") -> subprocess.CompletedProcess[str]:
    """`python run.py …`, its run in folder/run; `before` is Python that runs in the process first."""
    script = str(ROOT / "run.py")
    code = f"{before}\nimport runpy, sys; sys.argv[0] = 'run.py'; runpy.run_path({script!r}, run_name='__main__')"
    own = [word for word in words if not word.startswith("paths.cache=")]
    paths = (f"paths.cache={folder / 'cache'}", f"paths.output={folder}", f"hydra.run.dir={folder / run}")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    return subprocess.run(
        [sys.executable, "-c", code, *own, *(path for path in paths if path.partition("=")[0] not in keys(own))],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip


def keys(words: list[str]) -> set[str]:
    found = {word.partition("=")[0] for word in words}
    return found | ({"hydra.run.dir"} if "resume" in found else set())


HOST = ("logger=none", "trainer.threads=1")  # what a checkpoint doesn't say


def sentence(result: subprocess.CompletedProcess[str]) -> str:
    """What the command says went wrong: one line, no traceback, exit code 1."""
    assert result.returncode == 1, result.stderr
    assert "Traceback" not in result.stderr, result.stderr
    (line,) = (line for line in result.stderr.splitlines() if line.startswith("error: "))
    return line


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def copied(trained: Path, folder: Path) -> Path:
    shutil.copytree(trained.parent, folder, dirs_exist_ok=True)
    return folder / "run"


# ---------------------------------------------------------------------------------------------------------- checkpoints


@pytest.mark.parametrize("share", [0.0, 0.3, 0.999])
def test_checkpoint_cut_short(share: float, trained: Path, settings: Callable[..., Any], tmp_path: Path) -> None:
    run = copied(trained, tmp_path)
    last = run / "last.ckpt"
    last.unlink()  # it is the same file as best.ckpt
    whole = (run / "best.ckpt").read_bytes()
    last.write_bytes(whole[: int(share * len(whole))])
    for words in ((f"resume={run}",), ("task=test", f"checkpoint={last}"), ("task=explain", f"checkpoint={last}")):
        before = content(run)
        with pytest.raises(UserError, match=r"last\.ckpt"):
            attempt(words, settings, tmp_path)
        assert content(run) == before
    attempt(("task=test", f"checkpoint={run / 'best.ckpt'}"), settings, tmp_path)  # as good as before


def attempt(words: tuple[str, ...], settings: Callable[..., Any], folder: Path) -> dict[str, float]:
    from deepinterest.resuming import continued, start_of
    from deepinterest.serving.checkpoint import as_trained

    config, plain = settings("dnn", folder, f"paths.run={folder / 'run-2'}", *words)
    overrides = list(words)
    plain = continued(plain, overrides, start_of(config)) if config.resume else as_trained(plain, overrides)
    return experiment.run(restored(plain), plain)


def test_checkpoint_with_a_flipped_byte(trained: Path, settings: Callable[..., Any], tmp_path: Path) -> None:
    run = copied(trained, tmp_path)
    best = run / "best.ckpt"
    weight = max(torch.load(best, weights_only=True)["state_dict"].values(), key=torch.numel).numpy().tobytes()
    flip(best, best.read_bytes().index(weight) + 5)
    assert torch.load(best, weights_only=True, mmap=True)  # torch alone doesn't notice
    with pytest.raises(UserError, match=r"best\.ckpt.* damaged"):
        attempt(("task=test", f"checkpoint={best}"), settings, tmp_path)


def flip(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 4]))


def test_vocabulary_that_does_not_match(trained: Path, settings: Callable[..., Any], tmp_path: Path) -> None:
    run = copied(trained, tmp_path)
    before = content(run)
    words = ("task=test", f"checkpoint={run / 'best.ckpt'}", "data.users=190")
    with pytest.raises(UserError, match=r"best\.ckpt was trained with another vocabulary \(\w{16}\)"):
        attempt(words, settings, tmp_path)
    assert content(run) == before


# ------------------------------------------------------------------------------------------------------- prepared data


def test_cache_with_a_flipped_byte(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = store.prepare(SMALL, LeaveLastOutConfig(), str(tmp_path))
    whole = content(folder)
    assert {"card.json", "checksums.json", "item.npy", "sizes.json", "vocabulary_item.parquet"} <= set(whole)
    for name, held in whole.items():
        flip(folder / name, len(held) - 3)
        assert content(folder) != whole
        assert prepared_again(tmp_path) == folder
        assert content(folder) == whole
        assert f"{folder} is damaged ({name}" in caplog.text
        caplog.clear()
    (folder / "seen.npy").write_bytes(whole["seen.npy"][:-9])
    (folder / "users.parquet").unlink()
    prepared_again(tmp_path)
    assert content(folder) == whole
    assert "seen.npy, users.parquet" in caplog.text
    assert sorted(path.name for path in tmp_path.iterdir()) == [folder.name, f"{folder.name}.lock"]


def prepared_again(cache: Path) -> Path:
    store._whole.clear()  # as in another process
    return store.prepare(SMALL, LeaveLastOutConfig(), str(cache))


def test_run_goes_on_reading_what_another_prepares_anew(tmp_path: Path) -> None:
    held = store.load(store.prepare(SMALL, LeaveLastOutConfig(), str(tmp_path)))
    events = np.array(held.log.time)
    flip(held.folder / "item.npy", 200)
    prepared_again(tmp_path)
    assert (np.array(held.log.time) == events).all()
    assert damaged(held.folder) == []


PREPARE = """
    import sys
    from deepinterest.config import *
    from deepinterest.data import store
    from deepinterest.errors import sentences
    data = SyntheticConfig(users=20_000, events_per_user=30)
    with sentences():
        print("ready", flush=True)
        sys.stdin.readline()
        print(store.prepare(data, LeaveLastOutConfig(), sys.argv[1]), flush=True)
"""


def preparing(cache: Path, before: str = "") -> subprocess.Popen[str]:
    """A process that prepares once it is told to `begin`."""
    command = [sys.executable, "-c", f"{before}\n{textwrap.dedent(PREPARE)}", str(cache)]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


def begin(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("go\n")
    process.stdin.flush()


def test_two_jobs_prepare_and_one_is_killed(tmp_path: Path) -> None:
    first, second = preparing(tmp_path), preparing(tmp_path)
    begin(first)
    wait_for(lambda: any(tmp_path.glob(".preparing-*/*.npy")))
    begin(second)  # it waits for the lock
    time.sleep(0.2)
    first.send_signal(signal.SIGKILL)
    output, errors = second.communicate(timeout=120)
    assert second.returncode == 0, errors
    first.communicate()
    folder = Path(output.strip())
    assert damaged(folder) == []
    assert store.load(folder).card["users"] == 20_000
    assert sorted(path.name for path in tmp_path.iterdir()) == [folder.name, f"{folder.name}.lock"]


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.002)


# ---------------------------------------------------------------------------------------------------------- a full disk

# A file can't grow beyond so many bytes: EFBIG, as a quota or a full disk has it.
LIMIT = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({0}, {0}))"


def test_disk_full_while_preparing(tmp_path: Path) -> None:
    good = store.prepare(SMALL, LeaveLastOutConfig(), str(tmp_path))
    before = content(good)
    process = preparing(tmp_path, LIMIT.format(500_000))
    begin(process)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    assert errors.startswith("error: Prepared data could not be written") and "Traceback" not in errors
    assert "File too large" in errors and "paths.cache" in errors
    assert content(good) == before
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(TEMPORARY)]


def test_disk_full_while_cutting_into_partitions(tmp_path: Path) -> None:
    """Polars tells of a full disk in its own way."""
    log = tmp_path / "log.csv"
    log.write_text("user,item,timestamp\n" + "".join(f"{n % 97},{n * 7 % 1013},{n}\n" for n in range(20_000)))
    code = f"{LIMIT.format(9_000)}\n{textwrap.dedent(PREPARE)}".replace(
        "SyntheticConfig(users=20_000, events_per_user=30)", "EventFileConfig(path=sys.argv[2], partitions=3)"
    )
    cache = tmp_path / "cache"
    command = [sys.executable, "-c", code, str(cache), str(log)]
    result = subprocess.run(command, input="go\n", capture_output=True, text=True, timeout=120)
    assert "File too large" in sentence(result)
    assert [path.suffix for path in cache.iterdir()] == [".lock"]


@pytest.mark.slow
@pytest.mark.parametrize("kilobytes", [0, 8, 40])
def test_disk_full_while_saving(kilobytes: int, trained: Path, small: Callable[..., list[str]], tmp_path: Path) -> None:
    """A run goes on, its checkpoints no longer fit, and those before are as they were."""
    run = copied(trained, tmp_path)
    before = {name: (run / name).read_bytes() for name in ("best.ckpt", "last.ckpt", "metrics.json")}
    result = command(
        tmp_path, f"resume={run}", *HOST, "trainer.max_epochs=3", before=LIMIT.format(kilobytes * 1024 + 1)
    )
    text = sentence(result)
    assert str(run) in text and "Make room" in text
    assert {name: (run / name).read_bytes() for name in before} == before
    assert not [path for path in run.rglob(".*") if path.suffix in (".ckpt", ".json", ".parquet", ".png")]
    assert command(tmp_path, f"resume={run}", *HOST, "trainer.max_epochs=3").returncode == 0


@pytest.fixture
def full_disk() -> Callable[[str, int], list[str]]:
    """The start of a command that runs with a folder on a disk of so many KiB; skips where the system forbids it."""
    tool = shutil.which("unshare")
    if tool is None or subprocess.run([tool, "-Urm", "true"], capture_output=True).returncode:
        pytest.skip("this system lets users mount no disk of their own (unshare -Urm)")

    def inside(folder: str, size: int) -> list[str]:
        mount = f'mount -t tmpfs -o size={size}k tmpfs "{folder}" && exec "$@"'
        return ["unshare", "-Urm", "sh", "-c", mount, "sh"]

    return inside


@pytest.mark.slow
@pytest.mark.parametrize("size", [12, 150, 240])
def test_disk_that_is_really_full(
    size: int, small: Callable[..., list[str]], full_disk: Callable[[str, int], list[str]], tmp_path: Path
) -> None:
    (tmp_path / "disk").mkdir()
    words = small("dnn", "data.users=2000", "trainer.checkpoint_minutes=0.0001")
    paths = [f"paths.cache={tmp_path / 'cache'}", f"hydra.run.dir={tmp_path / 'disk' / 'run'}"]
    start = [*full_disk(str(tmp_path / "disk"), size), sys.executable, str(ROOT / "run.py")]
    result = subprocess.run([*start, *words, *paths], capture_output=True, text=True, cwd=tmp_path)
    text = sentence(result)
    assert "No space left on device" in text or "Make room" in text


# ----------------------------------------------------------------------------------------------------- a rank that dies


@pytest.mark.slow
@pytest.mark.parametrize("which", [0, 1])
def test_a_rank_that_dies(which: int, small: Callable[..., list[str]], tmp_path: Path) -> None:
    """SIGKILL of one of two processes ends the other within seconds, what is saved is whole, and the run goes on."""
    words = [*small("dnn"), "trainer=ddp_cpu", "trainer.max_epochs=100000", "trainer.patience=null",
             "trainer.batch_size=32", "trainer.validate_every=300", "trainer.checkpoint_minutes=0.01"]  # fmt: skip
    words.remove("trainer=cpu")
    run = tmp_path / "run"
    paths = [f"paths.cache={tmp_path / 'cache'}", f"hydra.run.dir={run}"]
    mark = f"DEEPINTEREST_TEST={tmp_path}"
    environment = {**os.environ, "DEEPINTEREST_TEST": str(tmp_path), "OMP_NUM_THREADS": "1"}
    start = [sys.executable, str(ROOT / "run.py"), *words, *paths]
    process = subprocess.Popen(start, env=environment, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    last = run / "last.ckpt"
    wait_for(lambda: last.is_file() and torch.load(last, weights_only=True)["global_step"] > 300, 120)
    ranks = sorted(marked(mark), key=lambda one: one != process.pid)
    assert len(ranks) == 2
    os.kill(ranks[which], signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    wait_for(lambda: not marked(mark), 30)
    if which == 1:  # the first one is left to say so
        (line,) = (line for line in errors.splitlines() if line.startswith("error: "))
        assert "process 1" in line and f"resume={run}" in line
        assert "Traceback" not in errors
        assert process.returncode == 1
    saved = torch.load(last, weights_only=True)["global_step"]
    result = command(tmp_path, f"resume={run}", *HOST, f"trainer.max_steps={saved + 20}")
    assert result.returncode == 0, result.stderr
    assert json.loads((run / "metrics.json").read_text())["steps"] == saved + 20
    assert not list(run.glob(".*.ckpt"))


def test_what_is_said_of_a_lost_process(tmp_path: Path) -> None:
    watching = LostProcess(tmp_path)
    reset = RuntimeError("[pair.cc:537] Read error: Connection reset by peer.\nmore")
    assert watching.said(RuntimeError("mat1 and mat2 shapes cannot be multiplied")) is None
    assert str(watching.said(reset)).startswith("another process of this run is gone ([pair.cc:537] Read error")
    for code, how in (("import os; os.kill(os.getpid(), 9)", "by SIGKILL"), ("raise SystemExit(3)", "with code 3")):
        watching = LostProcess(tmp_path)
        watching._others = [subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)]
        assert watching._look() == ""
        watching._others.append(subprocess.Popen([sys.executable, "-c", code]))
        watching._others[1].wait()
        watching._look()
        assert str(watching.said(reset)).startswith(f"process 2 of 3 ended {how}; what it said")
        assert "Nothing was saved yet" in str(watching.said(reset))
        (tmp_path / "last.ckpt").touch()
        assert f"The run goes on by: python run.py resume={tmp_path}" in str(watching.said(reset))
        (tmp_path / "last.ckpt").unlink()
        watching._others[0].kill()
        watching._others[0].communicate()


def marked(mark: str) -> list[int]:
    """The running processes with this variable in their environment."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if (
                mark.encode() in (entry / "environ").read_bytes().split(b"\0")
                and (entry / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
            ):
                found.append(int(entry.name))
        except OSError:
            continue
    return found


# ----------------------------------------------------------------------------------------------------------- a download


class Slow(http.server.BaseHTTPRequestHandler):
    """Sends CONTENT, the first time with a long pause in the middle."""

    content = np.random.default_rng(1).bytes(3_000_000)
    asked: list[str | None]

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        begin = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
        self.asked.append(asked)
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(len(self.content) - begin))
        self.send_header("ETag", '"one"')
        if asked:
            self.send_header("Content-Range", f"bytes {begin}-{len(self.content) - 1}/{len(self.content)}")
        self.end_headers()
        if not asked:
            self.wfile.write(self.content[:1_000_000])
            self.wfile.flush()
            self.pause.wait(30)
            return
        self.wfile.write(self.content[begin:])

    pause: threading.Event

    def log_message(self, *_: Any) -> None:
        pass


def test_download_whose_process_is_killed(tmp_path: Path) -> None:
    Slow.asked, Slow.pause = [], threading.Event()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Slow)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    target = tmp_path / "log.csv"
    code = "import sys; from pathlib import Path; from deepinterest.data.download import fetch\n"
    code += "fetch(sys.argv[1], Path(sys.argv[2]))"
    command = [sys.executable, "-c", code, f"http://127.0.0.1:{server.server_port}/log.csv", str(target)]
    try:
        first = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        part = tmp_path / "log.csv.part"
        wait_for(lambda: part.is_file() and part.stat().st_size > 500_000)
        first.send_signal(signal.SIGKILL)
        first.wait()
        assert not target.exists()  # half a file has another name
        kept = part.stat().st_size
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL, timeout=60)
        assert Slow.asked == [None, f"bytes={kept}-"]
        assert target.read_bytes() == Slow.content
        assert not part.exists()
    finally:
        Slow.pause.set()
        server.shutdown()
        server.server_close()


# ------------------------------------------------------------------------------------------------- nothing is executed


class Harm:
    """Unpickled by Python's own reader it writes a file."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self.place}'",)


def test_checkpoint_that_would_run_something(trained: Path, settings: Callable[..., Any], tmp_path: Path) -> None:
    run = copied(trained, tmp_path)
    state = torch.load(run / "best.ckpt", weights_only=True)
    for name in ("best.ckpt", "last.ckpt"):
        (run / name).unlink()
        torch.save({**state, "settings": Harm(tmp_path / "harm")}, run / name)
    torch.load(run / "best.ckpt", weights_only=False)
    wait_for((tmp_path / "harm").is_file)  # it would
    (tmp_path / "harm").unlink()
    tasks = ("test", "explain", "probe")
    for words in (("checkpoint=" + str(run / "best.ckpt"),), (f"resume={run}",), *(
        (f"task={task}", f"checkpoint={run / 'best.ckpt'}") for task in tasks
    )):  # fmt: skip
        with pytest.raises(UserError, match=r"\.ckpt"):
            attempt(words, settings, tmp_path)
    from deepinterest import load

    with pytest.raises(UserError):
        load(run)
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize(
    "where", [("data",), ("model",), ("optimizer",), ("protocol", "negatives"), ("trainer",), ()], ids=".".join
)
def test_settings_that_would_run_something(
    where: tuple[str, ...], trained: Path, settings: Callable[..., Any], tmp_path: Path
) -> None:
    """`_target_` means something to Hydra; in a checkpoint or a run's folder it is an unknown setting."""
    run = copied(trained, tmp_path)
    harm = {"_target_": "os.system", "command": f"touch '{tmp_path / 'harm'}'"}
    state = torch.load(run / "best.ckpt", weights_only=True)
    node = state["settings"]
    for key in where:
        node = node[key]
    node.update(harm)
    for name in ("best.ckpt", "last.ckpt"):
        (run / name).unlink()
        torch.save(state, run / name)
    config = OmegaConf.load(run / "config.yaml")
    OmegaConf.update(config, ".".join(where) or "more", {**harm} if not where else harm, merge=True, force_add=True)
    OmegaConf.save(config, run / "config.yaml")
    with pytest.raises(UserError, match=r"_target_|setting"):
        attempt((f"resume={run}",), settings, tmp_path)
    compare([str(run), str(trained), "--out", str(tmp_path / "page"), "--resamples", "100"])
    assert not (tmp_path / "harm").exists()


def test_pickled_objects_in_the_cache(tmp_path: Path) -> None:
    folder = store.prepare(SMALL, LeaveLastOutConfig(), str(tmp_path))
    np.save(folder / "item.npy", np.array([Harm(tmp_path / "harm")], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"allow_pickle|Python objects"):
        store.load(folder)
    prepared_again(tmp_path)
    assert len(store.load(folder).log.item) > 100
    assert not (tmp_path / "harm").exists()


def test_pickle_as_an_event_file(tmp_path: Path) -> None:
    for ending in ("parquet", "arrow", "ndjson", "csv"):
        path = tmp_path / f"log.{ending}"
        path.write_bytes(pickle.dumps(Harm(tmp_path / "harm")))
        with pytest.raises(UserError, match=f"log.{ending}"):
            store.prepare(EventFileConfig(path=str(path)), LeaveLastOutConfig(), str(tmp_path / "cache"))
    assert not (tmp_path / "harm").exists()


FORBIDDEN = {"eval", "exec", "compile", "__import__"}
READERS = {"load", "loads", "Unpickler"}


def test_source_executes_no_data() -> None:
    """No eval, exec, unpickling or unsafe YAML; every torch.load is of weights alone."""
    seen = 0
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            where = f"{path.name}:{node.lineno}"
            words = {word.arg: ast.unparse(word.value) for word in node.keywords}
            if isinstance(node.func, ast.Name):
                assert node.func.id not in FORBIDDEN, where
            elif isinstance(node.func, ast.Attribute):
                module, name = ast.unparse(node.func.value), node.func.attr
                if (module, name) == ("torch", "load"):
                    seen += 1
                    assert words.get("weights_only") == "True", where
                assert module not in ("pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib") or (
                    name not in READERS
                ), where
                assert module != "yaml" or name == "safe_load" or (path.name, name) == ("plain.py", "load"), where
                assert "instantiate" not in name, where
                assert words.get("allow_pickle") != "True", where
                assert words.get("weights_only") != "False", where
                assert words.get("shell") != "True" and (module, name) != ("os", "system"), where
    assert seen >= 4
    assert issubclass(plain._Loader, (yaml.SafeLoader, yaml.CSafeLoader))  # and so no other than a safe one


def test_texts_are_written_in_utf8_whatever_the_locale() -> None:
    """JSON is ASCII alone; anything else may hold a name in any script."""
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "write_text":
                plain = ast.unparse(node.args[0]).startswith(("json.dumps(", "as_json(", "'5'", "version"))
                assert plain or any(word.arg == "encoding" for word in node.keywords), f"{path.name}:{node.lineno}"
