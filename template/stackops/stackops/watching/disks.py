"""Room where the stack writes: in volumes, which the engine keeps in its own folder."""

import os
from collections.abc import Mapping

from prometheus_client.core import GaugeMetricFamily

from stackops.diagnosis.live import DISKS
from stackops.watching import Figures


def figures(env: Mapping[str, str]) -> Figures:
    """Yield free bytes and size of the disk under each folder that there is."""
    free = GaugeMetricFamily(
        "stack_disk_free_bytes", "Free bytes of the disk under a folder.", labels=["path"]
    )
    size = GaugeMetricFamily("stack_disk_size_bytes", "Size of the disk under a folder.", labels=["path"])
    for path in DISKS:
        if os.path.ismount(path):
            disk = os.statvfs(path)
            free.add_metric([path], disk.f_bavail * disk.f_frsize)
            size.add_metric([path], disk.f_blocks * disk.f_frsize)
    yield free
    yield size
