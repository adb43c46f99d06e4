"""python -m imagegpt"""

from imagegpt.cli.main import entry

entry()
