"""BDD100K's frame labels: weather, scene and time of day, by video."""

import json
import re
from pathlib import Path

from errors import UserError

ATTRIBUTES = ("weather", "scene", "timeofday")
# where a folder has both forms, the newer one is read last and wins
LABEL_FILES = (
    "bdd100k_labels_images_train.json",
    "bdd100k_labels_images_val.json",
    "det_train.json",
    "det_val.json",
)


def read_labels(path: str | Path) -> dict[str, dict[str, str | None]]:
    """{video: {"weather": …, "scene": …, "timeofday": …}} from a label file, or from all those in a folder.

    Reads det_20 files and the older `bdd100k_labels_images_{train,val}.json`. What an entry does not tell is
    None. Raises `UserError` for a path without label files and for a file that is not of this form.
    """
    path = Path(path)
    files = [path / name for name in LABEL_FILES if (path / name).is_file()] if path.is_dir() else [path]
    if not files:
        raise UserError(f"{path}: no BDD100K label files in it (looked for {', '.join(LABEL_FILES)})")
    labels = {}
    for file in files:
        try:
            entries = json.loads(file.read_bytes())
            for entry in entries:
                attributes = entry.get("attributes") or {}
                values = {key: attributes.get(key) for key in ATTRIBUTES}
                if not all(value is None or value.isprintable() for value in values.values()):
                    raise TypeError("an attribute is a word or two")
                labels[video_name(entry["name"])] = values
        except OSError as error:
            raise UserError(f"{file}: {error.strerror}") from error
        except ValueError as error:
            raise UserError(f"{file}: not JSON ({error})") from error
        except (AttributeError, KeyError, TypeError, RecursionError) as error:
            raise UserError(f"{file}: not BDD100K labels (a list of named images with attributes)") from error
    return labels


def video_name(name: str) -> str:
    """The video an image or clip belongs to: `a-b` for `a-b.jpg`, `a-b.mov`, `a-b-0000301.jpg` and `a-b`."""
    return re.sub(r"(-\d{7})?(\.\w+)?$", "", name.rsplit("/", 1)[-1], count=1)
