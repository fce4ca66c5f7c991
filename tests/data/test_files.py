"""Files that may come from strangers: formats, sizes, and paths that lead elsewhere."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import stat
import struct
import sys
import zipfile
import zlib
from pathlib import Path

import benchmark_data
import datasets
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from image_folders import flat, save
from PIL import Image

from jscpt_peft.choices import markdown, printable
from jscpt_peft.data import ImageTaskDataset, folder_task_set, load_task_set, to_rgb
from jscpt_peft.data.benchmarks import BENCHMARKS
from jscpt_peft.data.files import FORMATS, MAX_PIXELS, leading_out, open_image
from jscpt_peft.data.found import RowsOfTables
from jscpt_peft.data.hub import _unpack
from jscpt_peft.data.transforms import image_transform

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n%%EndComments\nshowpage\n%%EOF\n"


def huge_png(width: int, height: int) -> bytes:
    """The header of a PNG of any size, and next to no data."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def images_in(path: Path) -> ImageTaskDataset:
    """A data set of one's own with one image, which `datasets` would decode."""
    rows = {"image": [str(path)], "label": [0], "task_id": [0]}
    table = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    return ImageTaskDataset([table], image_transform(8, (0,) * 3, (1,) * 3, train=False))


@pytest.mark.parametrize(("content", "reason"), [(EPS, "cannot identify"), (huge_png(8193, 8192), "8193 by 8192 pix")])
def test_other_formats_and_images_out_of_proportion_are_refused_before_decoding(
    content, reason, tmp_path, monkeypatch
):
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *_: pytest.fail("started a program"))
    monkeypatch.setattr(Image.core, "fill", lambda *_: pytest.fail("made room for the image"))
    monkeypatch.setattr(Image.core, "new", lambda *_: pytest.fail("made room for the image"))
    path = tmp_path / "image.png"
    path.write_bytes(content)
    for source in (path, str(path), content):
        with pytest.raises((OSError, ValueError), match=reason):
            open_image(source)
    with pytest.raises(OSError, match=rf"image\.png' cannot be read \(.*{reason}"):
        images_in(path)[0]
    table = datasets.Dataset.from_dict({"image": [{"bytes": content, "path": None}]})
    with pytest.raises((OSError, ValueError), match=reason):
        RowsOfTables({"train": table}, {}).image({"split": "train", "row": 0})


def test_every_format_that_is_known_is_opened():
    Image.init()
    for name in set(FORMATS) & set(Image.SAVE) - {"MPO"}:
        file = io.BytesIO()
        Image.new("RGB", (5, 4), "red").save(file, name)
        assert open_image(file.getvalue()).size == (5, 4), name


def test_an_image_that_is_open_is_checked_before_it_is_decoded():
    with pytest.raises(ValueError, match=f"1 to {MAX_PIXELS}"):
        to_rgb(Image.open(io.BytesIO(huge_png(9000, 9000))))
    with pytest.raises(ValueError, match="0 by 3 pixels"):
        to_rgb(Image.new("RGB", (0, 3)))
    with pytest.raises(ValueError, match="pixels"):  # resized to a shorter side of 224 it would have 5 billion
        image_transform(224, (0,) * 3, (1,) * 3, train=False)(Image.new("L", (1, 100_000)), None)


def test_a_pipe_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(OSError, match=r"pipe\.png' is no regular file"):
        open_image(tmp_path / "pipe.png")


def test_a_table_names_no_files(tmp_path):
    save(tmp_path / "secret.png")
    table = datasets.Dataset.from_dict({"image": [{"bytes": None, "path": str(tmp_path / "secret.png")}]})
    with pytest.raises(OSError, match="does not hold it"):
        RowsOfTables({"train": table}, {}).image({"split": "train", "row": 0})


# ---- paths ----------------------------------------------------------------------------------------------------------


@given(st.lists(st.sampled_from(["..", ".", "a", "b", "", "/"]), min_size=1, max_size=6))
def test_paths_lead_out_where_their_real_path_does(tmp_path_factory, parts):
    root = tmp_path_factory.getbasetemp() / "paths"
    (root / "a" / "b").mkdir(parents=True, exist_ok=True)
    key = "/".join([*parts, "x.png"])
    real = os.path.realpath(root / key)
    assert bool(leading_out(root, [key])) == (not real.startswith(f"{os.path.realpath(root)}/"))


@pytest.fixture
def eurosat(tmp_path):
    benchmark_data.folder("eurosat", tmp_path / "data", {"train": 2, "validation": 1, "test": 1})
    save(tmp_path / "secret.png")
    return tmp_path / "data"


@pytest.mark.parametrize("name", ["../../../secret.png", "{tmp_path}/secret.png", "link.png", "folder/secret.png"])
def test_a_split_file_stays_in_its_folder(name, eurosat, tmp_path):
    folder = eurosat / "eurosat"
    (folder / "2750" / "link.png").symlink_to(tmp_path / "secret.png")
    (folder / "2750" / "folder").symlink_to(tmp_path)
    path = folder / BENCHMARKS["eurosat"].split_file
    content = json.loads(path.read_text())
    content["train"][0][0] = name.format(tmp_path=tmp_path)
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"the split files in .* name .*, which leads out of that folder"):
        load_task_set("eurosat", data_root=eurosat)


def test_a_data_set_may_be_a_link_itself(eurosat, tmp_path):
    shutil.move(eurosat / "eurosat", tmp_path / "elsewhere")
    (eurosat / "eurosat").symlink_to(tmp_path / "elsewhere")
    assert len(load_task_set("eurosat", data_root=eurosat).tasks[0].train) == 20


@pytest.mark.parametrize("target", ["secret.png", "secrets"])
def test_links_do_not_lead_out_of_a_data_root(target, tmp_path):
    (tmp_path / "secrets").mkdir()
    save(tmp_path / "secret.png")
    flat(tmp_path / "data", "art", cat=4)
    cat = tmp_path / "data" / "art" / "cat"
    (cat / "same.png").symlink_to("0.png")
    assert len(folder_task_set(tmp_path / "data").tasks[0].test) == 2  # 30 % of 5
    (cat / "link.png").symlink_to(tmp_path / target)
    with pytest.raises(ValueError, match=r"link\.png' is a link to a folder or to a file outside of"):
        folder_task_set(tmp_path / "data")


def archive(path: Path, members: dict[str, bytes]) -> str:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return str(path)


def test_archives_stay_where_they_are_unpacked_and_have_a_size(tmp_path, monkeypatch):
    ucf, target = BENCHMARKS["ucf101"], tmp_path / "kept" / "ucf101"
    split = {f"ucf101/{ucf.split_file}": b"{}"}
    for name in ("../secret.txt", "/secret.txt", "ucf101/../../secret.txt"):
        with pytest.raises(ValueError, match=r"holds '.*secret\.txt', which leads out of where it is unpacked"):
            _unpack(ucf, archive(tmp_path / "bad.zip", {name: b"", **split}), target)
    monkeypatch.setattr("jscpt_peft.data.hub.LARGEST_ARCHIVE", 1000)
    with pytest.raises(ValueError, match="would unpack to 10002 bytes, more than 1000"):
        _unpack(ucf, archive(tmp_path / "bomb.zip", {"zeros": bytes(10_000), **split}), target)
    assert not target.exists()
    link = zipfile.ZipInfo("ucf101/link.png")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    good = archive(tmp_path / "good.zip", split)
    with zipfile.ZipFile(good, "a") as file:
        file.writestr(link, "/etc/hostname")
    _unpack(ucf, good, target)
    assert not (target / "ucf101" / "link.png").is_symlink()


# ---- names ----------------------------------------------------------------------------------------------------------


@given(st.text())
def test_what_is_printed_obeys_no_terminal_and_stays_on_its_line(text):
    shown = printable(text)
    assert printable(shown) == shown and len(shown.splitlines()) <= 1
    assert not any(each < " " or "\x7f" <= each <= "\x9f" or each in "\u202e\u2066" for each in shown)
    if text.isprintable():
        assert shown == text


@given(st.text(alphabet="\\`|<>[]()*!a\x1b\n"))
def test_names_are_no_markdown(text):
    shown = markdown(text)
    assert not re.search(r"(?<!\\)(?:\\\\)*[`|<\[*]", shown)
    assert re.sub(r"\\(.)", r"\1", shown) == printable(text)


@pytest.mark.skipif(sys.platform == "darwin", reason="such names cannot be given")
@pytest.mark.parametrize("name", ["art/caf\udce9/1.png", "art/cat/\udcff.png"])
def test_names_that_are_no_text_are_refused(name, tmp_path):
    save(tmp_path / name)
    with pytest.raises(ValueError, match=r"the name of .* is no UTF-8 text: rename it"):
        folder_task_set(tmp_path)


def test_names_that_a_terminal_would_obey_are_refused(tmp_path):
    for name in ("cat\x1b]52;c;x\x07", "a\u202eb", "two\nlines", " "):
        for task, folder in ((name, "cat"), ("art", name)):
            root = tmp_path / str(len(list(tmp_path.iterdir())))
            flat(root, task, **{folder: 4})
            with pytest.raises(ValueError, match="blank or has control characters: rename it") as error:
                folder_task_set(root)
            assert str(error.value).isprintable()


def test_jpegs_are_decoded_at_a_reduced_size(tmp_path):
    picture = Image.radial_gradient("L").resize((1600, 1200)).convert("RGB")
    for name in ("picture.jpg", "picture.png"):
        picture.save(tmp_path / name)
    whole, reduced = (open_image(tmp_path / "picture.jpg", side) for side in (None, 448))
    assert (whole.size, reduced.size) == ((1600, 1200), (800, 600))
    assert open_image(tmp_path / "picture.png", 448).size == whole.size
    transform = image_transform(224, (0.5,) * 3, (0.25,) * 3, train=False)
    torch.testing.assert_close(transform(reduced), transform(whole), atol=0.1, rtol=0)
