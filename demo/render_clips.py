"""Draw short road clips with labels, laid out like BDD100K, for people without the dataset.

    python -m demo.render_clips --out demo_out/videos_and_labels

Each clip is a small world of flat-coloured things (cars, houses, trees, …) along a bending road. A pinhole
camera drives through it and paints it from far to near; at dusk and at night soft lights are added on top.
World coordinates are metres: x to the right of the road's centre, y up from the road, s along the road, and
d = distance ahead of the camera. Colours are (red, green, blue), 0 to 255.
"""

import argparse
import hashlib
import json
import math
import os
import random
import signal
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import av
from tqdm import tqdm

from demo.camera import View
from demo.look import FAR, NEAR
from demo.things import ground
from demo.world import SCENES, world_of
from errors import UserError, command

FPS = 30
HOLD = 3  # each drawing is shown for this many frames: 10 drawings a second, at a third of the work
ENCODER = {"crf": "21", "preset": "superfast"}
# With cycles of 4 and 3, every 12 clips show each scene by day, at night and at dusk.
TIMES = ("daytime", "night", "daytime", "dawn/dusk")
WEATHERS = ("clear", "partly cloudy", "overcast")


def describe(seed, split, index, seconds, size):
    """Name, attributes and source of chance of one clip of a split; the same arguments give the same clip."""
    digest = hashlib.sha256(repr((seed, split, index, seconds, size)).encode()).hexdigest()
    rng = random.Random(digest)
    scene, timeofday = list(SCENES)[index % len(SCENES)], TIMES[index % len(TIMES)]
    attributes = {"weather": rng.choice(WEATHERS), "scene": scene, "timeofday": timeofday}
    return f"{digest[:8]}-{digest[8:16]}", attributes, rng


def drawings(rng, attributes, seconds, size):
    """Yield the pictures of a clip, HOLD / FPS seconds apart, `size` = (width, height) pixels."""
    world = world_of(rng, attributes, seconds, size)
    for n in range(0, round(seconds * FPS), HOLD):
        view = View(world, n / FPS, size)
        ground(view)
        queue = []
        for thing in world.things:
            d = thing.s + thing.speed * n / FPS - view.s
            if d + thing.length > NEAR and d < FAR:
                away = math.hypot(max(d, 0), thing.x - world.ego_x)
                queue.append((away + thing.under, d, thing))
        for _, d, thing in sorted(queue, key=lambda entry: -entry[0]):
            thing.paint(view, d, thing.x)
        yield view.picture()


def write_clip(folder, seed, split, index, seconds, size):
    """Render one clip into `folder`; it appears there whole or not at all."""
    name, attributes, rng = describe(seed, split, index, seconds, size)
    part = folder / f"{name}.part"
    with av.open(str(part), "w", format="mov") as file:
        stream = file.add_stream("libx264", rate=FPS, options=ENCODER)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        stream.gop_size, stream.thread_count = FPS, 1
        for n, picture in enumerate(drawings(rng, attributes, seconds, size)):
            frame = av.VideoFrame.from_image(picture).reformat(format="yuv420p")
            for frame.pts in range(n * HOLD, (n + 1) * HOLD):
                file.mux(stream.encode(frame))
        file.mux(stream.encode())
    os.replace(part, folder / f"{name}.mov")


@command
def main(argv=None):
    """Render the train and val clips that are missing, then write their labels."""
    parser = argparse.ArgumentParser(description="Draw BDD100K-style road clips with labels.")
    parser.add_argument("--out", type=Path, required=True, help="folder to fill")
    parser.add_argument("--train", type=int, default=2000, help="number of clips (default %(default)s)")
    parser.add_argument("--val", type=int, default=64, help="number of clips (default %(default)s)")
    parser.add_argument("--seconds", type=float, default=0.2, help="length of a clip (default %(default)s)")
    parser.add_argument("--size", type=int, nargs=2, default=(320, 180), help="pixels (default 320 180)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes (default: one a core)")
    args = parser.parse_args(argv)
    size = tuple(args.size)
    if min(args.train, args.val) < 0 or args.workers < 1 or args.seconds * FPS < 1:
        raise UserError("--train and --val must be 0 or more, --workers 1 or more, --seconds 0.04 or more")
    if min(size) < 64 or any(n % 2 for n in size):
        raise UserError(f"--size {size[0]} {size[1]}: give even numbers from 64 on, such as 640 360")

    jobs, labels = [], {}
    for split, count in (("train", args.train), ("val", args.val)):
        folder = args.out / "videos" / split
        folder.mkdir(parents=True, exist_ok=True)
        there, entries = {path.stem for path in folder.glob("*.mov")}, []
        for index in range(count):
            job = (args.seed, split, index, args.seconds, size)
            name, attributes, _ = describe(*job)
            label = {"name": f"{name}.jpg", "attributes": attributes, "timestamp": 10000, "labels": []}
            entries.append(label)
            if name not in there:
                jobs.append((folder, *job))
            there.discard(name)
        if there:
            raise UserError(f"{folder}: has {len(there)} clips of other arguments; remove it or change --out")
        labels[args.out / "labels" / "det_20" / f"det_{split}.json"] = json.dumps(entries, indent=1)

    if jobs:
        os.environ["OMP_NUM_THREADS"] = "1"  # for the workers: each is one thread of numpy
        ignore = partial(signal.signal, signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for this process to handle
        with ProcessPoolExecutor(args.workers, get_context("spawn"), ignore) as pool:
            list(tqdm(pool.map(write_clip, *zip(*jobs)), total=len(jobs), unit="clip"))
    for path, text in labels.items():
        if not path.exists() or path.read_text() != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.with_suffix(".part").write_text(text)
            os.replace(path.with_suffix(".part"), path)
    print(f"{args.out}: {args.train} train and {args.val} val clips, {len(jobs)} of them rendered now")


if __name__ == "__main__":
    main()
