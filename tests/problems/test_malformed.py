"""Malformed rows, lines, images and paths: each gives its own sentence, and nothing else."""

import io
import json
import os
import re
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vaopd.errors import ProblemError, VaopdError
from vaopd.problems.images import ImageRules
from vaopd.problems.problem import Problem
from vaopd.problems.sources import load_problems
from vaopd.views import fit_pixel_budget


def encoded(mode: str = "RGB", size: tuple[int, int] = (8, 6), format: str = "PNG", **options: Any):
    stream = io.BytesIO()
    Image.new(mode, size).save(stream, format, **options)
    return stream.getvalue()


def sentence_of(work: Callable[[], object]) -> str:
    with pytest.raises(VaopdError) as caught:
        work()
    text = str(caught.value)
    assert "\n" not in text and len(text) < 600, "an error is one sentence"
    assert text.isprintable()
    return text


# --- rows -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a data folder with a good image, and images outside of it."""
    place = tmp_path_factory.mktemp("place")
    data = place / "data"
    (data / "images").mkdir(parents=True)
    (data / "images" / "a.png").write_bytes(encoded())
    (place / "secret.png").write_bytes(encoded())
    (data / "leads_out.png").symlink_to(place / "secret.png")
    (data / "out").symlink_to(place)
    (data / "loop.png").symlink_to(data / "loop.png")
    (data / "device.png").symlink_to("/dev/zero")
    os.mkfifo(data / "pipe.png")
    return data


GOOD = {"images": ["images/a.png"], "problem": "<image>Find x.", "answer": "5"}
NOT_THERE = "is not in .*; unpack the images there or correct the path"
OUTSIDE = "outside of .*/data; move the images there, or set data.allow_outside=true"
NOT_TEXT = "is of type {}; write it as text"

ROWS: list[tuple[str, dict[str, Any] | bytes, str]] = [
    ("no columns", {"problem": None}, "problem made:train:0 has 0 <image> in its prompt and 1"),
    ("prompt is a list", {"problem": ["<image>"]}, "problem " + NOT_TEXT.format("list")),
    ("prompt is an object", {"problem": {"text": "x"}}, "problem " + NOT_TEXT.format("dict")),
    ("prompt is true", {"problem": True}, "problem " + NOT_TEXT.format("bool")),
    ("prompt is a number", {"problem": 5}, "has 0 <image> in its prompt and 1 images; write one"),
    ("answer is a list", {"answer": [5]}, "answer " + NOT_TEXT.format("list")),
    ("answer is false", {"answer": False}, "answer " + NOT_TEXT.format("bool")),
    ("id is a list", {"id": [1]}, "id " + NOT_TEXT.format("list")),
    ("id is true", {"id": True}, "id " + NOT_TEXT.format("bool")),
    ("kind is an object", {"kind": {}}, "kind " + NOT_TEXT.format("dict")),
    ("images is a text", {"images": "images/a.png"}, "images is of type str; write a list of im"),
    ("images is null", {"images": None}, "images is of type NoneType; write a list of images"),
    ("images is an object", {"images": {"path": "x"}}, "images is of type dict; write a list"),
    ("images is empty", {"images": []}, "has no image, and 1 <image> in its prompt; give"),
    ("image is a number", {"images": [3]}, "images holds 3; expected encoded image bytes, or a pa"),
    ("image is null", {"images": [None]}, "images holds None; expected encoded image bytes, or"),
    ("image is empty", {"images": [""]}, "images holds ''; expected encoded image bytes, or a pa"),
    ("image is a list", {"images": [["images/a.png"]]}, r"images holds \['images/a.png'\]; expect"),
    ("image is an empty object", {"images": [{}]}, "images holds None; expected encoded image"),
    ("image has no file", {"images": ["images/b.png"]}, f"the image images/b.png {NOT_THERE}"),
    ("image is the folder", {"images": ["images"]}, f"the image images {NOT_THERE}"),
    ("image name too long", {"images": ["x" * 5000]}, rf"x\.\. \(5000 characters\) {NOT_THERE}"),
    ("image path too long", {"images": ["x/" * 9000]}, rf"\(18000 characters\) {NOT_THERE}"),
    ("image name with a zero byte", {"images": ["a\0.png"]}, rf"a\\x00\.png {NOT_THERE}"),
    ("image name with controls", {"images": ["\x1b[2J"]}, rf"the image \\x1b\[2J {NOT_THERE}"),
    ("image name with half a character", {"images": ["\ud800"]}, rf"image \\ud800 {NOT_THERE}"),
    ("image is a pipe", {"images": ["pipe.png"]}, f"the image pipe.png {NOT_THERE}"),
    ("image is a device", {"images": ["device.png"]}, f"the image device.png {NOT_THERE}"),
    ("image is a link to itself", {"images": ["loop.png"]}, f"the image loop.png {NOT_THERE}"),
    ("image above the folder", {"images": ["../secret.png"]}, f"leads to .*png, .*{OUTSIDE}"),
    ("image up and down", {"images": ["images/../../secret.png"]}, OUTSIDE),
    ("image by a link", {"images": ["leads_out.png"]}, f"leads to .*/secret.png, .*{OUTSIDE}"),
    ("image by a linked folder", {"images": ["out/secret.png"]}, f"leads to .*png, .*{OUTSIDE}"),
    ("image by an absolute path", {"images": ["{place}/secret.png"]}, f"secret.png is {OUTSIDE}"),
    ("image is an address", {"images": ["https://a.example/b.png"]}, "is an address; set data.all"),
    ("image is an Address", {"images": ["HTTP://a.example/b.png"]}, "is an address; set data.all"),
    ("image is a data address", {"images": ["data:image/png;base64,AA"]}, NOT_THERE),
    ("image is a file address", {"images": ["file:///etc/passwd"]}, NOT_THERE),
    ("image is an ftp address", {"images": ["ftp://a.example/b.png"]}, NOT_THERE),
    ("no placeholder", {"problem": "Find x."}, "has 0 <image> in its prompt and 1 images; write"),
    ("a placeholder too many", {"problem": "<image> <image>"}, "has 2 <image> in its prompt and 1"),
    ("an image too many", {"images": ["images/a.png"] * 2}, "has 1 <image> in its prompt and 2"),
    ("100,000 images", {"images": ["images/a.png"] * 100_000}, "images holds 100000 images; wr"),
    ("another placeholder", {"problem": "<img>Find x."}, "has 0 <image> in its prompt and 1"),
    ("references is a text", {"references": "x"}, r"references is not a list of texts; write \["),
    ("references of numbers", {"references": [1]}, "references is not a list of texts; write"),
    ("prompt with half a character", {"problem": "<image>\ud800"}, r"half a character \('\\ud800'"),
    ("answer with half a character", {"answer": "\udfff"}, r"half a character \('\\udfff' at posi"),
    ("reference with half a character", {"references": ["a\ud83d"]}, r"half a character \('\\ud8"),
    ("id with half a character", {"id": "\ud800"}, r"the id is '\\ud800', .* control character"),
    ("id with a new line", {"id": "a\nb"}, r"the id is 'a\\nb', which holds the control character"),
    ("id with an escape", {"id": "\x1b[31mred"}, r"the id is '\\x1b\[31mred', which holds the con"),
    ("id with a zero byte", {"id": "a\0"}, r"the id is 'a\\x00', which holds the control charac"),
    ("id that turns the line", {"id": "a\u202eb"}, r"the id is 'a\\u202eb', which holds the cont"),
    ("id with a line separator", {"id": "a\u2028"}, r"the id is 'a\\u2028', which holds the con"),
    ("id of a million", {"id": "x" * 1_000_000}, "the id has 1000000 characters; write at most 10"),
    ("kind with a new line", {"kind": "a\n"}, r"the kind of problem made:train:0 is 'a\\n', wh"),
    ("two layouts", {"question": "", "image": []}, "the columns are answer, image, images, probl"),
    ("a list", b"[1]", "row 1 is a JSON list; write one object on each line"),
    ("a text", b'"x"', "row 1 is a JSON str; write one object on each line"),
    ("a number", b"1", "row 1 is a JSON int; write one object on each line"),
    ("an empty object", b"{}", "row 1: the columns are none; rename them to"),
    ("10,000 columns", json.dumps(dict.fromkeys(map(str, range(10_000)))).encode(), "and 9980"),
    ("a column with controls", b'{"\\u001b": 1}', r"the columns are \\x1b; rename them to"),
    ("half an object", b'{"problem": "x', r"row 1 is not JSON \(Invalid control .*; write one"),
    ("two objects", b"{} {}", r"row 1 is not JSON \(Extra data.*; write one object on each line"),
    ("not UTF-8", b'{"problem": "\xff"}', r"row 1 is not JSON \('utf-8' codec.*; write one object"),
    ("cut UTF-8", b'{"problem": "\xf0\x9f"}', r"row 1 is not JSON \('utf-8' codec.*; write one"),
    ("UTF-16", '{"problem": "x"}'.encode("utf-16-le"), "row 1 is not JSON .*codec.*; write one"),
    ("zero bytes", b"\0" * 100, r"row 1 is not JSON \(.*; write one object on each line"),
    ("deep lists", b"[" * 100_000, r"row 1 is not JSON \(nested too deeply\); write one object"),
    ("deep objects", b'{"a":' * 100_000, r"row 1 is not JSON \(nested too deeply\); write one"),
    ("a huge number", b'{"id": ' + b"9" * 5000 + b"}", r"row 1 is not JSON \(Exceeds the limit"),
    ("a program", b"import os", r"row 1 is not JSON \(Expecting value.*; write one object on each"),
]  # fmt: skip


@pytest.mark.parametrize(("row", "sentence"), [c[1:] for c in ROWS], ids=[c[0] for c in ROWS])
def test_a_malformed_row_is_one_sentence(folder: Path, row: dict[str, Any] | bytes, sentence: str):
    if isinstance(row, dict):
        text = json.dumps({**GOOD, **row}).replace("{place}", str(folder.parent))
        row = text.encode()
    path = folder / "made.jsonl"
    path.write_bytes(row + b"\n")
    found = sentence_of(lambda: load_problems(str(path)))
    assert found.startswith("made.jsonl row 1")
    assert re.search(sentence, found), found


def test_rows_without_a_name_of_their_own_are_told_from_a_repeated_one(folder: Path):
    path = folder / "made.jsonl"
    path.write_text("".join(json.dumps({**GOOD, "id": 7}) + "\n" for _ in range(2)))
    found = sentence_of(lambda: load_problems(str(path)))
    assert re.search(r"row 2 has the id 7 of made\.jsonl row 1; give every problem an id", found)


def test_images_anywhere_are_read_if_that_is_allowed(folder: Path):
    outside = [
        "../secret.png",
        "leads_out.png",
        "out/secret.png",
        str(folder.parent / "secret.png"),
    ]
    rows = [{**GOOD, "images": [name]} for name in outside]
    path = folder / "made.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    problems = load_problems(str(path), images=ImageRules(allow_outside=True))
    assert [one.load_images()[0].size for one in problems] == [(8, 6)] * 4


def test_absolute_paths_and_links_inside_of_the_folder_are_read(folder: Path):
    (folder / "leads_in.png").symlink_to(folder / "images" / "a.png")
    names = [str(folder / "images" / "a.png"), "leads_in.png", "images/../images/a.png"]
    path = folder / "made.jsonl"
    path.write_text("".join(json.dumps({**GOOD, "images": [name]}) + "\n" for name in names))
    assert len(load_problems(str(path))) == 3


def test_a_folder_may_be_named_by_a_link_and_its_images_lie_beside_the_files(tmp_path: Path):
    (tmp_path / "set" / "data").mkdir(parents=True)
    (tmp_path / "set" / "a.png").write_bytes(encoded())
    import pyarrow
    import pyarrow.parquet

    row = {**GOOD, "images": ["../a.png"]}
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "set/data/t.parquet")
    (tmp_path / "link").symlink_to(tmp_path / "set")
    assert len(load_problems(str(tmp_path / "link"))) == 1


# --- files ----------------------------------------------------------------------------------------


def sparse(path: Path, size: int, start: bytes = b"") -> Path:
    path.write_bytes(start)
    os.truncate(path, size)
    return path


def peak_mb(work: Callable[[], object]) -> float:
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1] / 1e6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("start", [b"", b'{"problem": "'])
def test_a_line_of_many_gigabytes_is_refused_in_little_memory(tmp_path: Path, start: bytes):
    path = sparse(tmp_path / "made.jsonl", 50 * 2**30, start)

    def work() -> None:
        found = sentence_of(lambda: load_problems(str(path)))
        assert "made.jsonl row 1 has more than 16 MiB; write one JSON object on each line" in found

    assert peak_mb(work) < 60


@pytest.mark.parametrize("read", [Problem.load_images, Problem.image_sizes, Problem.content_hash])
@pytest.mark.parametrize("start", [b"", encoded()])
def test_an_image_of_many_gigabytes_is_refused_in_little_memory(
    tmp_path: Path, start: bytes, read: Callable[[Problem], object]
):
    one = problem(sparse(tmp_path / "a.png", 50 * 2**30, start))

    def work() -> None:
        found = sentence_of(lambda: read(one))
        assert "image 1 of problem p has 53687091200 bytes, over the 268435456 that an im" in found

    assert peak_mb(work) < 5


def test_a_damaged_parquet_file_is_one_sentence(tmp_path: Path):
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / "made.parquet"
    row = {**GOOD, "images": [{"bytes": encoded(), "path": None}]}
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row] * 50), path)
    whole = path.read_bytes()
    for cut in range(0, len(whole), len(whole) // 20):
        path.write_bytes(whole[:cut])
        found = sentence_of(lambda: load_problems(str(path)))
        assert re.search(r"made.parquet cannot be read as parquet: .*; download or write it", found)
    for place in range(8, len(whole), len(whole) // 40):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        try:
            load_problems(str(path))
        except ProblemError as error:
            assert "\n" not in str(error)


SOURCES = [
    ("x" * 5000, "does not exist; name a .parquet, .jsonl, .json or .csv"),
    ("a\0b.jsonl", "does not exist; name a .parquet, .jsonl, .json or .csv"),
    ("x" * 300 + ".jsonl", "does not exist; name a .parquet, .jsonl, .json or .csv"),
    ("/dev/zero", "is not a .parquet, .jsonl, .json or .csv file"),
    ("\x1b[2J", r"\\x1b\[2J does not exist; name a .parquet, .jsonl, .json or .csv"),
]


@pytest.mark.parametrize(("source", "sentence"), SOURCES)
def test_a_source_that_is_no_file_is_one_sentence(source: str, sentence: str):
    assert re.search(sentence, sentence_of(lambda: load_problems(source)))


# --- images ---------------------------------------------------------------------------------------


def problem(*images: bytes | Path, **options: Any) -> Problem:
    return Problem("p", "<image>" * len(images), images, "5", "made", "train", **options)


def frames(format: str) -> bytes:
    stream = io.BytesIO()
    shots = [Image.new("RGB", (8, 6), colour) for colour in ("red", "green", "blue")]
    shots[0].save(stream, format, save_all=True, append_images=shots[1:])
    return stream.getvalue()


def header_of(width: int, height: int) -> bytes:
    """Return a PNG whose header says another size than it has."""
    png = bytearray(encoded())
    png[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    import zlib

    png[29:33] = zlib.crc32(png[12:29]).to_bytes(4, "big")
    return bytes(png)


SVG = (
    b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><script>alert(1)</script></svg>'
)
NO_IMAGE = "image 1 of problem p cannot be decoded: .*; replace it by a complete PNG or JPEG"
TOO_MANY = r"over data\.max_stored_pixels=50000000; scale the images down or raise the limit"
FRAMES = "image 1 of problem p has several frames or pages; save the one that the question is about"

IMAGES: list[tuple[str, list[bytes], str]] = [
    ("nothing", [b""], NO_IMAGE),
    ("text", [b"no image"], NO_IMAGE),
    ("SVG", [SVG], NO_IMAGE),
    ("HTML", [b"<!doctype html><title>404</title>"], NO_IMAGE),
    ("PDF", [b"%PDF-1.7\n"], NO_IMAGE),
    ("EPS", [encoded(format="EPS")], NO_IMAGE),
    ("DDS", [encoded(format="DDS")], NO_IMAGE),
    ("a pointer of git", [b"version https://git-lfs.github.com/spec/v1\noid sha256:0"], NO_IMAGE),
    ("a program", [b"\x7fELF" + bytes(60)], NO_IMAGE),
    ("zeros", [bytes(1000)], NO_IMAGE),
    ("a header alone", [encoded()[:33]], NO_IMAGE),
    ("a cut PNG", [encoded(size=(90, 90))[:80]], NO_IMAGE),
    ("a cut JPEG", [encoded(size=(90, 90), format="JPEG")[:400]], NO_IMAGE),
    ("a cut WebP", [encoded(size=(90, 90), format="WEBP")[:40]], NO_IMAGE),
    ("a cut GIF", [encoded("P", size=(90, 90), format="GIF")[:50]], NO_IMAGE),
    ("a wide bomb", [header_of(13_000, 13_000)], rf"image 1 is 13000 x 13000\), {TOO_MANY}"),
    ("a long bomb", [header_of(1, 60_000_000)], rf"image 1 is 1 x 60000000\), {TOO_MANY}"),
    ("a huge bomb", [header_of(60_000, 60_000)], "image 1 of problem p is not decoded .*scale it"),
    ("no pixels", [header_of(0, 9)], NO_IMAGE),
    ("many images", [header_of(4000, 4000)] * 4, rf"64000000 pixels in its first 4.*{TOO_MANY}"),
    ("300 images", [header_of(500, 500)] * 300, rf"50250000 pixels in its fi.*{TOO_MANY}"),
    ("a second one that is damaged", [encoded(), b"x"], "image 2 of problem p cannot be decoded"),
    ("an animated GIF", [frames("GIF")], FRAMES),
    ("an animated PNG", [frames("PNG")], FRAMES),
    ("an animated WebP", [frames("WEBP")], FRAMES),
    ("pages of TIFF", [frames("TIFF")], FRAMES),
    ("32 bits of grey", [encoded("I", format="TIFF")], "stores 32 bits of grey, whose range is no"),
    ("floating grey", [encoded("F", format="TIFF")], "stores 32 bits of grey, whose range is not"),
]  # fmt: skip


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    ("images", "sentence"), [c[1:] for c in IMAGES], ids=[c[0] for c in IMAGES]
)
def test_a_malformed_image_is_one_sentence(images: list[bytes], sentence: str):
    found: list[str] = []
    one = problem(*images)
    assert peak_mb(lambda: found.append(sentence_of(one.load_images))) < 20
    assert re.search(sentence, found[0]), found[0]


def sixteen_bits() -> bytes:
    stream = io.BytesIO()
    Image.new("I;16", (8, 6), 0x8000).save(stream, "PNG")
    return stream.getvalue()


def palette() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 6), (128, 128, 128)).quantize(4).save(stream, "PNG", transparency=1)
    return stream.getvalue()


GREY = [
    ("CMYK", lambda: grey("CMYK", (0, 0, 0, 127), "JPEG")),
    ("16 bits", sixteen_bits),
    ("palette", palette),
    ("grey", lambda: grey("L", 128, "PNG")),
    ("grey with alpha", lambda: grey("LA", (128, 0), "PNG")),
    ("colour with alpha", lambda: grey("RGBA", (128, 128, 128, 0), "PNG")),
    ("YCbCr", lambda: grey("YCbCr", (128, 128, 128), "JPEG")),
    ("two frames of a phone", lambda: grey("RGB", (128, 128, 128), "MPO")),
]


def grey(mode: str, colour: Any, format: str) -> bytes:
    stream = io.BytesIO()
    more = {"save_all": True, "append_images": [Image.new(mode, (4, 3))]} if format == "MPO" else {}
    Image.new(mode, (8, 6), colour).save(stream, format, **more)
    return stream.getvalue()


@pytest.mark.parametrize("make", [c[1] for c in GREY], ids=[c[0] for c in GREY])
def test_unusual_images_are_seen_in_their_colour(make: Callable[[], bytes]):
    (image,) = problem(make()).load_images()
    seen = fit_pixel_budget(image, 1, 10_000)
    assert (seen.mode, seen.size) == ("RGB", (8, 6))
    # A mean grey in every mode; JPEG rounds.
    assert all(abs(level - 128) <= 2 for level in seen.getpixel((2, 2)))


@pytest.mark.parametrize("turn", range(1, 9))
def test_a_photograph_is_seen_as_its_camera_says(turn: int):
    shot = Image.new("RGB", (40, 20))
    shot.paste("white", (0, 0, 10, 10))
    exif = Image.Exif()
    exif[0x0112] = turn
    stream = io.BytesIO()
    shot.save(stream, "PNG", exif=exif)
    (seen,) = problem(stream.getvalue()).load_images()
    # Where the white corner is by the definition of EXIF: top left, top right, bottom right, ..
    corners = ("tl", "tr", "br", "bl", "tl", "tr", "br", "bl")
    down, right = corners[turn - 1][0] == "b", corners[turn - 1][1] == "r"
    assert seen.size == ((40, 20) if turn <= 4 else (20, 40))
    assert seen.getpixel((seen.width - 3 if right else 2, seen.height - 3 if down else 2))[0] == 255


@pytest.mark.parametrize(("size", "fitted"), [((1, 1), (512, 512)), ((10_000, 50), (10_000, 50))])
def test_a_tiny_or_long_image_is_scaled_to_the_pixel_budget(
    size: tuple[int, int], fitted: tuple[int, int]
):
    (image,) = problem(encoded(size=size)).load_images()
    assert fit_pixel_budget(image, 262_144, 4_194_304).size == fitted


def test_the_limit_itself_is_not_over_the_limit():
    assert problem(encoded(size=(9, 5)), max_stored_pixels=45).image_sizes() == [(9, 5)]
    with pytest.raises(ProblemError, match="p has 45 pixels in its first 1 images"):
        problem(encoded(size=(9, 5)), max_stored_pixels=44).load_images()
