"""Every option that --help names is in the manual page, at its verb, and no other; mandoc finds
nothing to complain about.

Usage: man_pages_test.py BIN_DIR PAGES_DIR MANDOC
The page is read as mandoc renders it; of the help only the first word of each entry is read.
"""

import re
import subprocess
import sys

PROGRAMS = ("banyan", "banyan-trunk", "banyan-expert")


def output(*command):
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def declared(help_text):
    """Names of the options of one --help."""
    entries = re.findall(r"^  (-\S+)", help_text, re.MULTILINE)
    return sorted(name for entry in entries for name in entry.split(","))


def verbs(program):
    tail = output(program, "--help").partition("Subcommands:\n")[2]
    return re.findall(r"^  ([a-z_]+) ", tail, re.MULTILINE)


def rendered(mandoc, page):
    """The page as plain text: overstruck letters once, hyphens as they are typed."""
    return re.sub(r".\x08", "", output(mandoc, "-T", "ascii", "-O", "width=100", page))


def tagged(text):
    """Names of the options that begin a tagged paragraph."""
    lines = re.findall(r"^ {7}(-.*)$", text, re.MULTILINE)
    return sorted(name for line in lines for name in re.findall(r"--?[A-Za-z]\w*", line))


def sections(text):
    """{heading: text} of a rendered page, subsections (indented by 3) included."""
    parts = re.split(r"^(?: {3})?(\S.*)$", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2]))


def main():
    bin_dir, pages, mandoc = sys.argv[1:4]
    num_options = 0
    for name in PROGRAMS:
        program, page = f"{bin_dir}/{name}", f"{pages}/{name}.1"
        lint = subprocess.run(
            [mandoc, "-T", "lint", "-W", "warning", page], capture_output=True, text=True
        )
        assert lint.returncode == 0 and not lint.stdout, lint.stdout + lint.stderr
        text = rendered(mandoc, page)
        assert output(program, "--version").split()[-1] in text.splitlines()[-1], text[-200:]
        found = sections(text)
        if name == "banyan":
            expected = {verb: declared(output(program, verb, "--help")) for verb in verbs(program)}
            known = {option for options in expected.values() for option in options}
            for verb, options in expected.items():
                heading = next(h for h in found if h.startswith(f"banyan {verb} "))
                assert tagged(found[heading]) == options, (verb, tagged(found[heading]), options)
                num_options += len(options)
        else:
            options = declared(output(program, "--help"))
            known = set(options)
            assert tagged(found["OPTIONS"]) == options, (name, tagged(found["OPTIONS"]), options)
            num_options += len(options)
        # Prose and examples speak of options that exist.
        strangers = set(re.findall(r"(?<![\w-])--[a-z]\w*", text)) - known
        assert not strangers, (name, strangers)
    assert num_options > 100, num_options
    print(f"man_pages_test passed: {num_options} options")


if __name__ == "__main__":
    main()
