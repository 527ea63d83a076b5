"""Text that somebody else wrote, made fit for a terminal."""

from __future__ import annotations


def printable_line(text: object) -> str:
    r"""Write text in one line: runs of spaces become one, and the rest is made printable.

    Example:
        >>> printable_line("two" + chr(10) + "lines" + chr(27) + "[2J")
        'two lines\\x1b[2J'
    """
    return printable(" ".join(str(text).split()))


def printable(text: object) -> str:
    r"""Escape what a terminal would obey, or could not show.

    Names of files, classes and tensors come from people whom nobody vouches for: control
    characters could clear the screen or fake a message, and a name that is no UTF-8 can't be
    encoded at all. Letters of any script stay.

    Args:
        text: Anything; its ``str`` counts.

    Example:
        >>> printable("Käfer"), printable("a" + chr(27) + "[2J"), printable("b" + chr(0xDCFF))
        ('Käfer', 'a\\x1b[2J', 'b\\udcff')
    """
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii")
        for letter in str(text)
    )
