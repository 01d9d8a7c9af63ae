"""Clips for tests, whose every frame shows its own number, and an independent way to decode them."""

import struct
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.stream import Disposition

BITS = 8
X264 = {"preset": "fast", "x264-params": "keyint=12:min-keyint=12:scenecut=0:bframes=3"}
OPEN_GOP = {"preset": "fast", "x264-params": "keyint=12:min-keyint=12:scenecut=0:bframes=3:open-gop=1"}


def draw(number: int, width: int = 128, height: int = 96) -> np.ndarray:
    """An RGB picture that shows `number` as a row of black and white blocks, over a moving texture."""
    rng = np.random.default_rng(0)
    texture = (
        rng.integers(0, 256, (height // 8 + 8, width // 8 + 8, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    )
    image = texture[number % 64 :, number * 3 % 64 :][:height, :width].copy()
    for bit in range(BITS):
        image[: height // 3, bit * width // BITS : (bit + 1) * width // BITS] = 255 * (number >> bit & 1)
    return image


def read(image: np.ndarray) -> int:
    """The number that a decoded picture shows, whatever its size; fails where that is not clear."""
    height, width = image.shape[:2]
    number = 0
    for bit in range(BITS):
        block = image[: height // 3, bit * width // BITS : (bit + 1) * width // BITS]
        brightness = block[2:-2, 2:-2].mean()
        assert brightness < 64 or brightness > 192, f"block {bit} is neither black nor white"
        number |= int(brightness > 128) << bit
    return number


def write_clip(
    path: Path,
    frames: int | Iterable[np.ndarray] = 60,
    codec: str = "libx264",
    codec_options: dict = X264,
    container_options: dict | None = None,
    milliseconds: Sequence[int] | None = None,
    audio_seconds: float = 0,
    pixel_ratio: Fraction | None = None,
    preview: Sequence[np.ndarray] = (),
) -> Path:
    """Write `frames` (drawn ones for a number) at 30 a second, or each at its time in `milliseconds`.

    A `preview` becomes a video stream of its own, before that of the frames.
    """
    images = [draw(i) for i in range(frames)] if isinstance(frames, int) else list(frames)
    with av.open(path, "w", options=container_options or {}) as container:
        if preview:
            first = container.add_stream("mjpeg", rate=1)
            first.height, first.width = preview[0].shape[:2]
            first.pix_fmt = "yuvj420p"
        video = container.add_stream(codec, rate=30, options=codec_options)
        video.height, video.width = images[0].shape[:2]
        video.pix_fmt = "yuv420p"
        if pixel_ratio:
            video.codec_context.sample_aspect_ratio = pixel_ratio
        for image in preview:
            container.mux(first.encode(av.VideoFrame.from_ndarray(image)))
        if milliseconds:
            video.codec_context.time_base = Fraction(1, 1000)
        audio = container.add_stream("aac", rate=16000, layout="mono") if audio_seconds else None
        for i, image in enumerate(images):
            frame = av.VideoFrame.from_ndarray(image)
            frame.time_base = Fraction(1, 1000 if milliseconds else 30)
            frame.pts = milliseconds[i] if milliseconds else i
            container.mux(video.encode(frame))
        container.mux(video.encode())
        if audio:
            write_silence(container, audio, audio_seconds)
    return path


def write_audio(path: Path, cover: bool = False) -> Path:
    """A second of sound without video, if need be with a cover picture."""
    with av.open(path, "w") as container:
        audio = container.add_stream("aac", rate=16000, layout="mono")
        if cover:
            picture = container.add_stream("png", rate=1)
            picture.height, picture.width, picture.pix_fmt = 96, 128, "rgb24"
            picture.disposition = Disposition.attached_pic.value
            container.mux(picture.encode(av.VideoFrame.from_ndarray(draw(0))))
        write_silence(container, audio, 1)
    return path


def write_silence(container, stream, seconds: float):
    for i in range(int(seconds * 16000 / 1024)):
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate, frame.pts, frame.time_base = 16000, i * 1024, Fraction(1, 16000)
        container.mux(stream.encode(frame))
    container.mux(stream.encode())


def rotate(path: Path, matrix: tuple[int, int, int, int]):
    """Give an MP4 or MOV file the display matrix (a, b, c, d), as a phone does, in its track header."""
    content = bytearray(path.read_bytes())
    a, b, c, d = (value << 16 for value in matrix)
    struct.pack_into(">9i", content, content.index(b"tkhd") + 44, a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content)


def trim(path: Path, first: int, milliseconds: int):
    """Make an MP4 or MOV file's edit list show it from frame `first` on (at 30 a second), for so long."""
    content = bytearray(path.read_bytes())
    entry = content.index(b"elst") + 12  # after the version, flags and count: duration, media time
    media_time = struct.unpack_from(">i", content, entry + 4)[0]
    clock = struct.unpack_from(">I", content, content.index(b"mdhd") + 16)[0]
    struct.pack_into(">Ii", content, entry, milliseconds, media_time + first * clock // 30)
    path.write_bytes(content)


def remux(path: Path, change: Callable[[int, av.Packet], av.Packet | None], suffix: str = "") -> Path:
    """A copy of a clip with what `change` makes of each numbered packet, without those it makes None of."""
    out = path.with_name(f"remuxed-{path.name}").with_suffix(suffix or path.suffix)
    with av.open(path) as source, av.open(out, "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for i, packet in enumerate(source.demux(video=0)):
            if packet.size and (packet := change(i, packet)):
                packet.stream = stream
                target.mux(packet)
    return out


def behead(path: Path, packets: int) -> Path:
    """A copy of a Matroska file that lacks its first packets, as if cut out of a longer recording."""

    def change(i, packet):
        packet.dts = i
        return packet if i >= packets else None

    return remux(path, change)


def hide(path: Path, every: int) -> Path:
    """A copy of a VP8 clip whose every so-manieth frame is decoded, but not shown, as libvpx has some."""

    def change(i, packet):
        if i % every != every - 1:
            return packet
        hidden = av.Packet(bytes([bytes(packet)[0] & ~0x10]) + bytes(packet)[1:])
        hidden.pts, hidden.dts, hidden.time_base = packet.pts, packet.dts, packet.time_base
        return hidden

    return remux(path, change)


def all_key(path: Path) -> Path:
    """Take an MP4 or MOV file's table of key frames away: then all count as such."""
    path.write_bytes(path.read_bytes().replace(b"stss", b"free"))
    return path


def decode_all(path: Path) -> list[np.ndarray]:
    """Every frame of a clip as RGB, the plain way, without turning it upright."""
    with av.open(path) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
