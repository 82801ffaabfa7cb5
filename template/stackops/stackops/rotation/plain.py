"""A secret that is nothing but random characters: whoever reads the file knows it. As long as before."""

from stackops.rotation.files import Files, random


def propose(name: str, files: Files) -> str:
    """Return random characters."""
    return random(max(24, len(files.text(name))))
