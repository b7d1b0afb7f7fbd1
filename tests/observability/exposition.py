"""What a process answers to GET /metrics, parsed as far as tests need it."""

import re
import urllib.request
from dataclasses import dataclass, field

OPEN_METRICS = "application/openmetrics-text; version=1.0.0"
_SAMPLE = re.compile(r"^([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})? (\S+)$")
_LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\.)*)"')


@dataclass
class Family:
    name: str
    kind: str = ""
    help: str = ""
    labels: set = field(default_factory=set)  # names, "le" left out
    samples: int = 0


def fetch(address, accept="text/plain"):
    request = urllib.request.Request(f"http://{address}/metrics", headers={"Accept": accept})
    with urllib.request.urlopen(request, timeout=10) as answer:
        return answer.read().decode(), answer.headers["Content-Type"]


def families(text):
    """By name, of the plain text format."""
    found = {}
    for line in text.splitlines():
        if line.startswith("#"):
            _, what, name, rest = line.split(" ", 3)
            family = found.setdefault(name, Family(name))
            if what == "HELP":
                family.help = rest
            else:
                family.kind = rest
            continue
        name, labels, _ = _SAMPLE.match(line).groups()
        family = found.get(name) or found[re.sub(r"_(bucket|sum|count)$", "", name)]
        family.samples += 1
        family.labels |= {label for label, _ in _LABEL.findall(labels or "")} - {"le"}
    return found
