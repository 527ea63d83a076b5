"""The pictures of the architecture page."""

import re
from xml.etree import ElementTree

from website.pictures import IMAGES, PICTURES, ROOT, RUN, layers, summary


def test_the_pictures_show_the_rooms_as_they_are() -> None:
    for name, draw in PICTURES.items():
        kept = (IMAGES / name).read_text(encoding="utf-8")
        assert kept == draw(), f"{name} is behind: run `python -m website.pictures`"
        ElementTree.fromstring(kept)


def test_every_room_has_a_place_and_a_summary() -> None:
    folders = {p.parent.name for p in (ROOT / "fst_lightning").glob("*/__init__.py")}
    assert {room for row in layers() for room in row} == folders
    assert all(summary(room) for room in folders)


def test_a_run_passes_through_rooms_that_exist() -> None:
    for rooms, _ in RUN:
        for room in re.split(r" \+ ", rooms):
            assert (ROOT / "fst_lightning" / room).is_dir()
