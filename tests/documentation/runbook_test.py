"""The runbook speaks of what exists: metrics of docs/metrics.md, options that a program has, links
that lead somewhere; and has an entry for every alert.

Usage: runbook_test.py SOURCE_DIR BIN_DIR
"""

import glob
import os
import re
import subprocess
import sys

PROGRAMS = ("banyan", "banyan-trunk", "banyan-expert")


def read(path):
    with open(path, encoding="utf-8") as file:
        return file.read()


def options(bin_dir):
    """Every option of every program and verb."""
    found = set()
    for program in PROGRAMS:
        path = f"{bin_dir}/{program}"
        text = subprocess.run([path, "--help"], capture_output=True, text=True, check=True).stdout
        for verb in re.findall(r"^  ([a-z]+) ", text.partition("Subcommands:\n")[2], re.MULTILINE):
            text += subprocess.run(
                [path, verb, "--help"], capture_output=True, text=True, check=True
            ).stdout
        found |= set(re.findall(r"--[a-z]\w*", text))
    return found


def anchor(heading):
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def main():
    source, bin_dir = sys.argv[1:3]
    path = f"{source}/deploy/runbook.md"
    text = read(path)
    problems = []

    metrics = set(re.findall(r"^\| `(\w+)`", read(f"{source}/docs/metrics.md"), re.MULTILINE))
    named = set(re.findall(r"\b(?:banyan_(?:trunk|expert)_|process_)\w+", text))
    problems += [f"no such metric: {name}" for name in sorted(named - metrics)]
    known = options(bin_dir)
    problems += [
        f"no such option: {name}"
        for name in sorted(set(re.findall(r"(?<![\w-])--[a-z]\w*", text)) - known)
    ]

    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    anchors = {anchor(heading) for heading in headings}
    for target in re.findall(r"\]\(([^)]+)\)", text):
        file, _, fragment = target.partition("#")
        if file and not os.path.exists(os.path.join(source, "deploy", file)):
            problems.append(f"link to nothing: {target}")
        if not file and fragment not in anchors:
            problems.append(f"link to no heading: {target}")

    alerts = set()
    for rules in glob.glob(f"{source}/deploy/prometheus/**/*.yml", recursive=True):
        alerts |= set(re.findall(r"^\s*- alert: (\w+)$", read(rules), re.MULTILINE))
    entries = {h for h in re.findall(r"^### (Banyan\w+)$", text, re.MULTILINE)}
    problems += [f"alert without an entry: {name}" for name in sorted(alerts - entries)]
    if alerts:
        problems += [f"entry without an alert: {name}" for name in sorted(entries - alerts)]

    assert len(named) > 20 and len(entries) >= 7, (named, entries)
    for problem in problems:
        print(f"deploy/runbook.md: {problem}", file=sys.stderr)
    if problems:
        sys.exit(1)
    print(f"runbook_test passed: {len(named)} metrics, {len(entries)} entries, {len(alerts)} alerts")


if __name__ == "__main__":
    main()
