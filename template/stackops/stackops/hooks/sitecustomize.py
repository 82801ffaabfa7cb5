"""Python runs this at the start of every process of the server (`stackops serve` puts it on PYTHONPATH).

MLflow builds thousands of objects for one answer. With Python's default thresholds a quarter of the time of a
search goes into garbage collection; these cut its CPU time by 1.6 and cost next to no memory.
"""

import gc

gc.set_threshold(50_000, 20, 100)
