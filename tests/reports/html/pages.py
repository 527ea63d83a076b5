"""Reads pages as a browser would, for the tests of this folder."""

from html.parser import HTMLParser

VOID = {"meta", "img", "br", "link", "hr", "input"}
LOADS = {"src", "href", "srcset", "data", "action", "xlink:href"}


class Reader(HTMLParser):
    """Collects tags, attributes and text, and checks that what is opened is closed."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.keyed: dict[str, str] = {}
        self.text = ""
        self._key: str | None = None
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = {name: value or "" for name, value in attrs}
        assert len(names) == len(attrs)
        self.tags.append((tag, names))
        self._key = names.get("data-key")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._key is not None:
            self.keyed[self._key] = data
            self._key = None

    def named(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]


def _inside(tag: str, address: str) -> bool:
    """A part of the same page, or a file of the same sweep that a click opens."""
    return address.startswith("#") or (tag == "a" and address.startswith("./"))


def read(text: str) -> Reader:
    """Parse a page, and refuse one that runs or loads something."""
    page = Reader(text)
    for tag, attributes in page.tags:
        assert tag not in {"script", "iframe", "object", "embed", "link", "base", "form"}
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in LOADS and not _inside(tag, value):
                assert value.startswith("data:image/png;base64,")
            assert "url(" not in value
    assert "url(" not in text.partition("<style>")[2].partition("</style>")[0]
    assert "@import" not in text
    return page
