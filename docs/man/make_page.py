#!/usr/bin/env python3
"""Makes a manual page: a template filled with what a program says of itself.

Usage: make_page.py --program FILE --template FILE --output FILE

In the template, lines of their own: @OPTIONS@ (options of the program), @VERBS@ (for each verb of
`PROGRAM --help` a subsection with its synopsis and options); anywhere: @VERSION@. Exit code 1 when
the program's help is not in the form that CLI11 writes.
"""

import argparse
import re
import subprocess
import sys

COLUMN = 30  # where CLI11 begins the descriptions
SHAPE = re.compile(
    r"(?P<names>\S+)"
    r"(?: (?P<type>[A-Z]+)(?::(?P<constraint>.*?))?(?:=(?P<default>\S*))?(?P<many> \.\.\.)?)?"
    r"(?P<required> REQUIRED)?(?: Excludes:(?P<excludes>(?: --?\w+)+))?(?: Needs:(?P<needs>.*))?"
)


def say(program, *arguments):
    done = subprocess.run([program, *arguments], capture_output=True, text=True, check=True)
    return done.stdout


def parse_help(text):
    """(summary, synopsis, [(heading, [(declaration, description)])]) of what --help printed."""
    lines = text.rstrip().split("\n")
    usage = next(i for i, line in enumerate(lines) if line.startswith("Usage: "))
    sections = []
    for line in lines[usage + 1 :]:
        if not line.strip():
            continue
        if not line.startswith(" "):
            sections.append((line.rstrip(":"), []))
        elif line.startswith(" " * COLUMN):
            # Of a declaration that is too long for its column and has the line above to itself.
            sections[-1][1][-1] = (above.strip(), line.strip())
        else:
            above = line
            sections[-1][1].append((line[:COLUMN].strip(), line[COLUMN:].strip()))
    return " ".join(lines[:usage]), lines[usage][len("Usage: ") :], sections


def escape(text):
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return "\\&" + text if text.startswith((".", "'")) else text


def sentence(text):
    return text if not text or text.endswith((".", "!", "?", ":")) else text + "."


def constraint_words(text):
    if text is None:
        return ""
    choices = re.fullmatch(r"\{(.*)\}", text)
    if choices:
        return "One of " + ", ".join(choices.group(1).split(",")) + "."
    bounds = re.fullmatch(r"(?:INT|FLOAT|UINT) in \[(\S+) - (\S+)\]", text)
    if bounds:
        return f"{bounds.group(1)} to {bounds.group(2)}."
    known = {"NONNEGATIVE": "At least 0.", "POSITIVE": "More than 0."}
    if text in known:
        return known[text]
    raise ValueError(f"unknown constraint '{text}': say in make_page.py how to print it")


def paragraph(declaration, description):
    """A tagged paragraph of one option or positional."""
    shape = SHAPE.fullmatch(declaration)
    if shape is None:
        raise ValueError(f"cannot read '{declaration}'")
    if shape.group("names").startswith("-"):
        tag = ", ".join(rf"\fB{escape(name)}\fR" for name in shape.group("names").split(","))
        if shape.group("type"):
            tag += rf" \fI{shape.group('type')}\fR"
    else:
        tag = rf"\fI{escape(shape.group('names'))}\fR"
    words = [sentence(description), constraint_words(shape.group("constraint"))]
    if shape.group("required"):
        words.append("Required.")
    if shape.group("default"):
        words.append(f"Default: {shape.group('default')}.")
    if shape.group("excludes"):
        words.append("Not with " + " or ".join(shape.group("excludes").split()) + ".")
    return [".TP", tag, escape(" ".join(w for w in words if w))]


def options(sections):
    lines = []
    for heading, entries in sections:
        if heading == "Subcommands":
            continue
        if heading not in ("Options", "Positionals"):
            lines += [".PP", escape(heading) + ":"]
        for declaration, description in entries:
            lines += paragraph(declaration, description)
    return lines


def verbs(program):
    _, _, sections = parse_help(say(program, "--help"))
    lines = []
    for name, _ in dict(sections)["Subcommands"]:
        summary, synopsis, verb_sections = parse_help(say(program, name, "--help"))
        lines += [f".SS {escape(synopsis)}", escape(sentence(summary))]
        lines += options(verb_sections)
    return lines


def page(program, template):
    version = say(program, "--version").split()[-1]
    lines = []
    for line in template.replace("@VERSION@", version).splitlines():
        if line == "@OPTIONS@":
            lines += options(parse_help(say(program, "--help"))[2])
        elif line == "@VERBS@":
            lines += verbs(program)
        else:
            lines.append(line)
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--program", required=True)
    parser.add_argument("--template", required=True)
    parser.add_argument("--output", required=True)
    arguments = parser.parse_args()
    with open(arguments.template, encoding="utf-8") as file:
        template = file.read()
    try:
        text = page(arguments.program, template)
    except ValueError as error:
        print(f"make_page.py: {arguments.program}: {error}", file=sys.stderr)
        return 1
    with open(arguments.output, "w", encoding="utf-8") as file:
        file.write(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
