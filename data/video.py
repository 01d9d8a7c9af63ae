"""Exact access to the frames of a video file: frame i is the i-th one that decoding the whole file gives.

Opening a clip reads its packets without decoding them. Their presentation times give every frame its index
and the key frame that decoding has to start from; only from there on is anything decoded. Where a container's
word is not enough for that, the whole clip is decoded to count its frames, and again to take some.
"""

import itertools
import math
import statistics
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from av.stream import Disposition
from av.video.reformatter import Interpolation

from errors import UserError

# Of these a packet is a frame that is shown; VP8 and VP9 have hidden ones, MPEG-4 empty ones, and so on.
ONE_FRAME_A_PACKET = ("h264", "hevc", "av1")
# Containers that tell when frames are shown; AVI doesn't, and of others too little is known.
WITH_TIMES = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "mpegts")
NO_PICTURES = Disposition.attached_pic | Disposition.timed_thumbnails  # a sound file's cover, and such
OBLONG = 8  # how oblong pixels can be; those of anamorphic films are twice as wide as high
BROKEN_CLOCK = 10  # seconds: who goes on later in a transport stream is another recording, as for ffmpeg


class Packet(NamedTuple):
    """What a packet says of its frame."""

    pts: int | None
    dts: int | None
    duration: int
    is_key: bool
    is_discard: bool  # an edit list has it decoded, but not shown


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
        return len(self._times)

    def close(self):
        if self._container is not None:
            self._container.close()

    def milliseconds(self, index: int) -> int:
        """When a frame is shown, counted from the first frame."""
        return round((self._times[index] - self._times[0]) * self._time_base * 1000)

    def spread(self, count: int) -> list[int]:
        """The indices of `count` frames spread evenly over the clip, or of all if it has fewer."""
        count = min(count, len(self))
        return [(2 * i + 1) * len(self) // (2 * count) for i in range(count)]

    def every(self, fps: Fraction) -> list[int]:
        """The index of the first frame at or after each multiple of 1/fps seconds.

        The multiples are cut to the clip's clock, as its own times are: Matroska's counts milliseconds.
        """
        rate = fps * self._time_base
        ticks = [math.floor(time - self._times[0]) for time in self._times]
        # how many multiples there are up to each frame, if none comes after the last one
        past = [min(math.ceil((tick + 1) * rate), math.floor(ticks[-1] * rate) + 1) for tick in ticks]
        return [index for index, (before, now) in enumerate(itertools.pairwise([0, *past])) if now > before]

    def at(self, seconds: Fraction) -> int | None:
        """The index of the frame that shows `seconds` after the first one appears; None past the end."""
        tick = self._times[0] + seconds / self._time_base
        return bisect_right(self._times, tick) - 1 if tick < self._end else None

    def frames(self, indices: Iterable[int]) -> Iterator[tuple[int, np.ndarray]]:
        """(index, upright RGB image as uint8 (H, W, 3)) for each of `indices`, in ascending order.

        Raises `UserError` at a frame that does not decode, or not as the container says.
        """
        for start, group in itertools.groupby(sorted(set(indices)), self._starts.__getitem__):
            wanted = list(group)
            # Where a seek lands too late, or a frame does not come out, the next attempt aims further back.
            for target in dict.fromkeys((start, self._key_before(start), None)):
                decoded = self._decode_all() if target is None else self._decode_from(start, target, wanted)
                try:
                    for index, frame in decoded:
                        if self._by_container and frame.pts != self._times[index]:
                            raise self._error("decodes to other frames than its container tells of")
                        if index == wanted[0]:
                            yield index, self._image(frame)
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
        streams = [s for s in self._container.streams.video if not s.disposition & NO_PICTURES]
        if not streams:
            raise self._error("no video stream")
        streams = [stream for stream in streams if stream.codec_context is not None]
        if not streams:
            raise self._error("no decoder for its codec")
        # not a camera's preview or a file's poster, wherever they are
        self._stream = max(streams, key=lambda each: (each.frames != 1, each.width * each.height))
        # clips run in parallel, and with threads the first frame after a seek would come later
        self._stream.codec_context.thread_count = 1

    def _read_index(self):
        """Find out each frame's time and start: key frame to decode from, None for the file's beginning."""
        packets, last = [], None
        for packet in self._container.demux(self._stream):
            if packet.size == 0:  # the one PyAV adds, to empty the decoder
                continue
            last, length = packet, packet.duration or 1
            packets.append(Packet(packet.pts, packet.dts, length, packet.is_keyframe, packet.is_discard))
        listed = len(self._stream.index_entries)
        if len(packets) < listed:
            raise self._error(f"truncated: holds {len(packets)} of {listed} frames")
        if last is None or last.is_corrupt or _matroska_size(self.path) > self.path.stat().st_size:
            raise self._error("truncated: its end is missing")

        self._time_base = self._stream.time_base
        shown = self._shown(packets)
        self._by_container = shown is not None
        if shown is None:
            self._count_frames()
        else:
            self._times, self._starts, durations = zip(*shown)
            self._end = self._times[-1] + durations[-1]

    def _shown(self, packets: list[Packet]) -> list[tuple[int, int, int]] | None:
        """Each frame's time, start and duration by the container's word, None where that isn't enough."""
        sure = self._stream.codec.canonical_name in ONE_FRAME_A_PACKET
        if not sure or self._container.format.name not in WITH_TIMES:
            return None
        if len(packets) > 1 and all(packet.is_key for packet in packets):  # there is no table of them
            return None
        times = [packet.pts for packet in packets]
        if None in times or len(set(times)) < len(times) or self._jumps(packets):
            return None
        # In an open GOP, frames that come after a key frame in the file and before it on screen need the
        # GOP before as well: a frame's start is the last key frame that is not shown after it.
        keys, shown = [], []
        for packet in packets:
            if packet.is_key:
                keys.append(packet.pts)
            start = next((key for key in reversed(keys) if key <= packet.pts), None)
            if start is None:  # cut out of a longer file, it begins with packets that need what isn't there
                return None
            if not packet.is_discard:
                shown.append((packet.pts, start, packet.duration))
        return sorted(shown) or None

    def _jumps(self, packets: list[Packet]) -> bool:
        """Whether the clip's clock is set back on the way, or, in a transport stream, far forward."""
        times, longest = [packet.dts for packet in packets if packet.dts is not None], self._longest_step()
        return any(not before < after <= before + longest for before, after in itertools.pairwise(times))

    def _longest_step(self) -> float:
        """How far a clip's clock may go from one frame to the next."""
        is_transport = self._container.format.name == "mpegts"
        return BROKEN_CLOCK / self._time_base if is_transport else math.inf

    def _count_frames(self):
        """Decode the whole clip for the times of its frames.

        Where those jump, or aren't told, the clip goes on at its usual pace.
        """
        frames = [(frame.pts, frame.dts) for _, frame in self._decode_all()]
        if not frames:
            raise self._error("no frame of it decodes")
        # AVI has only an order of decoding; a frame comes out of the decoder as regularly as packets go in
        by_dts = self._container.format.name == "avi" or any(pts is None for pts, _ in frames)
        told = [dts if by_dts else pts for pts, dts in frames]
        known = [time for time in told if time is not None]
        steps = [after - before for before, after in itertools.pairwise(known) if after > before]
        if not steps and not self._stream.average_rate:
            raise self._error("tells neither frame times nor a frame rate")
        pace = statistics.median_low(steps) if steps else 1 / (self._stream.average_rate * self._time_base)
        self._times, shift, longest = [], 0, self._longest_step()
        for time in told:
            due = self._times[-1] + pace if self._times else time or 0
            if time is None:
                time = due - shift
            elif not due - pace < time + shift <= due - pace + longest:
                shift = due - time
            self._times.append(time + shift)
        self._end = self._times[-1] + pace
        self._starts = [None] * len(self._times)

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

        Goes on until all of `wanted` are through, or what comes out is not what the container tells of.
        Nothing where the seek lands after `start`.
        """
        self._container.seek(target, stream=self._stream)
        packets = self._container.demux(self._stream)
        landed = next((packet for packet in packets if packet.is_keyframe), None)
        if landed is None or landed.pts > start:
            return
        missing = {self._times[index] for index in wanted}
        due = bisect_left(self._times, landed.pts)
        for packet in itertools.chain([landed], packets):
            frames = packet.decode()
            missing.discard(packet.pts)
            if not missing:  # the decoder has all it needs, and gives the rest without packets to follow
                frames += self._stream.decode(None)
            for frame in frames:
                if frame.pts < landed.pts:  # in an open GOP it needs the one before
                    continue
                index = bisect_left(self._times, frame.pts)
                told = index < len(self) and self._times[index] == frame.pts
                in_turn = index == due or not missing  # the rest lacks what comes later in the file
                if not told or not in_turn:  # what a false key frame would give, say
                    return
                yield index, frame
                due = index + 1
            if not missing:
                return

    def _image(self, frame: av.VideoFrame) -> np.ndarray:
        """The frame as it is to be shown."""
        ratio = self._stream.sample_aspect_ratio or 1
        if not 1 / OBLONG <= ratio <= OBLONG:
            raise self._error(f"says that its pixels are {ratio} times as wide as high")
        return upright(frame, max(1, round(frame.width * ratio)))


def upright(frame: av.VideoFrame, width: int) -> np.ndarray:
    """The frame as RGB, uint8 (H, W, 3): made `width` wide, turned and mirrored by its display matrix."""
    how = {} if width == frame.width else {"width": width, "interpolation": Interpolation.BICUBIC}
    image = frame.to_ndarray(format="rgb24", threads=1, **how)
    if "DISPLAYMATRIX" not in frame.side_data:
        return image
    # x' = ax + cy and y' = bx + dy, where two of the four are zero
    a, b, _, c, d = np.frombuffer(frame.side_data["DISPLAYMATRIX"], np.int32)[:5]
    if abs(b) > abs(a):
        image, a, d = image.transpose(1, 0, 2), c, b
    return np.ascontiguousarray(image[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])


def _matroska_size(path: Path) -> int:
    """How long a Matroska or WebM file says it is, in bytes; 0 for other files and where it does not say."""
    end = 0
    with path.open("rb") as file:
        for name in (b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"):  # its header, and all that comes after it
            file.seek(end)
            head = file.read(12)
            if len(head) < 12 or head[:4] != name:
                return 0
            length = 9 - head[4].bit_length()
            size, unknown = int.from_bytes(head[4 : 4 + length]), (1 << 7 * length) - 1
            if size & unknown == unknown:
                return 0
            end += 4 + length + (size & unknown)
    return end
