import random
import re
import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from data import video
from data.video import Clip
from errors import UserError
from tests.clips import (
    OPEN_GOP,
    all_key,
    behead,
    decode_all,
    draw,
    hide,
    read,
    remux,
    rotate,
    trim,
    write_audio,
    write_clip,
)

DRIVING = Path(__file__).parents[3] / "shared" / "driving"
UNEVEN = [i * 33 + 400 * (i // 7) + i % 3 for i in range(60)]


ALL_INTRA = {"codec": "mpeg4", "codec_options": {"g": "1"}}


def two_recordings(path, start=10):
    """One after the other in a transport stream, the second from `start` in milliseconds on."""
    second = [draw(i) for i in range(20, 40)]
    write_clip(path, frames=20)
    content = path.read_bytes()
    write_clip(path, frames=second, milliseconds=[start + 47 * i for i in range(20)])
    path.write_bytes(content + path.read_bytes())
    return path


def misleading(path):
    """With a frame in the table of key frames that is none."""
    content = bytearray(write_clip(path).read_bytes())
    table = content.index(b"stss") + 12  # after the version, flags and count: numbers of frames from 1
    assert struct.unpack_from(">3I", content, table) == (1, 13, 25)
    struct.pack_into(">I", content, table + 4, 10)
    path.write_bytes(content)
    return path


def with_drops(path):
    """AVI with empty packets in place of frames 5 to 7."""
    path = write_clip(path.with_suffix(".mp4"), 20, **ALL_INTRA)
    return remux(path, lambda i, packet: None if 5 <= i < 8 else packet, ".avi")


def trimmed(path):
    trim(write_clip(path), first=20, milliseconds=1000)
    return path


# name: how to make the clip, and the numbers its frames show
CLIPS = {
    "b_frames.mov": (write_clip, range(60)),
    "b_frames.mkv": (write_clip, range(60)),
    "b_frames_without_times.avi": (write_clip, range(60)),
    "open_gop.mp4": (lambda path: write_clip(path, codec_options=OPEN_GOP), range(60)),
    "open_gop.mkv": (lambda path: write_clip(path, codec_options=OPEN_GOP), range(60)),
    "open_gop_hevc.mp4": (
        lambda path: write_clip(
            path,
            codec="libx265",
            codec_options={"x265-params": "keyint=12:min-keyint=12:scenecut=0:open-gop=1:log-level=none"},
        ),
        range(60),
    ),
    "open_gop_mpeg2.mkv": (
        lambda path: write_clip(path, codec="mpeg2video", codec_options={"g": "12", "bf": "2"}),
        range(60),
    ),
    "start_time.ts": (lambda path: write_clip(path, codec_options=OPEN_GOP), range(60)),
    "start_time.mkv": (lambda path: write_clip(path, milliseconds=range(5000, 7400, 40)), range(60)),
    "edit_list.mov": (trimmed, range(20, 50)),
    "cut_from_longer.mkv": (
        lambda path: behead(write_clip(path, codec_options=OPEN_GOP), packets=3),
        range(12, 60),
    ),
    "uneven.mp4": (lambda path: write_clip(path, milliseconds=UNEVEN), range(60)),
    "uneven.mkv": (lambda path: write_clip(path, milliseconds=UNEVEN), range(60)),
    "ends_before_its_sound.mov": (lambda path: write_clip(path, audio_seconds=4), range(60)),
    "fragmented.mp4": (
        lambda path: write_clip(path, container_options={"movflags": "frag_keyframe+empty_moov"}),
        range(60),
    ),
    "one_key_frame.mov": (lambda path: write_clip(path, codec_options={"g": "999"}), range(60)),
    "only_key_frames.mov": (lambda path: write_clip(path, codec_options={"g": "1"}), range(60)),
    "two_recordings.ts": (two_recordings, range(40)),
    "hidden_frames.webm": (
        lambda path: hide(write_clip(path, 24, "libvpx", {"deadline": "realtime"}), every=8),
        [i for i in range(24) if i % 8 != 7],
    ),
    "wrong_key_frame_table.mp4": (misleading, range(60)),
    "no_key_frame_table.mp4": (lambda path: all_key(write_clip(path)), range(60)),
    "no_key_frame_table_mpeg4.mp4": (
        lambda path: all_key(write_clip(path, 24, "mpeg4", {"g": "12"})),
        range(24),
    ),
    "dropped_frames.avi": (with_drops, [*range(5), *range(8, 20)]),
    "single_frame.mp4": (lambda path: write_clip(path, frames=1), range(1)),
}


# those of which no frame needs decoding from the beginning
BY_KEY_FRAMES = [name for name in CLIPS if re.fullmatch(r"(b_frames|open_gop|edit|uneven|frag).*\.m..", name)]
BY_KEY_FRAMES.remove("open_gop_mpeg2.mkv")


@pytest.mark.parametrize("name", CLIPS)
def test_frames_are_those_of_decoding_everything(tmp_path, name, monkeypatch):
    make, numbers = CLIPS[name]
    path = make(tmp_path / name)
    expected = decode_all(path)
    assert [read(image) for image in expected] == list(numbers)
    with Clip(path) as clip:
        assert len(clip) == len(expected)
        if name in BY_KEY_FRAMES:
            monkeypatch.delattr(Clip, "_decode_all")
        for index in random.Random(0).sample(range(len(clip)), len(clip)):
            ((got, image),) = clip.frames([index])
            assert got == index
            assert np.array_equal(image, expected[index]), f"frame {index} shows {read(image)}"
        indices = range(1, len(clip), 7)
        for (got, image), index in zip(clip.frames(reversed(indices)), indices, strict=True):
            assert got == index
            assert np.array_equal(image, expected[index])
        assert [index for index, _ in clip.frames(range(len(clip)))] == list(range(len(clip)))


@pytest.mark.parametrize(
    ("name", "make", "milliseconds"),
    [  # a second clock goes on where the first one ended, at the clip's usual pace
        ("a.ts", two_recordings, [*(33.3 * i for i in range(20)), *(667 + 47 * i for i in range(20))]),
        (
            "a.ts",
            lambda path: two_recordings(path, 3_600_000),
            [*(33.3 * i for i in range(20)), *(667 + 47 * i for i in range(20))],
        ),
        ("a.avi", with_drops, [33.3 * i for i in (*range(5), *range(8, 20))]),
        ("a.avi", lambda path: write_clip(path, 20), [33.3 * i for i in range(20)]),
    ],
)
def test_times_of_clips_that_are_decoded_whole(tmp_path, name, make, milliseconds):
    with Clip(make(tmp_path / name)) as clip:
        got = [clip.milliseconds(i) for i in range(len(clip))]
        assert got == pytest.approx(milliseconds, abs=20)
        assert clip.at(Fraction("0.5")) == max(i for i, time in enumerate(got) if time <= 500)
        assert clip.at(Fraction(got[-1] + 60, 1000)) is None


@pytest.mark.skipif(not DRIVING.is_dir(), reason=f"no real clips in {DRIVING}")
@pytest.mark.parametrize(
    "name",
    ["videos/val/1ead649d-98e22492.mov", "videos/train/0b20b49b-dbc961d7.mov", "clips/solidWhiteRight.mp4"],
)
def test_frames_of_real_clips(name):
    expected = decode_all(DRIVING / name)
    with Clip(DRIVING / name) as clip:
        assert len(clip) == len(expected)
        wanted = clip.spread(12)
        for index, image in clip.frames(wanted):
            assert np.array_equal(image, expected[index])


def test_other_frames_are_not_decoded(tmp_path):
    path = write_clip(tmp_path / "clip.mov")
    intact = decode_all(path)
    content = bytearray(path.read_bytes())
    with av.open(path) as container:
        for i, packet in enumerate(container.demux(video=0)):
            if 12 <= i < 48:
                content[packet.pos : packet.pos + packet.size] = bytes(packet.size)
    path.write_bytes(content)
    with pytest.raises(av.FFmpegError):
        decode_all(path)
    with Clip(path) as clip:
        for index, image in clip.frames([5, 50]):
            assert np.array_equal(image, intact[index])
        with pytest.raises(UserError, match=r"clip\.mov: frame 31 of 60 does not decode"):
            list(clip.frames([5, 30]))


@pytest.mark.parametrize(
    ("matrix", "store"),
    [  # a display matrix, and the inverse of what it asks players to do
        ((0, 1, -1, 0), lambda image: np.rot90(image)),
        ((-1, 0, 0, -1), lambda image: np.rot90(image, 2)),
        ((0, -1, 1, 0), lambda image: np.rot90(image, -1)),
        ((-1, 0, 0, 1), np.fliplr),
        ((1, 0, 0, -1), np.flipud),
        ((0, 1, 1, 0), lambda image: image.transpose(1, 0, 2)),
    ],
)
def test_rotated_clips_come_upright(tmp_path, matrix, store):
    images = [np.ascontiguousarray(store(draw(i))) for i in range(14)]
    path = write_clip(tmp_path / "phone.mov", frames=images)
    rotate(path, matrix)
    stored = decode_all(path)
    with Clip(path) as clip:
        for index, image in clip.frames(range(14)):
            assert image.shape == (96, 128, 3)
            assert read(image) == index
            assert np.array_equal(store(image), stored[index])


@pytest.mark.parametrize("turned", [False, True])
def test_pixels_that_are_not_square_come_so(tmp_path, turned):
    images = [draw(i) if not turned else np.ascontiguousarray(np.rot90(draw(i))) for i in range(3)]
    path = write_clip(tmp_path / "film.mp4", images, pixel_ratio=Fraction(3, 2))
    if turned:
        rotate(path, (0, 1, -1, 0))
    with Clip(path) as clip:
        for index, image in clip.frames(range(3)):
            assert image.shape == ((144, 128, 3) if turned else (96, 192, 3))
            assert read(image) == index


def test_pixels_of_no_camera_are_an_error(tmp_path):
    path = write_clip(tmp_path / "film.mp4", 3, pixel_ratio=Fraction(9))
    with Clip(path) as clip, pytest.raises(UserError, match=r"film\.mp4: says that its pixels are 9 times"):
        list(clip.frames([0]))


@pytest.mark.parametrize("preview", [[draw(99, 64, 48)] * 3, [draw(99, 256, 192)]])
def test_a_preview_or_a_poster_is_not_the_clip(tmp_path, preview):
    path = write_clip(tmp_path / "clip.mp4", 14, preview=preview)
    with Clip(path) as clip:
        assert [read(image) for _, image in clip.frames(range(14))] == list(range(14))


def test_a_clip_that_decodes_to_other_frames_than_it_tells_of(tmp_path, monkeypatch):
    monkeypatch.setattr(video, "ONE_FRAME_A_PACKET", ("vp8",))  # as if of these no codec hid frames
    path = hide(write_clip(tmp_path / "clip.webm", 24, "libvpx", {"deadline": "realtime"}), every=8)
    with Clip(path) as clip, pytest.raises(UserError, match=r"clip\.webm: decodes to other frames"):
        list(clip.frames([20]))


def test_choosing_frames(tmp_path):
    with Clip(write_clip(tmp_path / "even.mov")) as clip:
        assert clip.spread(1) == [30]
        assert clip.spread(2) == [15, 45]
        assert clip.spread(4) == [7, 22, 37, 52]
        assert clip.spread(60) == clip.spread(1000) == list(range(60))
        assert clip.every(Fraction(5)) == list(range(0, 60, 6))
        assert clip.every(Fraction(30)) == clip.every(Fraction(100)) == list(range(60))
        assert clip.every(Fraction(1, 10)) == [0]
        assert [clip.at(Fraction(t)) for t in ("0", "0.033", "0.034", "1", "1.999")] == [0, 0, 1, 30, 59]
        assert clip.at(Fraction(2)) is None
        assert [clip.milliseconds(i) for i in (0, 1, 2, 59)] == [0, 33, 67, 1967]


def test_choosing_frames_by_a_clock_of_milliseconds(tmp_path):
    with Clip(write_clip(tmp_path / "even.mkv")) as clip:
        assert clip.every(Fraction(30)) == list(range(60))
        assert clip.every(Fraction(10)) == list(range(0, 60, 3))
        assert clip.at(Fraction("0.1")) == 3


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_choosing_frames_of_uneven_clips(tmp_path, suffix):
    path = write_clip(tmp_path / f"uneven.{suffix}", milliseconds=[5000 + time for time in UNEVEN])
    with Clip(path) as clip:
        assert [clip.milliseconds(i) for i in range(60)] == UNEVEN
        for seconds in ("0", "0.5", "0.9", "2.11"):
            shown = [i for i, time in enumerate(UNEVEN) if time <= float(seconds) * 1000]
            assert clip.at(Fraction(seconds)) == shown[-1]
        ticks = range(0, UNEVEN[-1] + 1, 250)
        assert clip.every(Fraction(4)) == sorted(
            {next(i for i, t in enumerate(UNEVEN) if t >= k) for k in ticks}
        )


def test_a_frame_past_the_end_is_none_though_the_sound_goes_on(tmp_path):
    with Clip(write_clip(tmp_path / "clip.mov", audio_seconds=4)) as clip:
        assert clip.at(Fraction("1.99")) == 59
        assert clip.at(Fraction(3)) is None


@pytest.mark.parametrize(
    ("name", "container_options"),
    [
        ("index_last.mov", {}),
        ("index_first.mov", {"movflags": "faststart"}),
        ("fragmented.mp4", {"movflags": "frag_keyframe+empty_moov"}),
        ("clip.mkv", {}),
        ("clip.avi", {}),
    ],
)
@pytest.mark.parametrize("part", [0.5, 0.95])
def test_truncated_clips_are_reported(tmp_path, name, container_options, part):
    path = write_clip(tmp_path / name, container_options=container_options, audio_seconds=2)
    with Clip(path) as clip:
        assert len(clip) == 60
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * part)])
    with pytest.raises(UserError, match=rf"{name}: .*truncated"):
        Clip(path)


def test_a_clip_cut_between_two_frames_is_truncated(tmp_path):
    path = write_clip(tmp_path / "clip.mov", container_options={"movflags": "faststart"})
    with av.open(path) as container:
        half = [packet.pos for packet in container.demux(video=0)][30]
    path.write_bytes(path.read_bytes()[:half])
    with pytest.raises(UserError, match=r"clip\.mov: truncated: holds 30 of 60 frames"):
        Clip(path)


def test_files_that_are_not_clips_are_reported(tmp_path):
    (tmp_path / "empty.mov").touch()
    (tmp_path / "text.mov").write_text("no video\n" * 1000)
    (tmp_path / "zeros.mov").write_bytes(bytes(10000))
    write_audio(tmp_path / "sound.mov")
    write_audio(tmp_path / "song.mp4", cover=True)
    for name, problem in {
        "empty.mov": "empty file",
        "text.mov": "not a video, or truncated",
        "zeros.mov": "not a video, or truncated",
        "sound.mov": "no video stream",
        "song.mp4": "no video stream",
        "missing.mov": "No such file or directory",
    }.items():
        with pytest.raises(UserError) as caught:
            Clip(tmp_path / name)
        assert str(caught.value) == f"{tmp_path / name}: {problem}"


def test_a_clip_whose_name_looks_like_a_protocol(tmp_path, monkeypatch):
    write_clip(tmp_path / "http:12.mov", frames=3)
    monkeypatch.chdir(tmp_path)
    with Clip("http:12.mov") as clip:
        assert len(clip) == 3
