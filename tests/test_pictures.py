"""Pictures in every format that people have: shown as the ecosystem shows them, and never waited for."""

from __future__ import annotations

import base64
import io
import json
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Image as Feature
from PIL import Image, ImageDraw, ImageOps
from transformers.image_transforms import convert_to_rgb
from transformers.image_utils import load_image

from vispco.errors import DataError
from vispco.tasks.base import make_task
from vispco.tasks.pictures import Pictures, encoded

SIZE = (24, 16)


def drawing(mode: str = "RGB") -> Any:
    """Red above, with a blue corner to see which way is up."""
    picture = Image.new("RGB", SIZE, (200, 30, 40))
    ImageDraw.Draw(picture).rectangle((0, 0, 7, 5), fill=(20, 40, 220))
    return picture.convert(mode)


def clear(mode: str) -> Any:
    """Black ink on nothing, and what nobody sees is black too."""
    picture = Image.new("RGBA", SIZE, (0, 0, 0, 0))
    ImageDraw.Draw(picture).rectangle((4, 4, 11, 11), fill=(0, 0, 0, 255))
    return picture.convert(mode)


def file_of(picture: Any, kind: str, **settings: Any) -> bytes:
    held = io.BytesIO()
    picture.save(held, kind, **settings)
    return held.getvalue()


def turned(orientation: int) -> dict[str, Any]:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return {"exif": exif}


def shown(data: bytes) -> Any:
    return Pictures(1, lambda: [data], "row 0")[0]


def by_transformers(data: bytes) -> Any:
    return load_image(base64.b64encode(data).decode())


def by_datasets(data: bytes) -> Any:
    return Feature(mode="RGB").decode_example({"path": None, "bytes": data})


OPAQUE: dict[str, bytes] = {
    **{f"JPEG turned {way}": file_of(drawing(), "JPEG", quality=95, **turned(way)) for way in range(9)},
    **{f"{kind} turned 6": file_of(drawing(), kind, **turned(6)) for kind in ("PNG", "TIFF", "WEBP", "AVIF")},
    **{f"{kind} RGB": file_of(drawing(), kind) for kind in ("PNG", "BMP", "TIFF", "WEBP", "PPM", "TGA", "JPEG2000")},
    **{f"PNG {mode}": file_of(drawing(mode), "PNG") for mode in ("1", "L", "P")},
    "JPEG grey": file_of(drawing("L"), "JPEG"),
    "JPEG CMYK": file_of(drawing("CMYK"), "JPEG"),
    "JPEG progressive": file_of(drawing(), "JPEG", progressive=True),
    "TIFF CMYK": file_of(drawing("CMYK"), "TIFF"),
    "GIF": file_of(drawing("P"), "GIF"),
    "GIF moving": file_of(drawing(), "GIF", save_all=True, append_images=[ImageOps.flip(drawing())]),
    "WEBP moving": file_of(drawing(), "WEBP", save_all=True, append_images=[ImageOps.flip(drawing())], lossless=True),
    "PNG moving": file_of(drawing(), "PNG", save_all=True, append_images=[ImageOps.flip(drawing())]),
    "MPO": file_of(drawing(), "MPO", save_all=True, append_images=[ImageOps.flip(drawing())]),
    "ICO": file_of(drawing(), "ICO", sizes=[SIZE]),
}


@pytest.mark.parametrize("name", OPAQUE)
def test_opaque_pictures_are_the_ecosystem_s(name: str) -> None:
    ours = np.asarray(shown(OPAQUE[name]))
    np.testing.assert_array_equal(ours, np.asarray(by_transformers(OPAQUE[name])))
    np.testing.assert_array_equal(ours, np.asarray(by_datasets(OPAQUE[name])))


def test_a_photo_stands_upright() -> None:
    """Orientation 6: the camera was held on its side, and the first row of the file is the right-hand column."""
    picture = shown(OPAQUE["JPEG turned 6"])
    assert picture.size == (16, 24)
    assert picture.getpixel((14, 1))[2] > 150 > 100 > picture.getpixel((1, 1))[2]


CLEAR: dict[str, bytes] = {
    "PNG RGBA": file_of(clear("RGBA"), "PNG"),
    "PNG LA": file_of(clear("LA"), "PNG"),
    "PNG P with a transparent colour": file_of(drawing("P"), "PNG", transparency=drawing("P").getpixel((0, 0))),
    "PNG RGB with a transparent colour": file_of(Image.new("RGB", SIZE, (1, 2, 3)), "PNG", transparency=(1, 2, 3)),
    "PNG L with a transparent grey": file_of(Image.new("L", SIZE, 7), "PNG", transparency=7),
    "PNG 1 with a transparent bit": file_of(Image.new("1", SIZE, 0), "PNG", transparency=0),
    "PNG turned 6": file_of(clear("RGBA"), "PNG", **turned(6)),
    "GIF": file_of(drawing("P"), "GIF", transparency=drawing("P").getpixel((0, 0))),
    "WEBP": file_of(clear("RGBA"), "WEBP", lossless=True),
    "TIFF": file_of(clear("RGBA"), "TIFF"),
}


@pytest.mark.parametrize("name", CLEAR)
def test_transparent_pictures_lie_on_white_as_processors_put_them(name: str) -> None:
    plain = ImageOps.exif_transpose(Image.open(io.BytesIO(CLEAR[name])))
    ours = np.asarray(shown(CLEAR[name]))
    np.testing.assert_array_equal(ours, convert_to_rgb(plain, return_numpy=True))
    assert (ours[0, 0] == 255).all()


RAMP = np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16)


@pytest.mark.parametrize(
    "data",
    [
        file_of(Image.fromarray(RAMP), "PNG"),
        file_of(Image.fromarray(RAMP), "TIFF"),
        file_of(Image.fromarray(RAMP.astype(">u2")), "TIFF"),
        file_of(Image.fromarray(RAMP), "JPEG2000"),
        b"P5 16 16 65535\n" + RAMP.astype(">u2").tobytes(),
    ],
    ids=["PNG", "TIFF", "TIFF big-endian", "JPEG2000", "PGM"],
)
def test_16_bit_grey_keeps_its_greys(data: bytes) -> None:
    np.testing.assert_array_equal(np.asarray(shown(data))[..., 0].ravel(), np.arange(256))


def test_16_bit_grey_with_a_transparent_value() -> None:
    ours = np.asarray(shown(file_of(Image.fromarray(RAMP), "PNG", transparency=257 * 3)))[..., 0].ravel()
    np.testing.assert_array_equal(ours, [0, 1, 2, 255, *range(4, 256)])


@pytest.mark.parametrize("mode", ["I", "F"])
def test_32_bits_have_no_agreed_white(mode: str) -> None:
    with pytest.raises(DataError, match=r"row 0: picture of \d+ bytes says not what is white: .*8 or 16 bits"):
        shown(file_of(Image.new(mode, SIZE, 1), "TIFF"))


# --- what is no picture ------------------------------------------------------------------------------


def one(path: str) -> Pictures:
    return Pictures(1, lambda: [encoded(path)], "row 0")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("x" * 5000 + ".png", r"cannot read picture 'x+\.\.\.': File name too long"),
        ("a/" * 3000 + "b.png", r"cannot read picture .*: File name too long"),
        ("photo\ud800.png", r"cannot read picture .*no name of a file"),
        ("photo\0.png", r"cannot read picture .*no name of a file"),
        ("~nosuchuser/photo.png", r"no picture '~nosuchuser/photo.png'; correct the path"),
        ("~nosuchuser", r"no picture '~nosuchuser'; correct the path"),
        ("/dev/zero", r"'/dev/zero': it is a pipe or a device"),
        ("/dev/full", r"'/dev/full': it is a pipe or a device"),
        ("/dev/null", r"'/dev/null': it is a pipe or a device"),
        ("/dev", r"'/dev': it is a folder"),
        ("", r"it is a folder"),
        ("none/photo.png", r"no picture 'none/photo.png'; correct the path"),
    ],
)
def test_names_of_no_picture(path: str, message: str) -> None:
    for look in (one(path).check, lambda: one(path)[0]):
        with pytest.raises(DataError, match=message) as error:
            look()
        assert len(str(error.value)) < 300


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "photo.png")
    found: list[BaseException] = []

    def look() -> None:
        try:
            one(str(tmp_path / "photo.png")).check()
        except DataError as error:
            found.append(error)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    thread.join(60)
    assert not thread.is_alive()
    assert "it is a pipe or a device" in str(found[0])


def test_a_photo_for_gradients_has_the_size_that_is_shown(tmp_path: Path) -> None:
    row = {"id": "1", "conversations": [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "That."}]}
    for kind in ("jpg", "png"):
        (tmp_path / f"a.{kind}").write_bytes(OPAQUE[f"{'JPEG' if kind == 'jpg' else 'PNG'} turned 6"])
        (tmp_path / "rows.json").write_text(json.dumps([{**row, "image": f"a.{kind}"}]))
        task = make_task("llava-instruct", {"calibration": 1}, {"file": str(tmp_path / "rows.json")})
        (picture,) = task.samples("calibration")[0].images
        assert picture.size == (16, 24)
        assert picture.getpixel((14, 1))[2] > 150 > picture.getpixel((1, 1))[2]
