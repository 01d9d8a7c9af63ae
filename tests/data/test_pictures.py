"""Pictures as people have them, upright and of their own brightness, against numpy and PIL."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.frames import Frame, FrameDataset
from data.pictures import open_picture, read_picture, shown, write_jpeg
from errors import UserError

SKY, GROUND = (0, 0, 255), (200, 200, 0)


def scene(width=48, height=32):
    """Sky above ground, its left third darker."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[: height // 2], pixels[height // 2 :] = SKY, GROUND
    pixels[:, : width // 3] //= 2
    return pixels


# How a picture is stored that shows upright with an orientation of EXIF's
STORED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, -1),
}


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_it_shows_upright(tmp_path, orientation, suffix):
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](scene())))
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / f"a.{suffix}", exif=exif, quality=100, subsampling=0)
    shown = np.asarray(read_picture(tmp_path / f"a.{suffix}")).astype(int)
    assert np.abs(shown - scene()).max() < 8


def test_modes_have_their_own_brightness(tmp_path):
    grey = scene().mean(axis=2)
    for name, image in {
        "8bit.png": Image.fromarray(grey.astype(np.uint8)),
        "16bit.png": Image.fromarray((grey * 257).astype(np.uint16)),
        "bilevel.png": Image.fromarray(grey > 60),
    }.items():
        image.save(tmp_path / name)
        wanted = 255.0 * (grey > 60) if name == "bilevel.png" else grey
        shown = np.asarray(read_picture(tmp_path / name))
        assert shown.shape == (32, 48, 3) and np.abs(shown - wanted[..., None]).max() <= 1, name
    for name, image in {
        "palette.png": Image.fromarray(scene()).convert("P", palette=Image.Palette.ADAPTIVE),
        "cmyk.jpg": Image.fromarray(scene()).convert("CMYK"),
        "web.webp": Image.fromarray(scene()),
    }.items():
        image.save(tmp_path / name, quality=100)
        shown = np.asarray(read_picture(tmp_path / name)).astype(int)
        assert np.abs(shown - scene()).mean() < 6, name


def test_what_is_transparent_lies_on_white(tmp_path):
    alpha = np.full((32, 48), 255, np.uint8)
    alpha[:16] = 0
    alpha[16:24] = 128
    Image.fromarray(np.dstack([scene(), alpha])).save(tmp_path / "rgba.png")
    share = alpha[..., None] / 255
    wanted = share * scene() + (1 - share) * 255
    assert np.abs(np.asarray(read_picture(tmp_path / "rgba.png")) - wanted).max() <= 1
    palette = Image.fromarray(scene()).convert("P", palette=Image.Palette.ADAPTIVE)
    first = palette.getpixel((0, 0))
    palette.save(tmp_path / "palette.png", transparency=first)
    shown = np.asarray(read_picture(tmp_path / "palette.png"))
    assert tuple(shown[0, 0]) == (255, 255, 255) and tuple(shown[-1, -1]) != (255, 255, 255)


def test_of_an_animation_the_first(tmp_path):
    frames = [Image.fromarray(np.full((16, 16, 3), level, np.uint8)) for level in (10, 200)]
    frames[0].save(tmp_path / "a.webp", save_all=True, append_images=frames[1:], lossless=True)
    frames[0].save(tmp_path / "a.png", save_all=True, append_images=frames[1:])
    for name in ("a.webp", "a.png"):
        assert np.asarray(read_picture(tmp_path / name)).max() <= 12


def png(*chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG file of these chunks."""
    parts = [
        struct.pack(">I", len(d)) + name + d + struct.pack(">I", zlib.crc32(name + d)) for name, d in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_what_would_fill_the_memory_is_no_picture(tmp_path):
    def header(side):
        return b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)

    pixels, end = (b"IDAT", zlib.compress(bytes(72))), (b"IEND", b"")
    text = b"zTXt", b"a\0\0" + zlib.compress(bytes(80_000_000))
    (tmp_path / "wide.png").write_bytes(png(header(60_000), pixels, end))
    (tmp_path / "text.png").write_bytes(png(header(8), text, pixels, end))
    (tmp_path / "fine.png").write_bytes(png(header(8), (b"tEXt", b"a\0" + b"x" * 1000), pixels, end))
    for name in ("wide.png", "text.png"):
        with pytest.raises(UserError, match=f"{name}: not readable as a picture"):
            read_picture(tmp_path / name)
    assert read_picture(tmp_path / "fine.png").size == (8, 8)


def test_floating_point_numbers_tell_no_brightness(tmp_path):
    Image.fromarray(np.ones((8, 8), np.float32)).save(tmp_path / "a.png", format="TIFF")
    with pytest.raises(UserError, match=r"a\.png: of floating-point numbers"):
        read_picture(tmp_path / "a.png")


def test_training_reads_pictures_alike(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.rot90(scene(), 1).copy()).save(tmp_path / "turned.jpg", exif=exif, quality=95)
    Image.fromarray((scene().mean(axis=2) * 257).astype(np.uint16)).save(tmp_path / "grey.png")
    Image.new("1", (20000, 10000)).save(tmp_path / "bomb.png")
    (tmp_path / "folder.jpg").mkdir()
    names = ("turned.jpg", "grey.png", "bomb.png", "folder.jpg", "gone.jpg", "nul\0.jpg")
    dataset = FrameDataset(tmp_path, [Frame(name, None, None, None) for name in names], 32)
    turned, grey = (dataset[place][0].numpy().transpose(1, 2, 0).astype(int) for place in (0, 1))
    assert np.abs(turned - scene()[:, 8:40]).mean() < 6
    assert np.abs(grey - scene()[:, 8:40].mean(axis=2, keepdims=True)).max() <= 1
    for place in range(2, len(names)):
        assert dataset[place] == (None, place, {place: "not readable as a picture"})


def test_what_is_no_picture_is_named(tmp_path, recwarn):
    whole = tmp_path / "whole.jpg"
    Image.fromarray(scene(480, 320)).save(whole)
    contents = {"empty.jpg": b"", "page.jpg": b"<html>404</html>", "cut.jpg": whole.read_bytes()[:-700]}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    Image.new("1", (20000, 10000)).save(tmp_path / "bomb.png")
    for name in (*contents, "bomb.png"):
        with pytest.raises(UserError, match=f"{name}: not readable as a picture"):
            read_picture(tmp_path / name)
    with pytest.raises(UserError, match="no such file"):
        read_picture(tmp_path / "none.jpg")
    Image.new("L", (10000, 9500)).save(tmp_path / "large.png")
    assert read_picture(tmp_path / "large.png").size == (10000, 9500)
    assert [str(each.message) for each in recwarn.list] == []


def test_of_broken_files_nothing_but_a_user_error(tmp_path, recwarn):
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "maker"
    rng, path, wholes = np.random.default_rng(0), tmp_path / "a.jpg", []
    for form in ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"):
        options = {"exif": exif} if form in ("JPEG", "PNG", "WEBP") else {}
        Image.fromarray(scene()).save(path, format=form, **options)
        wholes.append(np.frombuffer(path.read_bytes(), np.uint8))
    for whole in wholes * 100:
        broken = whole.copy()
        broken[rng.integers(min(len(whole), 200), size=4)] = rng.integers(256, size=4)
        path.write_bytes(broken.tobytes())
        try:
            assert read_picture(path).mode == "RGB"
        except UserError as error:
            assert str(error) == f"{path}: not readable as a picture"
    assert not recwarn.list


def test_broken_exif_makes_no_broken_picture(tmp_path, recwarn):
    Image.fromarray(scene()).save(tmp_path / "a.jpg", exif=b"Exif\0\0MM\0*garbage\xff\xff")
    assert read_picture(tmp_path / "a.jpg").size == (48, 32)
    with open_picture(tmp_path / "a.jpg") as picture:
        write_jpeg(picture, 0, tmp_path / "out.jpg")
    assert (tmp_path / "out.jpg").read_bytes() == (tmp_path / "a.jpg").read_bytes()
    assert not recwarn.list


def test_programs_are_not_taken_for_pictures(tmp_path):
    Image.fromarray(scene()).save(tmp_path / "a.eps")  # PostScript, which Ghostscript would run
    (tmp_path / "a.eps").rename(tmp_path / "a.jpg")
    with pytest.raises(UserError, match=r"a\.jpg: not readable"):
        read_picture(tmp_path / "a.jpg")


@pytest.mark.parametrize("size, short_side", [((2, 3000), 256), ((70_000, 20), 0)])
def test_what_would_be_too_long_for_a_jpeg_is_named(tmp_path, size, short_side):
    Image.new("L", size).save(tmp_path / "a.png")
    with open_picture(tmp_path / "a.png") as picture, pytest.raises(UserError, match=r"a\.png: .*too long"):
        write_jpeg(picture, short_side, tmp_path / "out.jpg")


def test_a_path_prints_as_one_line():
    assert shown(Path("a\nb/caf\udce9.jpg")) == "a b/caf\\xe9.jpg"


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_jpeg_that_needs_nothing_is_taken_byte_for_byte(tmp_path, mode):
    Image.fromarray(scene()).convert(mode).save(tmp_path / "a.jpg", quality=40)
    for short_side, same in ((0, True), (32, True), (16, False)):
        with open_picture(tmp_path / "a.jpg") as picture:
            size = write_jpeg(picture, short_side, tmp_path / "out.jpg")
        assert size == ((48, 32) if same else (24, 16))
        assert ((tmp_path / "out.jpg").read_bytes() == (tmp_path / "a.jpg").read_bytes()) == same


def test_others_are_written_as_frames_of_videos_are(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.rot90(scene(), 1).copy()).save(tmp_path / "turned.jpg", exif=exif, quality=95)
    Image.fromarray(scene()).convert("CMYK").save(tmp_path / "cmyk.jpg")
    for name in ("turned.jpg", "cmyk.jpg"):
        with open_picture(tmp_path / name) as picture:
            assert write_jpeg(picture, 0, tmp_path / "out.jpg") == (48, 32)
        with Image.open(tmp_path / "out.jpg") as out:
            assert out.mode == "RGB" and not out.getexif()
