"""Become another program that the kernel kills when our parent dies: `python launch.py PARENT_PID PROGRAM ARGUMENT...`.

Linux only. Run by path in a bare interpreter, so nothing here may import from the package. The request is made
here, not in a `preexec_fn`: forking Python code from a process with threads can deadlock and warns from 3.12 on.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # linux/prctl.h

if __name__ == "__main__":
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(sys.argv[1]):
        sys.exit("edgefl: the parent died before its broker started")
    os.execv(sys.argv[2], sys.argv[2:])
