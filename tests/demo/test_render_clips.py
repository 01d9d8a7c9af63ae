"""The drawn clips: BDD100K's layout, the same for the same seed, and pictures that look like their labels."""

import json

import av
import numpy as np
import pytest

from demo.render_clips import main

SIZE = (192, 108)
TRAIN, VAL, FRAMES = 4, 1, 15  # 4 train clips hold each time of day


def render(out, *more):
    args = ["--train", str(TRAIN), "--val", str(VAL), "--seconds", str(FRAMES / 30), "--workers", "2"]
    main(["--out", str(out), *args, "--size", *map(str, SIZE), *more])
    return out


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return render(tmp_path_factory.mktemp("clips"))


def labels(out, split):
    return json.loads((out / "labels" / "det_20" / f"det_{split}.json").read_text())


def frames(path):
    with av.open(str(path)) as file:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)])


def clips(out, split="train"):
    """Label and frames of each clip."""
    for label in labels(out, split):
        yield label, frames(out / "videos" / split / label["name"].replace(".jpg", ".mov"))


@pytest.mark.parametrize("split, count", [("train", TRAIN), ("val", VAL)])
def test_labels_match_clips(out, split, count):
    found = labels(out, split)
    videos = sorted(path.name for path in (out / "videos" / split).iterdir())
    assert len(videos) == count
    assert sorted(label["name"].replace(".jpg", ".mov") for label in found) == videos
    for label in found:
        assert set(label) == {"name", "attributes", "timestamp", "labels"}
        assert label["attributes"]["timeofday"] in ("daytime", "dawn/dusk", "night")
        assert label["attributes"]["weather"] in ("clear", "overcast", "partly cloudy")
        assert label["attributes"]["scene"] in ("city street", "highway", "residential")


def test_clips_are_h264_at_30_fps(out):
    path = next((out / "videos" / "train").iterdir())
    with av.open(str(path)) as file:
        stream = file.streams.video[0]
        assert stream.codec_context.name == "h264"
        assert stream.codec_context.pix_fmt == "yuv420p"
        assert stream.average_rate == 30
        assert sum(1 for _ in file.decode(stream)) == FRAMES
    assert frames(path).shape == (FRAMES, SIZE[1], SIZE[0], 3)


def test_night_is_darker_than_day(out):
    light = {}
    for label, pictures in clips(out):
        light.setdefault(label["attributes"]["timeofday"], []).append(pictures.mean())
    assert set(light) == {"daytime", "dawn/dusk", "night"}
    assert max(light["night"]) < min(light["dawn/dusk"])
    assert max(light["night"]) < 0.6 * min(light["daytime"])


def test_frames_move_and_clips_differ(out):
    starts = []
    for _, pictures in clips(out):
        first, last = pictures[0].astype(float), pictures[-1].astype(float)
        assert np.abs(last - first).mean() > 1
        starts.append(first)
    assert all(np.abs(a - b).mean() > 10 for n, a in enumerate(starts) for b in starts[:n])


def test_same_seed_gives_same_clips(out, tmp_path):
    again = render(tmp_path / "again")
    assert labels(again, "train") == labels(out, "train")
    for (_, a), (_, b) in zip(clips(out), clips(again)):
        np.testing.assert_array_equal(a, b)


def test_rerun_renders_only_what_is_missing(out, capsys):
    def times():
        return {path: path.stat().st_mtime_ns for path in out.rglob("*.*")}

    before = times()
    render(out)
    assert times() == before
    assert "0 of them rendered" in capsys.readouterr().out

    lost = next((out / "videos" / "train").iterdir())
    pictures = frames(lost)
    lost.unlink()
    render(out)
    np.testing.assert_array_equal(frames(lost), pictures)
    changed = [path for path, time in times().items() if before[path] != time]
    assert changed == [lost]


def test_clips_of_other_arguments_are_not_mixed(out, capsys):
    with pytest.raises(SystemExit) as stop:
        render(out, "--seed", "1")
    assert stop.value.code == 1
    assert "other arguments" in capsys.readouterr().err


@pytest.mark.parametrize("wrong", [("--workers", "0"), ("--train", "-1"), ("--seconds", "0")])
def test_wrong_arguments_are_one_line(tmp_path, capsys, wrong):
    with pytest.raises(SystemExit) as stop:
        render(tmp_path, *wrong)
    assert stop.value.code == 1
    assert capsys.readouterr().err.count("\n") == 1
