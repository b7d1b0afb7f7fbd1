"""Runs a program within what a unit file allows: its system calls, its address families, no memory
that is writable and executable, no new privileges.

Usage: sandboxed.py UNIT PROGRAM [ARGUMENTS...]
systemd builds the same seccomp rules from these lines of the unit, but needs to be the first process
of a machine; the groups of calls are resolved by systemd-analyze. Needs python3-seccomp.
"""

import ctypes
import errno
import os
import re
import subprocess
import sys

import seccomp

FAMILIES = {"AF_UNIX": 1, "AF_INET": 2, "AF_INET6": 10}
PROT_WRITE, PROT_EXEC = 2, 4
PR_SET_NO_NEW_PRIVS = 38
# Newer than libseccomp 2.5.4, and of no use to us.
UNKNOWN_TO_LIBSECCOMP = {"riscv_hwprobe", "uretprobe"}


def values(unit, key):
    """Words of every line KEY= of the unit, in order, one list a line."""
    with open(unit, encoding="utf-8") as file:
        return [line.split("=", 1)[1].split() for line in file if line.startswith(key + "=")]


def group(name):
    """The system calls of @NAME, groups within it resolved; of others the name itself."""
    if not name.startswith("@"):
        return {name}
    listed = subprocess.run(
        ["systemd-analyze", "--no-pager", "syscall-filter", name],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    names = re.findall(r"^    ([@a-z][\w-]*)$", listed, re.MULTILINE)
    return set().union(*(group(n) for n in names))


def allowed(unit):
    calls = group("@default")
    for line in values(unit, "SystemCallFilter"):
        deny = line[0].startswith("~")
        named = set().union(*(group(word.lstrip("~")) for word in line))
        calls = calls - named if deny else calls | named
    return calls


def apply(unit):
    refuse = seccomp.ERRNO(errno.EPERM)
    kernel = seccomp.SyscallFilter(defaction=refuse)
    calls = allowed(unit)
    if not {"read", "futex", "clone3", "socket"} <= calls or "mount" in calls:
        raise RuntimeError(f"{unit}: SystemCallFilter was read wrongly: {sorted(calls)}")
    families = {FAMILIES[word] for word in values(unit, "RestrictAddressFamilies")[0]}
    if values(unit, "MemoryDenyWriteExecute") != [["yes"]]:
        raise RuntimeError(f"{unit}: expected MemoryDenyWriteExecute=yes")
    for call in sorted(calls - UNKNOWN_TO_LIBSECCOMP):
        conditions = [[]]
        if call == "socket":
            conditions = [[seccomp.Arg(0, seccomp.EQ, family)] for family in sorted(families)]
        elif call == "mmap":
            both = PROT_WRITE | PROT_EXEC
            conditions = [
                [seccomp.Arg(2, seccomp.MASKED_EQ, both, value)]
                for value in (0, PROT_WRITE, PROT_EXEC)
            ]
        elif call in ("mprotect", "pkey_mprotect"):
            conditions = [[seccomp.Arg(2, seccomp.MASKED_EQ, PROT_EXEC, 0)]]
        for condition in conditions:
            kernel.add_rule(seccomp.ALLOW, call, *condition)
    kernel.load()


def main():
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_NO_NEW_PRIVS)")
    apply(sys.argv[1])
    os.execv(sys.argv[2], sys.argv[2:])


if __name__ == "__main__":
    main()
