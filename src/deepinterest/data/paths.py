"""Files and folders that settings name."""

from __future__ import annotations

import stat
from pathlib import Path

from deepinterest.errors import UserError

KINDS = {stat.S_IFIFO: "a pipe", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device", stat.S_IFSOCK: "a socket"}


def file_or_folder(given: str | Path, key: str) -> Path:
    """The file or folder that the setting `key` names, or a sentence on why it is neither."""
    path = Path(given).expanduser()
    try:
        mode = stat.S_IFMT(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{key} is {str(path)!r}, and there is no such file or folder: correct the path.") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{key} is {str(path)!r}, which can't be opened ({reason}): correct the path.") from error
    if mode in KINDS:
        raise UserError(
            f"{key} is {str(path)!r}, {KINDS[mode]} and no file: write what comes out of it to a file, and name that."
        )
    return path


def file(given: str | Path, key: str, instead: str = "give one file") -> Path:
    """The file that the setting `key` names, or a sentence on why it is none."""
    path = file_or_folder(given, key)
    if path.is_dir():
        raise UserError(f"{key} is {str(path)!r}, a folder: {instead}.")
    return path
