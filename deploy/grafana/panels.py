"""Panels of Grafana's dashboard model, as much of it as Banyan's dashboard uses.

Every function returns the JSON of one panel without id and place: grid() gives those. Units are
Grafana's: s, Bps, bytes, percentunit (0 to 1), short, none, cores in "none".
"""

DATASOURCE = {"type": "prometheus", "uid": "banyan-prometheus"}
WIDTH = 24  # columns of Grafana's grid


def target(expr, legend="", instant=False):
    return {"expr": expr, "legendFormat": legend, "instant": instant, "range": not instant}


def _targets(targets):
    letters = "ABCDEFGHIJ"
    return [
        {"refId": letters[i], "datasource": DATASOURCE, "editorMode": "code", **t}
        for i, t in enumerate(targets)
    ]


def thresholds(*steps):
    """(None, "green"), (0.5, "red"): the colour from each value on."""
    return {"mode": "absolute", "steps": [{"value": v, "color": c} for v, c in steps]}


GOOD = thresholds((None, "green"))
PLAIN = thresholds((None, "text"))


def _panel(kind, title, description, targets, unit, limits, **rest):
    panel = {
        "type": kind,
        "title": title,
        "description": description,
        "datasource": DATASOURCE,
        "targets": _targets(targets),
        "fieldConfig": {
            "defaults": {"unit": unit, "thresholds": limits, **rest.pop("defaults", {})},
            "overrides": rest.pop("overrides", []),
        },
    }
    panel.update(rest)
    return panel


def stat(title, description, expr, unit, limits, mappings=(), decimals=None, spark=False):
    """One figure, coloured by its thresholds; with `spark`, its course behind it."""
    defaults = {"color": {"mode": "thresholds"}, "mappings": list(mappings), "noValue": "no data"}
    if decimals is not None:
        defaults["decimals"] = decimals
    return _panel(
        "stat",
        title,
        description,
        [target(expr, instant=not spark)],
        unit,
        limits,
        defaults=defaults,
        options={
            "colorMode": "value" if spark else "background_solid",
            "graphMode": "area" if spark else "none",
            "justifyMode": "center",
            "textMode": "value",
            "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        },
    )


def timeseries(title, description, targets, unit, stacked=False, limits=GOOD, maximum=None, overrides=()):
    """Lines over time, or areas that add up. `overrides`: from color() and dashed()."""
    defaults = {
        "color": {"mode": "palette-classic"},
        "min": 0,
        "custom": {
            "drawStyle": "line",
            "lineWidth": 1,
            "fillOpacity": 60 if stacked else 8,
            "stacking": {"mode": "normal" if stacked else "none", "group": "A"},
            "showPoints": "never",
            "spanNulls": False,
            "thresholdsStyle": {"mode": "off" if len(limits["steps"]) == 1 else "line"},
        },
    }
    if maximum is not None:
        defaults["max"] = maximum
    return _panel(
        "timeseries",
        title,
        description,
        targets,
        unit,
        limits,
        defaults=defaults,
        overrides=list(overrides),
        options={
            "legend": {"displayMode": "table", "placement": "bottom", "calcs": ["mean", "max"]},
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
    )


def bargauge(title, description, targets, unit, limits=GOOD, maximum=None):
    """The latest value of each series as a bar."""
    defaults = {"color": {"mode": "thresholds"}, "min": 0}
    if maximum is not None:
        defaults["max"] = maximum
    return _panel(
        "bargauge",
        title,
        description,
        [{**t, "instant": True, "range": False} for t in targets],
        unit,
        limits,
        defaults=defaults,
        options={
            "orientation": "horizontal",
            "displayMode": "basic",
            "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        },
    )


def table(title, description, expr, columns):
    """One row for each series of `expr`; `columns`: label to heading, in order; "Value" is one."""
    return _panel(
        "table",
        title,
        description,
        [{**target(expr, instant=True), "format": "table"}],
        "short",
        PLAIN,
        options={"showHeader": True, "cellHeight": "sm"},
        transformations=[
            {
                "id": "organize",
                "options": {
                    "indexByName": {name: i for i, name in enumerate(columns)},
                    "renameByName": dict(columns),
                    "excludeByName": {"Time": True, "__name__": True, "job": True},
                },
            },
            {"id": "filterFieldsByName", "options": {"include": {"names": list(columns.values())}}},
        ],
    )


def color(name, value):
    """The series whose legend is `name`."""
    return {
        "matcher": {"id": "byName", "options": name},
        "properties": [{"id": "color", "value": {"mode": "fixed", "fixedColor": value}}],
    }


def dashed(pattern):
    """Limits and other lines to compare with: dashed, not filled. `pattern`: of the legend."""
    return {
        "matcher": {"id": "byRegexp", "options": f"/{pattern}/"},
        "properties": [
            {"id": "custom.lineStyle", "value": {"fill": "dash", "dash": [8, 6]}},
            {"id": "custom.fillOpacity", "value": 0},
            {"id": "custom.stacking", "value": {"mode": "none", "group": "A"}},
        ],
    }


def row(title):
    return {"type": "row", "title": title, "collapsed": False, "panels": []}


def grid(lines):
    """Panels with ids and places. `lines`: (height, [(width, panel), ...]) from top to bottom."""
    panels, y = [], 0
    for height, line in lines:
        x = 0
        for width, panel in line:
            place = {"x": x, "y": y, "w": width, "h": height}
            panels.append({"id": len(panels) + 1, "gridPos": place, **panel})
            x += width
        assert x == WIDTH, f"{line[0][1]['title']}: {x} columns"
        y += height
    return panels
