"""The one kind of error that a user can mend."""


class UserError(ValueError):
    """Something in the input is wrong; the message is one sentence that says what to change.

    The command line prints the message alone; from Python it is an ordinary ValueError.
    """
