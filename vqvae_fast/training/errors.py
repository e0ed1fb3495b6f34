"""The one kind of error that a user can mend."""

from pathlib import Path


class UserError(ValueError):
    """Something in the input is wrong; the message is one sentence that says what to change.

    The command line prints the message alone; from Python it is an ordinary ValueError.
    """


def user_path(name: str | Path) -> Path:
    """The path that a user has named, ``~`` replaced; raises UserError where that is nobody."""
    try:
        return Path(name).expanduser()
    except RuntimeError as error:
        raise UserError(f"there is no user whose folder {name} could lie in") from error
