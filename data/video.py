"""Exact access to the frames of a video file: frame i is the i-th one that decoding the whole file gives.

Opening a clip reads its packets without decoding them. Their presentation times give every frame its index
and the key frame that decoding has to start from; only from there on is anything decoded.
"""

import itertools
import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.stream import Disposition

from errors import UserError


class Clip:
    """A video file, open for reading single frames:

        with Clip("clip.mov") as clip:
            for index, image in clip.frames(clip.spread(2)): ...

    `len(clip)` is its number of frames. Opening raises `UserError` for a file that is missing, empty, not a
    video, without a video stream, or truncated: one that holds less than its container says. (An MPEG
    transport stream does not say.) How long it says it plays does not count: clips often end before that.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._container = None
        try:
            self._open()
            self._read_index()
        except av.FFmpegError as error:
            self.close()
            raise self._error(f"does not decode ({error.strerror})") from error
        except UserError:
            self.close()
            raise

    def __enter__(self) -> "Clip":
        return self

    def __exit__(self, *_):
        self.close()

    def __len__(self) -> int:
        return len(self._pts)

    def close(self):
        if self._container is not None:
            self._container.close()

    def milliseconds(self, index: int) -> int:
        """When a frame is shown, counted from the first frame."""
        return round((self._pts[index] - self._pts[0]) * self._time_base * 1000)

    def spread(self, count: int) -> list[int]:
        """The indices of `count` frames spread evenly over the clip, or of all if it has fewer."""
        return sorted({(2 * i + 1) * len(self) // (2 * count) for i in range(count)})

    def every(self, fps: Fraction) -> list[int]:
        """The index of the first frame at or after each multiple of 1/fps seconds.

        The multiples are cut to the clip's clock, as its own times are: Matroska's counts milliseconds.
        """
        seconds = (self._pts[-1] - self._pts[0]) * self._time_base
        ticks = (math.floor(i / (fps * self._time_base)) for i in range(math.floor(seconds * fps) + 1))
        return sorted({bisect_left(self._pts, self._pts[0] + tick) for tick in ticks})

    def at(self, seconds: Fraction) -> int | None:
        """The index of the frame that shows `seconds` after the first one appears; None past the end."""
        tick = self._pts[0] + seconds / self._time_base
        return bisect_right(self._pts, tick) - 1 if tick < self._end else None

    def frames(self, indices: Iterable[int]) -> Iterator[tuple[int, np.ndarray]]:
        """(index, upright RGB image as uint8 (H, W, 3)) for each of `indices`, in ascending order.

        Raises `UserError` at a frame that does not decode.
        """
        for start, group in itertools.groupby(sorted(set(indices)), self._starts.__getitem__):
            wanted = list(group)
            # Where a seek lands too late, or a frame does not come out, the next attempt aims further back.
            for target in dict.fromkeys((start, self._key_before(start), None)):
                decoded = self._decode_all() if target is None else self._decode_from(start, target, wanted)
                try:
                    for index, frame in decoded:
                        if index == wanted[0]:
                            yield index, upright(frame)
                            del wanted[0]
                        if not wanted or index > wanted[0]:
                            break
                except av.FFmpegError:
                    continue
                if not wanted:
                    break
            if wanted:
                raise self._error(f"frame {wanted[0] + 1} of {len(self)} does not decode")

    def _error(self, problem: str) -> UserError:
        return UserError(f"{self.path}: {problem}")

    def _open(self):
        """Open the file at its start."""
        self.close()
        try:
            if self.path.stat().st_size == 0:
                raise self._error("empty file")
            # absolute, lest a colon in the name read as a protocol
            self._container = av.open(self.path.absolute(), metadata_errors="replace")
        except av.InvalidDataError as error:
            raise self._error("not a video, or truncated") from error
        except OSError as error:
            raise self._error(error.strerror) from error
        # the cover picture of a sound file counts as a video stream
        streams = [s for s in self._container.streams.video if not s.disposition & Disposition.attached_pic]
        if not streams:
            raise self._error("no video stream")
        self._stream = streams[0]
        if self._stream.codec_context is None:
            raise self._error("no decoder for its codec")
        # clips run in parallel, and with threads the first frame after a seek would come later
        self._stream.codec_context.thread_count = 1

    def _read_index(self):
        count, last, keys, shown = 0, None, [], []
        for packet in self._container.demux(self._stream):
            if packet.size == 0:  # the one PyAV adds, to empty the decoder
                continue
            count, last = count + 1, packet
            if packet.is_keyframe:
                keys.append(packet.pts)
            if not packet.is_discard:  # an edit list has these decoded, but not shown
                shown.append((packet.pts, packet.duration or 1, len(keys)))
        listed = len(self._stream.index_entries)
        if count < listed:
            raise self._error(f"truncated: holds {count} of {listed} frames")
        if last is None or last.is_corrupt or _matroska_size(self.path) > self.path.stat().st_size:
            raise self._error("truncated: its end is missing")

        times = {pts for pts, _, _ in shown}
        if self._container.format.name == "avi" or None in times or len(times) < len(shown):
            # no presentation times to go by (AVI's follow the order of decoding): count the frames themselves
            if not self._stream.average_rate:
                raise self._error("tells neither frame times nor a frame rate")
            self._pts = [index for index, _ in self._decode_all()]
            self._time_base, self._end = 1 / self._stream.average_rate, len(self._pts)
            self._starts = [None] * len(self._pts)
        else:
            # In an open GOP, frames that come after a key frame in the file and before it on screen need the
            # GOP before as well: a frame's start is the last key frame that is not shown after it.
            shown = [
                (pts, duration, next((key for key in reversed(keys[:n]) if key <= pts), None))
                for pts, duration, n in shown
            ]
            if any(start is None for _, _, start in shown):
                # Cut out of a longer file, this one begins with packets that need what is not there any more.
                first = next((frame.pts for _, frame in self._decode_all()), math.inf)
                shown = [packet for packet in shown if packet[0] >= first]
            shown.sort()
            self._pts = [pts for pts, _, _ in shown]
            self._starts = [start for _, _, start in shown]
            self._time_base = self._stream.time_base
            self._end = shown[-1][0] + shown[-1][1] if shown else 0
        if not self._pts:
            raise self._error("no frame of it decodes")
        self._index = {pts: index for index, pts in enumerate(self._pts)}

    def _key_before(self, start: int | None) -> int | None:
        """The start that comes before `start`, or None for that of the file."""
        earlier = [key for key in self._starts if None not in (key, start) and key < start]
        return max(earlier, default=None)

    def _decode_all(self) -> Iterator[tuple[int, av.VideoFrame]]:
        """(index, frame) from the start of the file."""
        self._open()  # a seek does not find the first packet in every container
        yield from enumerate(self._container.decode(self._stream))

    def _decode_from(self, start: int, target: int, wanted: list[int]) -> Iterator[tuple[int, av.VideoFrame]]:
        """(index, frame) from the key frame shown at `start`, or one before, which a seek to `target` finds.

        Goes on until all of `wanted` are through. Nothing where the seek lands after `start`.
        """
        self._container.seek(target, stream=self._stream)
        packets = self._container.demux(self._stream)
        landed = next((packet for packet in packets if packet.is_keyframe), None)
        if landed is None or landed.pts > start:
            return
        missing = {self._pts[index] for index in wanted}
        for packet in itertools.chain([landed], packets):
            frames = packet.decode()
            missing.discard(packet.pts)
            if not missing:  # the decoder has all it needs, and gives the rest without packets to follow
                frames += self._stream.decode(None)
            for frame in frames:
                if frame.pts in self._index:
                    yield self._index[frame.pts], frame
            if not missing:
                return


def upright(frame: av.VideoFrame) -> np.ndarray:
    """The frame as RGB, uint8 (H, W, 3), turned and mirrored the way its display matrix says."""
    image = frame.to_ndarray(format="rgb24", threads=1)
    if "DISPLAYMATRIX" not in frame.side_data:
        return image
    # x' = ax + cy and y' = bx + dy, where two of the four are zero
    a, b, _, c, d = np.frombuffer(frame.side_data["DISPLAYMATRIX"], np.int32)[:5]
    if abs(b) > abs(a):
        image, a, d = image.transpose(1, 0, 2), c, b
    return np.ascontiguousarray(image[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])


def _matroska_size(path: Path) -> int:
    """How long a Matroska or WebM file says it is, in bytes; 0 for other files and where it does not say."""
    with path.open("rb") as file:
        head = file.read(128)
    if head[:4] != b"\x1a\x45\xdf\xa3":
        return 0

    def content(position: int) -> tuple[int, int]:
        """Where the content of the element whose 4-byte ID is at `position` begins and ends."""
        length = 9 - head[position + 4].bit_length()
        size = int.from_bytes(head[position + 4 : position + 4 + length]) & (1 << 7 * length) - 1
        begin = position + 4 + length
        return begin, begin + size if size < (1 << 7 * length) - 1 else 0

    _, segment = content(0)
    return content(segment)[1]
