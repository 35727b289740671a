"""Errors a user can mend: one sentence that says what is wrong, where, and what to do."""

from __future__ import annotations


class UserError(Exception):
    """Something in the user's hands is wrong; its text is shown without a traceback and the exit code is 1."""
