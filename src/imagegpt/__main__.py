"""python -m imagegpt"""

from __future__ import annotations

from imagegpt.cli.main import entry

if __name__ == "__main__":
    entry()
