"""Errors a user can mend: one sentence that says what is wrong, where, and what to do."""

from __future__ import annotations

import errno
import logging
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches

from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from omegaconf import Container, DictConfig
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException, ValidationError

from deepinterest.kinds import choices_of, describe, expected_type

before_exit: list[Callable[[], None]] = []  # called after an error was shown: a sweep's table (report/sweep.py)


# extras of pyproject.toml with Hydra's launchers
LAUNCHERS = {"joblib": "sweep", "submitit_slurm": "slurm", "submitit_local": "slurm", "ray": "ray"}
INVISIBLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff]")
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # what the system says of a full disk, a quota, a file size limit


class UserError(Exception):
    """Something in the user's hands is wrong; its text is shown without a traceback and the exit code is 1."""


class Interrupted(BaseException):
    """A signal ended the run. Like KeyboardInterrupt no Exception: it ends a sweep too, and not one job of it."""

    def __init__(self, text: str, number: int) -> None:
        super().__init__(text)
        self.number = number  # of the signal


def nearest(word: str, choices: Iterable[object]) -> str:
    """A did-you-mean for `word`, whatever its case, or nothing."""
    names = {name.casefold(): name for name in map(str, choices)}
    word = word.casefold()
    close = get_close_matches(word, names, n=1, cutoff=0.5) or [
        name for name in names if word and name.startswith(word)
    ]
    return f"; did you mean {names[close[0]]}?" if close else ""


def some(names: Iterable[object], most: int = 12) -> str:
    """A handful of names for a sentence, and how many there are; "none" for none."""
    every = [visible(str(name)) for name in names]
    shown = ", ".join(name if len(name) <= 60 else f"{name[:60]}…" for name in every[:most])
    return f"{shown}, … ({len(every):,} in all)" if len(every) > most else shown or "none"


def visible(text: str) -> str:
    """A text on one line, its control characters and those that turn the direction of writing as `\\x1b` or `\\u202e`.

    Whatever a file or a name holds can then be printed: a terminal obeys none of it.
    """
    return INVISIBLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def short(value: object, most: int = 100) -> str:
    """A value as text, cut where it is long."""
    text = str(value)
    return text if len(text) <= most else f"{text[:most]}… ({len(text):,} characters)"


def sentence(error: BaseException) -> str | None:
    """What to tell the user about a mistake of theirs; None where the error is another kind. Endless words are cut."""
    text = _sentence(error)
    return text and re.sub(r"\S{400,}", lambda word: short(word[0]), text)


def _sentence(error: BaseException) -> str | None:
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, MissingConfigException):
        return _unknown_choice(error)
    if isinstance(error, OverrideParseException):
        quoted = "'data.label=\"rating>=4\"'"
        return (
            f"cannot read the argument '{error.override}': write key=value, and quote values with spaces, commas, < or "
            f">, as in {quoted}"
        )
    if isinstance(error, ConfigCompositionException | OmegaConfBaseException):
        cause = error if isinstance(error, OmegaConfBaseException) else error.__cause__
        if isinstance(cause, ConfigAttributeError | ConfigKeyError):
            return _unknown_key(error, cause)
        if isinstance(cause, ValidationError):
            return _wrong_type(cause)
        return _one_line(cause if cause is not None and not str(error) else error)
    if isinstance(error, HydraException):
        return _one_line(error)
    if key := re.search(r"\n\s*full_key: (\S+)", str(error)):  # how OmegaConf marks another library's error
        return f"{key[1]} is not possible: {str(error).splitlines()[0]}"
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return f"{short(error.filename)} has a name that is longer than the file system takes: name another one"
    if reason := no_room(error):
        return f"{getattr(error, 'filename', None) or 'a file'} could not be written: {reason}. Make room and run again"
    return _exhausted(error)


def _exhausted(error: BaseException) -> str | None:
    """What to do where the system or torch gave no more memory or files; None where an error means something else."""
    chain = [error]
    while (before := chain[-1].__cause__ or chain[-1].__context__) and before not in chain:
        chain.append(before)
    for one in chain:
        if getattr(one, "errno", None) in (errno.EMFILE, errno.ENFILE) or "too many open files" in str(one).lower():
            return f"Too many open files: this process may have {_open_files()}. Raise the limit, as by ulimit -n 4096"
        if isinstance(one, MemoryError) or re.search(r"can't allocate memory|CUDA out of memory", str(one)):
            return (
                f"There isn't enough memory ({short(_one_line(one), 200) or 'it gave none'}). Set trainer.batch_size, "
                "trainer.eval_batch_size or the model's widths lower, or take fewer users (data.limit_users)"
            )
    return None


def _open_files() -> str:
    if sys.platform == "win32":
        return "no more"
    import resource

    return f"{resource.getrlimit(resource.RLIMIT_NOFILE)[0]:,} (ulimit -n)"


def no_room(error: BaseException) -> str | None:
    """What the system says where an error means that the disk took no more; None where it means something else."""
    found = re.search(r"\(os error (\d+)\)", str(error))  # how Polars words it
    number = error.errno if isinstance(error, OSError) else int(found[1]) if found else None
    return os.strerror(number) if number in FULL else None


@contextmanager
def sentences() -> Iterator[None]:
    """Show mistakes in settings as one sentence on stderr, other errors with their traceback; then exit with 1."""
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra hands errors on instead of printing them
    logging.raiseExceptions = False  # a line that a full disk doesn't take is no reason to stop, or for a traceback
    try:
        yield
    except (Interrupted, KeyboardInterrupt) as error:
        print(f"\n{str(error) or 'Ctrl-C stopped the run.'}", file=sys.stderr)
        for call in before_exit:
            call()
        sys.exit(128 + getattr(error, "number", signal.SIGINT))
    except Exception as error:
        tell(error)
        for call in before_exit:
            call()
        sys.exit(1)


def tell(error: BaseException) -> None:
    """Print an error once."""
    if getattr(error, "told", False):
        return
    if text := sentence(error):
        print(f"error: {visible(text)}", file=sys.stderr)
    else:
        traceback.print_exception(error)
    error.told = True  # type: ignore[attr-defined]


def _one_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines()]
    return ", ".join(line for line in lines if line and not line.startswith(("reference_type", "object_type")))


def _unknown_choice(error: MissingConfigException) -> str:
    *groups, choice = (error.missing_cfg_file or "").split("/", 2 if str(error.missing_cfg_file)[:6] == "hydra/" else 1)
    group = "/".join(groups)
    if not group or not error.options:
        return _one_line(error)
    if group == "hydra/launcher" and (extra := LAUNCHERS.get(choice)):
        return f'{group}={choice} needs its package: pip install -e ".[{extra}]"'
    return (
        f"{group}={choice} is no choice of {group}: one of {', '.join(error.options)}{nearest(choice, error.options)}"
    )


def _unknown_key(error: BaseException, cause: OmegaConfBaseException) -> str:
    named = re.search(r"Could not override '(.+?)'", str(error))
    wrong = str(cause.full_key or cause.key)
    key = named[1] if named else wrong
    where = wrong.rpartition(".")[0]
    allowed: list[str] = []
    if isinstance(cause.parent_node, DictConfig):
        allowed = sorted(str(name) for name in cause.parent_node if name != "hydra")
    place = f"{where} has" if where else "the settings are"
    root = cause.parent_node._get_root() if cause.parent_node is not None else None
    return f"there is no setting {key}: {place} {', '.join(allowed)}{meant(wrong, allowed, root)}"


def meant(wrong: str, beside: Iterable[str], root: Container | None) -> str:
    """A did-you-mean for a setting: its last word in another place, or one like it here or there."""
    word = wrong.rpartition(".")[2]
    everywhere: dict[str, list[str]] = {}
    for path in _paths(root, ""):
        if path != wrong:
            everywhere.setdefault(path.rpartition(".")[2], []).append(path)
    if word not in everywhere and (guess := nearest(word, beside)):
        return guess
    close = get_close_matches(word, everywhere, n=1, cutoff=0.75)
    return f"; did you mean {' or '.join(everywhere[close[0]][:3])}?" if close else ""


def _paths(node: Container | None, path: str) -> Iterator[str]:
    if not isinstance(node, DictConfig) or node._is_none() or node._is_missing() or node._is_interpolation():
        return
    for key in map(str, node):
        if path or key != "hydra":
            yield f"{path}{key}"
            child = node._get_node(key)
            if isinstance(child, DictConfig):
                yield from _paths(child, f"{path}{key}.")


def _wrong_type(error: ValidationError) -> str:
    found = re.search(r"[Vv]alue '(.*)'(?: of type '| \(|, expected|$)", str(error).splitlines()[0])
    value = found[1] if found else error.value
    expected = expected_type(error.parent_node, error.key)
    if expected is None:
        return f"{error.full_key}: {_one_line(error)}"
    guess = nearest(str(value), choices_of(expected))
    return f"{error.full_key}={short(value)} is not possible: expected {describe(expected)}{guess}"
