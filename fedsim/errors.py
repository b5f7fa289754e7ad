"""The one exception for mistakes of the person who starts a run: wrong config, missing data, damaged checkpoint."""


class UserError(ValueError):
    """Bad input from outside. Shown as one line, exit code 2, never as a traceback.

    ``where`` names the file, key or tensor; ``found`` says what is there; ``expected`` what would be accepted.
    """

    def __init__(self, where: str, found: str, expected: str) -> None:
        self.where, self.found, self.expected = where, found, expected
        super().__init__(f"{where}: found {found}; expected {expected}".replace("\n", " "))


class RankError(UserError):
    """What this rank alone has met, such as a meeting that nobody came to: shown whatever the rank."""
