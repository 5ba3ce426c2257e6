"""images/stock.py: downloads are kept under what they were for, and only whole ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from images.stock import Goods, Stock

GOODS = Goods("debs", "lab-torch", "g++")


def write(folder: Path) -> None:
    (folder / "one.deb").write_text("one")


def test_downloaded_once(tmp_path: Path) -> None:
    stock = Stock(tmp_path)
    assert not stock.has(GOODS)
    folder = stock.get(GOODS, write)
    assert folder == tmp_path / GOODS.folder
    assert [path.name for path in folder.iterdir()] == ["one.deb"]
    assert stock.has(GOODS)
    assert stock.get(GOODS, lambda _: pytest.fail("it is there")) == folder


def test_another_key_is_another_folder_and_the_old_one_goes(tmp_path: Path) -> None:
    stock = Stock(tmp_path)
    neighbour = stock.get(replace(GOODS, name="lab-torch-more"), write)
    old = stock.get(GOODS, write)
    new = stock.get(replace(GOODS, key="g++ gcc"), write)
    assert (old.exists(), new.exists(), neighbour.exists()) == (False, True, True)


def test_what_was_cut_off_is_not_taken_for_whole(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        write(folder)
        raise OSError("the network is gone")

    stock = Stock(tmp_path)
    with pytest.raises(OSError, match="the network is gone"):
        stock.get(GOODS, fail)
    assert not stock.has(GOODS)
    assert stock.get(GOODS, write).is_dir()
