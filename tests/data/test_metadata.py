"""Lines of metadata.jsonl as people may have changed them."""

import pytest

from data.frames import list_frames
from errors import UserError

WHOLE = b'{"file_name": "a/a.jpg", "weather": "clear", "scene": null}\n'


@pytest.mark.parametrize(
    "line",
    [
        b"[1]",
        b"null",
        b"5",
        b'"file_name"',
        b"",
        b"{}",
        b'{"file_name": null}',
        b'{"file_name": 5}',
        b'{"file_name": ["a.jpg"]}',
        b'{"file_name": "a.jpg", "weather": 0}',
        b'{"file_name": "a.jpg", "scene": ["city street"]}',
        b'{"file_name": "\\ud800.jpg"}',
        b'{"file_name": "caf\xe9.jpg"}',
        b"[" * 100_000,
    ],
)
def test_a_line_that_is_no_frame_is_named(tmp_path, line):
    (tmp_path / "val").mkdir()
    (tmp_path / "val" / "metadata.jsonl").write_bytes(WHOLE + line + b"\n" + WHOLE)
    with pytest.raises(UserError, match=r"metadata\.jsonl: line 2 is not a frame's; extract again"):
        list_frames(tmp_path, "val")
    (tmp_path / "val" / "metadata.jsonl").write_bytes(WHOLE)
    assert [frame.weather for frame in list_frames(tmp_path, "val")] == ["clear"]
