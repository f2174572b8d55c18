"""Where the rows come from: LLaMA-Factory's demonstration sets (Apache-2.0), out of its source distribution."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

FILES = ("alpaca_en_demo.json", "dpo_en_demo.json", "kto_en_demo.json", "wiki_demo.txt")
RELEASE = "llamafactory==0.9.5"


def fetch() -> Path:
    """Download the release and take its demonstration sets out; returns their folder."""
    folder = Path(tempfile.mkdtemp())
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", ":all:", "--no-build-isolation"]
    subprocess.run([*command, "-d", str(folder), RELEASE], check=True)
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        members = tar.getnames()
        for name in FILES:
            member = tar.extractfile(next(path for path in members if path.endswith(f"data/{name}")))
            assert member is not None, "a file, not a folder"
            (folder / name).write_bytes(member.read())
    return folder
