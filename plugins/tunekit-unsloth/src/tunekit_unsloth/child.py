"""What the launcher starts: `python -m tunekit_unsloth.child FOLDER` carries out the run in that folder."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from tunekit.launched import main

if __name__ == "__main__":
    import unsloth  # type: ignore[import-not-found, import-untyped, unused-ignore]  # noqa: F401 - patches what follows

    sys.exit(main(Path(sys.argv[1]), int(os.environ["RANK"])))
