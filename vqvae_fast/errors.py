"""The one kind of error that a user can mend."""

from pathlib import Path

from vqvae_fast.regular_files import check_regular


class UserError(ValueError):
    """Something in the input is wrong; the message is one sentence that says what to change.

    The command line prints the message alone; from Python it is an ordinary ValueError.
    """


def user_path(name: str | Path) -> Path:
    """The path that a user has named, ``~`` replaced.

    Raises:
        UserError: the name is empty, or no user has the home folder that ``~`` names.
    """
    if not str(name):
        raise UserError("the name of a file or folder must not be empty")
    try:
        return Path(name).expanduser()
    except RuntimeError as error:
        raise UserError(f"there is no user whose folder {name} could lie in") from error


def check_input(path: Path, noun: str) -> None:
    """Raise UserError unless a path leads to a regular file; ``noun`` says what is in it."""
    try:
        check_regular(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(f"{noun} not found: {path}") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UserError(str(error)) from error
    if path.is_dir():
        raise UserError(f"{path} is a folder, a file was expected")
