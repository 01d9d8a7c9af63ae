import json

import pytest

from data.bdd100k import read_labels, video_name
from errors import UserError

DAY = {"weather": "clear", "scene": "highway", "timeofday": "daytime"}
NIGHT = {"weather": "undefined", "scene": "city street", "timeofday": "night"}


def entry(name, attributes, **more):
    return {"name": name, "attributes": attributes, "timestamp": 10000, "labels": [], **more}


def test_det_20_folder(tmp_path):
    (tmp_path / "det_train.json").write_text(json.dumps([entry("0000f77c-6257be58.jpg", DAY)]))
    (tmp_path / "det_val.json").write_text(json.dumps([entry("b1c66a42-6f7d68ca.jpg", NIGHT)]))
    (tmp_path / "other.json").write_text("not read")
    assert read_labels(tmp_path) == {"0000f77c-6257be58": DAY, "b1c66a42-6f7d68ca": NIGHT}


def test_older_form(tmp_path):
    old = entry("0000f77c-6257be58.jpg", DAY | {"extra": "x"}, labels=[{"category": "car", "id": 1}])
    (tmp_path / "bdd100k_labels_images_train.json").write_text(json.dumps([old]))
    (tmp_path / "bdd100k_labels_images_val.json").write_text(
        json.dumps([entry("b1c66a42-6f7d68ca.jpg", NIGHT)])
    )
    expected = {"0000f77c-6257be58": DAY, "b1c66a42-6f7d68ca": NIGHT}
    assert read_labels(tmp_path) == expected
    assert read_labels(tmp_path / "bdd100k_labels_images_val.json") == {"b1c66a42-6f7d68ca": NIGHT}


def test_the_newer_form_wins(tmp_path):
    (tmp_path / "bdd100k_labels_images_train.json").write_text(
        json.dumps([entry("a.jpg", DAY), entry("b.jpg", DAY)])
    )
    (tmp_path / "det_train.json").write_text(json.dumps([entry("a.jpg", NIGHT)]))
    assert read_labels(tmp_path) == {"a": NIGHT, "b": DAY}


def test_what_is_not_told_is_none(tmp_path):
    path = tmp_path / "labels.json"
    path.write_text(
        json.dumps([entry("a.jpg", {"weather": "clear"}), {"name": "b.jpg"}, entry("c.jpg", None)])
    )
    nothing = {"weather": None, "scene": None, "timeofday": None}
    assert read_labels(path) == {"a": nothing | {"weather": "clear"}, "b": nothing, "c": nothing}


@pytest.mark.parametrize(
    "name",
    [
        "0000f77c-62570258",
        "0000f77c-62570258.jpg",
        "0000f77c-62570258.mov",
        "train/0000f77c-62570258-0000301.jpg",
    ],
)
def test_video_name(name):
    assert video_name(name) == "0000f77c-62570258"


@pytest.mark.parametrize(
    "content",
    [
        '[{"name": "a.jpg", "attributes": {"weather"',
        '{"a": 1}',
        '["a"]',
        "[null]",
        '[{"attributes": {}}]',
        '[{"name": 5}]',
        '[{"name": "a.jpg", "attributes": ["clear"]}]',
        '[{"name": "a.jpg", "attributes": {"weather": 5}}]',
        '[{"name": "a.jpg", "attributes": {"weather": ["clear"]}}]',
        '[{"name": "a.jpg", "attributes": {"weather": "\\ud800"}}]',
        '[{"name": "a.jpg", "attributes": {"weather": "a\\nb"}}]',
        "[" * 100_000,
        "3",
        "null",
        "",
        "\xff",
    ],
)
def test_malformed_files_are_named(tmp_path, content):
    path = tmp_path / "det_train.json"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match=r"det_train\.json: not ") as caught:
        read_labels(tmp_path)
    assert "\n" not in str(caught.value)


def test_missing_labels(tmp_path):
    with pytest.raises(UserError, match="no BDD100K label files in it"):
        read_labels(tmp_path)
    with pytest.raises(UserError, match=r"none\.json: No such file"):
        read_labels(tmp_path / "none.json")
