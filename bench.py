"""Measure how fast the parts are: `python bench.py extract` is two frames of a clip against all of it."""

import argparse
import json
import math
import os
import statistics
import tempfile
import time
from pathlib import Path

import av
import numpy as np
from PIL import Image

from data.video import Clip
from errors import command


@command
def main():
    parser = argparse.ArgumentParser(description="Measure how fast the parts are.")
    subparsers = parser.add_subparsers(required=True, metavar="what")
    extract = subparsers.add_parser("extract", help="two frames of a clip, against decoding all of it")
    extract.add_argument("--seconds", type=int, default=40, help="length of the clip (default: 40)")
    extract.add_argument("--repeats", type=int, default=3, help="to take the median of (default: 3)")
    extract.add_argument("--json", type=Path, help="file to write the figures to as well")
    extract.set_defaults(measure=bench_extract)
    args = parser.parse_args()
    figures = args.measure(args)
    for name, value in figures.items():
        print(f"{name}: {value}")
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")


def bench_extract(args) -> dict:
    """From opening a file to two RGB frames in memory, against decoding all its frames, left as they are.

    Both in one process with one decoder thread, the file in the system's cache. Of a whole number of seconds
    the two frames that --frames-per-video 2 takes are often key frames: two half-way between are timed, too.
    """
    times = {"two_frames_s": [], "two_frames_between_keys_s": [], "whole_clip_s": []}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mov"
        write_road_clip(path, args.seconds)
        megabytes = path.stat().st_size / 1e6
        for _ in range(args.repeats):
            for name, shift in (("two_frames_s", 0), ("two_frames_between_keys_s", 15)):
                start = time.perf_counter()
                with Clip(path) as clip:
                    list(clip.frames(index // 30 * 30 + shift for index in clip.spread(2)))
                times[name].append(time.perf_counter() - start)
            start = time.perf_counter()
            with av.open(path) as container:
                container.streams.video[0].codec_context.thread_count = 1
                count = sum(1 for _ in container.decode(video=0))
            times["whole_clip_s"].append(time.perf_counter() - start)
    medians = {name: statistics.median(values) for name, values in times.items()}
    return {
        "clip": f"{args.seconds} s, {megabytes:.1f} MB: 1280x720, 30 fps, H.264, B-frames, a GOP a second",
        "frames": count,
        "repeats": args.repeats,
        "cpus": os.cpu_count(),
        **{name: round(value, 4) for name, value in medians.items()},
        "ratio": round(medians["whole_clip_s"] / medians["two_frames_s"], 1),
        "ratio_between_keys": round(medians["whole_clip_s"] / medians["two_frames_between_keys_s"], 1),
    }


def write_road_clip(path: Path, seconds: int):
    """A clip about as costly to decode as a dashcam's at 4 Mbit/s: detail of all sizes, sway and grain."""
    rng = np.random.default_rng(0)
    texture = np.full((1440, 2560), 128.0)
    for scale in (160, 80, 40, 20, 10, 5):
        octave = Image.fromarray(rng.normal(0, 15, (1440 // scale, 2560 // scale)).astype(np.float32))
        texture += np.asarray(octave.resize((2560, 1440), Image.Resampling.BICUBIC))
    texture = Image.fromarray(texture.clip(16, 235).astype(np.uint8))
    grain = rng.normal(0, 3, (800, 1400)).astype(np.int16)
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"preset": "veryfast", "bf": "2"})
        stream.width, stream.height, stream.pix_fmt = 1280, 720, "yuv420p"
        stream.bit_rate = 4_000_000
        stream.gop_size = 30
        planes = np.full((720 * 3 // 2, 1280), 128, np.uint8)
        for i in range(seconds * 30):
            width = 1600 + 300 * math.sin(i / 50)  # of the view, in the texture
            left, top = (2560 - width) / 2 + 300 * math.sin(i / 70), (1440 - width * 9 / 16) / 2
            view = (left, top, left + width, top + width * 9 / 16)
            luma = np.asarray(texture.resize((1280, 720), Image.Resampling.BILINEAR, box=view))
            y, x = rng.integers(80), rng.integers(120)
            planes[:720] = (luma + grain[y : y + 720, x : x + 1280]).clip(0, 255)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(planes, "yuv420p")))
        container.mux(stream.encode())


if __name__ == "__main__":
    main()
