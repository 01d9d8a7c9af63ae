"""Make the Python environment: python3 bootstrap_env.py .venv requirements.txt

Needs nothing but Python: Debian's comes without pip and ensurepip, so pip comes from PyPI where it lacks.
"""

import hashlib
import json
import subprocess
import sys
import tempfile
import urllib.parse
import urllib.request
import venv
from pathlib import Path

PIP = "https://pypi.org/pypi/pip/json"


def main() -> None:
    folder, requirements = Path(sys.argv[1]), sys.argv[2]
    if sys.version_info < (3, 11):  # noqa: UP036 — this is the script that finds out
        version = sys.version.split()[0]
        sys.exit(f"error: Python 3.11 or newer is needed, this is {version}; try make PYTHON=…")
    python = folder / "bin" / "python"
    venv.create(folder, symlinks=True)
    if subprocess.run([python, "-m", "ensurepip"], capture_output=True).returncode:
        install_pip(python)
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--upgrade", "pip"], check=True)
    print(f"installs {requirements} in {folder}: some 6 GB, a few minutes", flush=True)
    done = subprocess.run([python, "-m", "pip", "install", "--quiet", "-r", requirements])
    if done.returncode:
        sys.exit(f"error: pip could not install {requirements}; its reason is above")


def install_pip(python: Path) -> None:
    """Install pip by its own wheel, which runs as it is; the checksum is the one that PyPI states."""
    files = json.load(urllib.request.urlopen(PIP, timeout=60))["urls"]
    wheel = next(file for file in files if file["packagetype"] == "bdist_wheel")
    content = urllib.request.urlopen(urllib.parse.urljoin(PIP, wheel["url"]), timeout=60).read()
    if hashlib.sha256(content).hexdigest() != wheel["digests"]["sha256"]:
        sys.exit(f"error: {wheel['filename']} from PyPI does not have its stated checksum; try again")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / wheel["filename"]
        path.write_bytes(content)
        subprocess.run([python, f"{path}/pip", "install", "--quiet", "--no-index", path], check=True)


if __name__ == "__main__":
    main()
