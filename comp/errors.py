"""What a user is told when something does not fit."""


class Refused(ValueError):
    """Bad input, told in one line: which file, key, sample or row, and what would fit.

    Entry scripts print the line and end with exit status 2; nothing has been overwritten.
    """
