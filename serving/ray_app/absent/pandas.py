"""Stands before the real pandas on the path of Ray's own processes, which import it only to encode data frames.

It costs each of them 1.2 s of CPU and 45 MB. Ray Serve takes this ImportError as "not installed"; engines, which are
children of Ray's processes, get a path without this folder (serving/engines/base.py).
"""

from __future__ import annotations

raise ImportError("pandas is left out in Ray's processes")
