"""Numbers as people read them."""


def human(size: float) -> str:
    """Return a number of bytes in the largest fitting unit: 535 B, 1.4 MiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
