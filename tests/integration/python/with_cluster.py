"""Starts a trunk and two expert shards, runs a script against them, ends them.

Usage: with_cluster.py --bin_dir DIR --model DIR SCRIPT [ARGS...]
The script is called with: TRUNK_ADDRESS TRUNK_METRICS EXPERT0_METRICS EXPERT1_METRICS ARGS...
"""

import argparse
import ctypes
import os
import re
import signal
import subprocess
import sys
import threading

START_TIMEOUT_S = 60 * int(os.environ.get("BANYAN_TEST_SLOWDOWN", "1"))


def die_with_parent():
    ctypes.CDLL("libc.so.6").prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


class Process:
    """A child whose log is read line by line."""

    def __init__(self, args):
        self._child = subprocess.Popen(
            args,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            preexec_fn=die_with_parent,
        )
        self._lines = []
        self._changed = threading.Condition()
        self._ended = False
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        for line in self._child.stdout:
            with self._changed:
                self._lines.append(line)
                self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def await_match(self, pattern):
        """The first group of the first line that matches."""
        found = None

        def look():
            nonlocal found
            for line in self._lines:
                match = re.search(pattern, line)
                if match:
                    found = match.group(1)
                    return True
            return self._ended

        with self._changed:
            self._changed.wait_for(look, START_TIMEOUT_S)
            if found is None:
                raise RuntimeError(f"no line with {pattern!r}; log:\n{''.join(self._lines)}")
        return found

    def log(self):
        with self._changed:
            self._changed.wait_for(lambda: self._ended, START_TIMEOUT_S)
            return "".join(self._lines)

    def stop(self):
        self._child.terminate()
        return self._child.wait(timeout=START_TIMEOUT_S)

    def wait(self, timeout_s):
        """Until it ends by itself; its exit code."""
        return self._child.wait(timeout=timeout_s)

    def kill(self):
        if self._child.poll() is None:
            self._child.kill()
            self._child.wait()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--bin_dir", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("script")
    parser.add_argument("args", nargs="*")
    options = parser.parse_args()
    processes = []

    def start(binary, *args):
        process = Process(
            [
                f"{options.bin_dir}/{binary}",
                f"--model={options.model}",
                "--listen=127.0.0.1:0",
                "--metrics_listen=127.0.0.1:0",
                "--threads=1",
                *args,
            ]
        )
        processes.append(process)
        return process

    try:
        experts = [start("banyan-expert", f"--shard={i}/2") for i in range(2)]
        addresses = [e.await_match(r" listening address=(\S+)") for e in experts]
        trunk = start("banyan-trunk", "--experts=" + ",".join(addresses))
        address = trunk.await_match(r" ready address=(\S+)")
        metrics = [p.await_match(r"metrics_listening address=(\S+)") for p in [trunk, *experts]]
        code = subprocess.call([sys.executable, options.script, address, *metrics, *options.args])
        if code == 0 and trunk.stop() != 0:
            print(f"the trunk did not end with 0 after SIGTERM; log:\n{trunk.log()}", file=sys.stderr)
            code = 1
    finally:
        for process in processes:
            process.kill()
    sys.exit(code)


if __name__ == "__main__":
    main()
