"""The most memory that a script takes."""

import subprocess
import sys

_PEAK = """
import re as _re
try:
    with open("/proc/self/status") as _status:
        print(int(_re.search(r"VmHWM:\\s+(\\d+)", _status.read())[1]) << 10)
except OSError:  # on Linux this begins with what the process had that started this one
    import resource as _resource
    print(_resource.getrusage(_resource.RUSAGE_SELF).ru_maxrss)
"""


def peak_memory(script: str, *arguments: object) -> int:
    """Run Python in a process of its own and return the most bytes it had resident."""
    command = [sys.executable, "-c", script + _PEAK, *map(str, arguments)]
    return int(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()[-1])
