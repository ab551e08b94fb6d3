"""Reads the words of a subcommand that runs no guest: flags, options with a value, and the rest."""

from collections.abc import Sequence

from tender.cli import say
from tender.printable import printable


class Words:
    """A command line that was read.

    Attributes:
        flags: The flags that were given.
        values: The values of options, by name. Of an option that is repeated the last one counts.
        rest: The other words.
    """

    def __init__(
        self, command: str, argv: Sequence[str], *, flags: Sequence[str], valued: Sequence[str], usage: str
    ) -> None:
        self.flags: set[str] = set()
        self.values: dict[str, str] = {}
        self.rest: list[str] = []
        self._command, self._usage = command, usage
        self._wrong = ""
        words = iter(argv)
        for word in words:
            name, equals, value = word.partition("=")
            if word in ("--help", "-h"):
                self.flags.add("--help")
            elif word in flags:
                self.flags.add(word)
            elif name in valued:
                value = value if equals else next(words, "")
                self.values[name] = value
                if not value:
                    self.refuse(f"{name} needs a value: {name}=VALUE")
            elif word.startswith("-") and len(word) > 1:
                self.refuse(f"Invalid option: `{printable(word)}'")
            else:
                self.rest.append(word)

    def refuse(self, why: str) -> None:
        """Notes what is wrong with the words. The first mistake counts."""
        self._wrong = self._wrong or why

    def seconds(self, name: str, default: float, *, least: float, most: float) -> float:
        """Returns the value of an option in seconds."""
        return self.number(name, default, least=least, most=most, unit="seconds")

    def number(self, name: str, default: float, *, least: float, most: float, unit: str) -> float:
        """Returns the value of an option that is a number of some unit."""
        text = self.values.get(name)
        if text is None:
            return default
        try:
            number = float(text) if text[:1].isdigit() or text[:1] == "." else -1.0
        except ValueError:
            number = -1.0
        if not least <= number <= most:
            self.refuse(f"{name}={printable(text)}: a number of {unit} from {least:g} to {most:g} is needed")
            return default
        return number

    def answered(self, *, least: int = 0, most: int = 0, needed: str = "") -> int | None:
        """Answers --help and mistakes, and returns the exit status then. None: the words are right.

        Args:
            least: The fewest words besides the options.
            most: The most.
            needed: What to say about fewer.
        """
        if "--help" in self.flags:
            say.out(self._usage)
            return 0
        if len(self.rest) < least:
            self.refuse(needed)
        elif len(self.rest) > most:
            self.refuse(f"`{printable(self.rest[most])}' is one word too many")
        if self._wrong:
            say.error(f"{self._command}: {self._wrong}")
            say.plain(self._usage)
            return 1
        return None
