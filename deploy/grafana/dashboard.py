#!/usr/bin/env python3
"""Banyan's dashboard. `dashboard.py > dashboards/banyan.json` writes what Grafana loads.

Top row: is it well; second: why is it slow; then capacity, load, errors. A panel belongs to the row
whose question it answers. Queries that have data only after a failure end in `or vector(0)`.
"""

import json

from panels import bargauge, color, dashed, grid, row, stat, table, target, thresholds, timeseries


def of(labels=""):
    """The label selector of trunks chosen at the top of the dashboard."""
    return '{instance=~"$trunk"' + ("," + labels if labels else "") + "}"


def rate(series):
    return f"rate({series}[$__rate_interval])"


def quantile(q, metric, by=(), labels=""):
    groups = ", ".join(["le", *by])
    return f"histogram_quantile({q}, sum by ({groups}) ({rate(metric + '_bucket' + of(labels))}))"


def mean(metric, by=(), labels=""):
    groups = f" by ({', '.join(by)})" if by else ""
    total = rate(f"{metric}_sum{of(labels)}")
    count = rate(f"{metric}_count{of(labels)}")
    return f"sum{groups} ({total}) / (sum{groups} ({count}) > 0)"


def percentiles(metric):
    return [target(quantile(q, metric), f"p{100 * q:.0f}") for q in (0.5, 0.95, 0.99)]


STEPS = f"(sum({rate('banyan_trunk_steps_total' + of())}) > 0)"
FAILED = of('outcome=~"overload|unavailable|deadline|error"')
RECOMPUTED = of('kind="recompute"')
YES_NO = {
    "type": "value",
    "options": {"0": {"text": "NO", "index": 0}, "1": {"text": "YES", "index": 1}},
}


def phase_seconds(phases):
    labels = of(f'phase=~"{phases}"')
    return f"sum({rate('banyan_trunk_step_phase_seconds_total' + labels)})"


# The phases of a step in the words of who asks why it is slow.
STEP_PARTS = {
    "trunk computes": ("forward|logits", "blue"),
    "waits for experts": ("experts", "orange"),
    "sampling": ("sampling", "purple"),
    "scheduling, publishing": ("schedule|publish", "green"),
}
PART_COLORS = [color(name, shade) for name, (_, shade) in STEP_PARTS.items()]

# --- Is it well? -------------------------------------------------------------------------------

SERVING = stat(
    "Serving",
    "Health of the trunk: NO while it loads, drains, or a shard has no usable replica.",
    f"min(banyan_trunk_serving{of()}) or vector(0)",
    "none",
    thresholds((None, "red"), (1, "green")),
    mappings=[YES_NO],
)
TARGETS_DOWN = stat(
    "Targets down",
    "Processes that Prometheus cannot scrape.",
    'count(up{job=~"banyan-.*"} == 0) or vector(0)',
    "none",
    thresholds((None, "green"), (1, "red")),
)
REPLICAS = stat(
    "Expert replicas usable",
    "Of those in the trunk's cluster configuration. A shard without a usable replica stops everything.",
    f"avg(banyan_trunk_expert_replica_ready{of()}) or vector(0)",
    "percentunit",
    thresholds((None, "red"), (0.5, "orange"), (1, "green")),
    decimals=0,
)
FAILING = stat(
    "Calls failing",
    "Share of Generate calls that ended with overload, unavailable, deadline or error. What clients "
    "cancelled or got wrong does not count.",
    f"(sum({rate('banyan_trunk_calls_total' + FAILED)}) / "
    f"(sum({rate('banyan_trunk_calls_total' + of())}) > 0)) or vector(0)",
    "percentunit",
    thresholds((None, "green"), (0.01, "orange"), (0.05, "red")),
    decimals=1,
)
ALERTS = stat(
    "Alerts firing",
    "Of deploy/prometheus/rules/alerts.yml; each has an entry in deploy/runbook.md.",
    'count(ALERTS{alertname=~"Banyan.*",alertstate="firing"}) or vector(0)',
    "none",
    thresholds((None, "green"), (1, "orange"), (3, "red")),
)
QUEUE = stat(
    "Requests waiting",
    "Requests that have not had their first step. What exceeds the limit of the queue is refused.",
    f"sum(banyan_trunk_queued_requests{of()}) or vector(0)",
    "none",
    thresholds((None, "green"), (16, "orange"), (48, "red")),
    spark=True,
)
TOKENS_NOW = stat(
    "Tokens per second",
    "Tokens generated for all requests together.",
    f"sum({rate('banyan_trunk_generated_tokens_total' + of())})",
    "none",
    thresholds((None, "text")),
    decimals=1,
    spark=True,
)
TOKENS = timeseries(
    "Tokens per second",
    "Generated, and prompt tokens of requests that had their first step. Recomputed ones are the price "
    "of preemptions and lost experts.",
    [
        target(f"sum({rate('banyan_trunk_generated_tokens_total' + of())})", "generated"),
        target(f"sum({rate('banyan_trunk_prompt_tokens_total' + of())})", "prompt"),
        target(f"sum({rate('banyan_trunk_step_rows_total' + RECOMPUTED)})", "recomputed"),
    ],
    "none",
)
TTFT = timeseries(
    "Time to first token",
    "From submission to the engine to the first token, the queue included.",
    percentiles("banyan_trunk_ttft_seconds"),
    "s",
)
ITL = timeseries(
    "Time between tokens",
    "Of one request: how fast an answer appears once it has begun.",
    percentiles("banyan_trunk_itl_seconds"),
    "s",
)

# --- Why is it slow? ---------------------------------------------------------------------------

STEP_SPLIT = timeseries(
    "A step: where its time goes",
    "Mean time of a step, split. A step gives each running request one token, so the top of the stack "
    "is about the time between tokens. The largest area is what to look at: trunk and experts have "
    "their panels below.",
    [target(f"{phase_seconds(p)} / {STEPS}", name) for name, (p, _) in STEP_PARTS.items()],
    "s",
    stacked=True,
    overrides=PART_COLORS,
)
REQUEST_SPLIT = timeseries(
    "A request: where its time goes",
    "Means. Queue: until the first step. Prompt: from there to the first token. Answer: the remaining "
    "tokens. A queue that dominates is a question of capacity, not of speed.",
    [
        target(mean("banyan_trunk_queue_seconds"), "queue"),
        target(
            f"clamp_min({mean('banyan_trunk_ttft_seconds')} - {mean('banyan_trunk_queue_seconds')}, 0)",
            "prompt",
        ),
        target(
            f"clamp_min({mean('banyan_trunk_request_seconds')} - {mean('banyan_trunk_ttft_seconds')}, 0)",
            "answer",
        ),
    ],
    "s",
    stacked=True,
    overrides=[color("queue", "red"), color("prompt", "yellow"), color("answer", "blue")],
)
LOOP = timeseries(
    "Step loop: share of the time",
    "What the engine's thread does. The rest up to 100 % is idle: then nothing waits for the model, "
    "and slowness is elsewhere (network, clients, queueing before the call).",
    [target(phase_seconds(p), name) for name, (p, _) in STEP_PARTS.items()],
    "percentunit",
    stacked=True,
    maximum=1,
    overrides=PART_COLORS,
)
COMPUTES = of('phase=~"forward|logits"')
TRUNK_BUSY = (
    f"sum by (instance) ({rate('banyan_trunk_step_phase_seconds_total' + COMPUTES)})"
)
TRUNK_BANDWIDTH = timeseries(
    "Trunk: weights read while it computes",
    "Bytes of weights per second of the trunk's own computing, beside the bandwidth measured at start. "
    "Near it, the memory is the limit; far below, arithmetic, attention or few threads are.",
    [
        target(
            f"sum by (instance) ({rate('banyan_trunk_weight_bytes_total' + of())}) / ({TRUNK_BUSY} > 0)",
            "{{instance}}",
        ),
        target(
            f"banyan_trunk_memory_bandwidth_bytes_per_second{of()}", "{{instance}} measured at start"
        ),
    ],
    "Bps",
    overrides=[dashed("measured")],
)
EXPERT_BANDWIDTH = timeseries(
    "Experts: weights read while they compute",
    "Bytes of weights per second of expert computing, beside the bandwidth measured at start. Decoding "
    "is bound by this; with many rows per expert, arithmetic is. Beside it what a trunk on a GPU copies of the "
    "pool for long prompts, a second of any kind.",
    [
        target(
            f"{rate('banyan_expert_weight_bytes_total')} / "
            f"({rate('banyan_expert_call_compute_seconds_sum')} > 0)",
            "{{instance}}",
        ),
        target(
            "banyan_expert_memory_bandwidth_bytes_per_second", "{{instance}} measured at start"
        ),
        target(
            f"{rate('banyan_trunk_prompt_expert_bytes_total' + of())}",
            "{{instance}} copies for long prompts",
        ),
    ],
    "Bps",
    overrides=[dashed("measured")],
)
WEIGHT_BYTES = timeseries(
    "Weights read per generated token",
    "All weight bytes that trunk and experts read, over the tokens generated. More requests in a batch "
    "share a step's reading: this falls as batches grow.",
    [
        target(
            f"sum({rate('banyan_trunk_weight_bytes_total' + of())}) / "
            f"(sum({rate('banyan_trunk_generated_tokens_total' + of())}) > 0)",
            "trunk",
        ),
        target(
            f"sum({rate('banyan_expert_weight_bytes_total')}) / "
            f"(sum({rate('banyan_trunk_generated_tokens_total' + of())}) > 0)",
            "experts",
        ),
    ],
    "bytes",
    stacked=True,
    overrides=[color("trunk", "blue"), color("experts", "orange")],
)
TOTAL_CALLS = 'phase="total"'
CALL_LATENCY = timeseries(
    "Expert call by shard",
    "One call for each layer of each step; a step waits for its slowest shard. One shard above the "
    "others is a slow host; all of them together are load or the network.",
    [
        target(
            quantile(0.5, "banyan_trunk_expert_call_seconds", ["shard"], TOTAL_CALLS),
            "shard {{shard}} p50",
        ),
        target(
            quantile(0.95, "banyan_trunk_expert_call_seconds", ["shard"], TOTAL_CALLS),
            "shard {{shard}} p95",
        ),
    ],
    "s",
)
CALL_PHASES = timeseries(
    "Expert call by phase and shard",
    "Means. Queue: behind other trunks' calls. Compute: the experts themselves. Transport: the rest, "
    "that is network, copies and wake-ups.",
    [
        target(
            mean(
                "banyan_trunk_expert_call_seconds",
                ["shard", "phase"],
                'phase=~"queue|compute|transport"',
            ),
            "shard {{shard}} {{phase}}",
        )
    ],
    "s",
    stacked=True,
)
BATCH = timeseries(
    "Rows and sequences of a step",
    "Means. Steps of many rows are steps with prompts in them: they take longer, and everybody waits "
    "for them.",
    [
        target(mean("banyan_trunk_batch_rows"), "rows"),
        target(mean("banyan_trunk_batch_sequences"), "sequences"),
    ],
    "none",
)

# --- Capacity ----------------------------------------------------------------------------------

NEAR_FULL = thresholds((None, "green"), (0.8, "orange"), (0.95, "red"))
PAGES = timeseries(
    "KV pages and state slots in use",
    "Pages hold 64 tokens of keys and values; a running request holds one slot. When pages run out the "
    "youngest request gives its own back and is computed again later.",
    [
        target(
            f"sum(banyan_trunk_kv_pages_used{of()}) / sum(banyan_trunk_kv_pages{of()})", "KV pages"
        ),
        target(
            f"sum(banyan_trunk_recurrent_slots_used{of()}) / sum(banyan_trunk_recurrent_slots{of()})",
            "slots",
        ),
    ],
    "percentunit",
    limits=NEAR_FULL,
    maximum=1,
)
REQUESTS = timeseries(
    "Requests running and waiting",
    "Running is limited by the slots. Waiting above 0 for long means that requests come faster than "
    "they are answered.",
    [
        target(f"sum(banyan_trunk_running_requests{of()})", "running"),
        target(f"sum(banyan_trunk_queued_requests{of()})", "waiting"),
        target(f"sum(banyan_trunk_recurrent_slots{of()})", "limit of running"),
        target(f"sum(banyan_trunk_queue_limit_requests{of()})", "limit of waiting"),
    ],
    "none",
    overrides=[dashed("limit")],
)
BATCH_USE = timeseries(
    "Steps with a full batch",
    "p95 of a step's rows over the limit. At 100 % prompts wait for room in steps.",
    [
        target(
            f"{quantile(0.95, 'banyan_trunk_batch_rows')} / max(banyan_trunk_batch_limit_rows{of()})",
            "p95 of rows",
        )
    ],
    "percentunit",
    limits=NEAR_FULL,
    maximum=1,
)
MEMORY = timeseries(
    "Resident memory",
    "Mapped weights included: they are pages of the files, which processes on one host share.",
    [target('process_resident_memory_bytes{job=~"banyan-.*"}', "{{instance}}")],
    "bytes",
)
CPU = timeseries(
    "CPUs in use",
    "CPU seconds per second of each process.",
    [target(rate('process_cpu_seconds_total{job=~"banyan-.*"}'), "{{instance}}")],
    "none",
)
GPU_MEMORY = timeseries(
    "GPU memory",
    "In use on the trunk's GPU by all processes, and what it has. 0: the trunk is on CPUs.",
    [
        target(f"sum(banyan_trunk_gpu_memory_used_bytes{of()}) or vector(0)", "in use"),
        target(f"sum(banyan_trunk_gpu_memory_bytes{of()}) or vector(0)", "of the GPU"),
    ],
    "bytes",
    overrides=[dashed("of the GPU")],
)
GPU_BUSY = timeseries(
    "GPU in use",
    "Share of the time in which a kernel ran, and in which the GPU's memory was read or written. A kernel that "
    "waits for the experts' rows counts as running: how a step splits is in the second row.",
    [
        target(f"max(banyan_trunk_gpu_busy_ratio{of()}) or vector(0)", "a kernel runs"),
        target(f"max(banyan_trunk_gpu_memory_busy_ratio{of()}) or vector(0)", "memory"),
    ],
    "percentunit",
    maximum=1,
)
PREEMPTIONS = timeseries(
    "Sequences computed again",
    "Per second. pages: there were too few for all running requests; experts: a step was lost with a "
    "shard.",
    [target(f"sum by (reason) ({rate('banyan_trunk_preemptions_total' + of())})", "{{reason}}")],
    "none",
)

# --- Load --------------------------------------------------------------------------------------

LOADED = bargauge(
    "Weights in memory",
    "Share of the bytes that each process has to bring into memory before it serves.",
    [
        target(
            f"banyan_trunk_loaded_bytes{of()} / (banyan_trunk_model_bytes{of()} > 0)",
            "{{instance}}",
        ),
        target("banyan_expert_loaded_bytes / (banyan_expert_pool_bytes > 0)", "{{instance}}"),
    ],
    "percentunit",
    limits=thresholds((None, "orange"), (1, "green")),
    maximum=1,
)
PHASE_PROGRESS = bargauge(
    "Progress of each phase",
    "Share of the bytes of a phase that are done, for each shard and the trunk; phases that have none are "
    "not shown.",
    [
        target(
            f"banyan_trunk_load_phase_bytes{of()} / (banyan_trunk_load_phase_expected_bytes{of()} > 0)",
            "trunk: {{phase}}",
        ),
        target(
            "(banyan_expert_load_phase_bytes / (banyan_expert_load_phase_expected_bytes > 0))",
            "{{instance}}: {{phase}}",
        ),
    ],
    "percentunit",
    limits=thresholds((None, "orange"), (1, "green")),
    maximum=1,
)
PHASE_SPEED = timeseries(
    "Speed of the load",
    "Bytes per second that each process goes through, by phase.",
    [
        target(f"deriv(banyan_trunk_load_phase_bytes{of()}[$__rate_interval])", "trunk: {{phase}}"),
        target("deriv(banyan_expert_load_phase_bytes[$__rate_interval])", "{{instance}}: {{phase}}"),
    ],
    "Bps",
)
PLANNED = timeseries(
    "Memory against the plan",
    "Resident memory as a share of what the plan counted with at the start. Pages of the checkpoint count "
    "as resident; a trunk on a GPU plans the GPU's memory.",
    [
        target(
            f"process_resident_memory_bytes / on(instance) (banyan_trunk_planned_bytes{of()} > 0)",
            "{{instance}}",
        ),
        target(
            "process_resident_memory_bytes / on(instance) (banyan_expert_planned_bytes > 0)",
            "{{instance}}",
        ),
    ],
    "percentunit",
    limits=thresholds((None, "green"), (1, "red")),
)
LOAD_TIME = bargauge(
    "Time to load",
    "From start to READY; 0 while it is not over. The trunk's includes its wait for the experts.",
    [
        target(f"banyan_trunk_load_seconds{of()}", "{{instance}}"),
        target("banyan_expert_load_seconds", "{{instance}}"),
    ],
    "s",
    limits=thresholds((None, "green"), (600, "orange"), (1200, "red")),
)
PHASE = table(
    "Phase of the load",
    "headers, plan, convert, read, verify, wait (for experts), warm, ready.",
    '{__name__=~"banyan_(trunk|expert)_load_phase"} == 1',
    {"instance": "process", "phase": "phase"},
)
PACKS = bargauge(
    "Packs made again",
    "Packs of experts and trunks that were found damaged or older than the checkpoint at the last start, and were "
    "packed again. More than once on one host: its disk or its memory.",
    [target('{__name__=~"banyan_(trunk|expert)_packs_rejected_total"}', "{{instance}}")],
    "none",
    limits=thresholds((None, "green"), (1, "orange")),
    maximum=1,
)
HUGE_PAGES = bargauge(
    "Experts on huge pages",
    "Share of a pack's weights that the kernel has put on huge pages; reading from others costs a tenth "
    "of the bandwidth. 0 where experts are read from the page cache (--pool_memory map).",
    [
        target(
            "banyan_expert_huge_page_bytes / (banyan_expert_pool_bytes > 0)",
            "{{instance}}",
        )
    ],
    "percentunit",
    limits=thresholds((None, "blue")),
    maximum=1,
)
EXPERT_SHARE = bargauge(
    "Experts: share of the measured bandwidth",
    "Weights read while experts compute over what the memory gave at the start. Near 1: memory is the "
    "limit. Far below with few rows a call: the kernels or other programs are.",
    [
        target(
            f"{rate('banyan_expert_weight_bytes_total')} / "
            f"({rate('banyan_expert_call_compute_seconds_sum')} > 0) / "
            "(banyan_expert_memory_bandwidth_bytes_per_second > 0)",
            "{{instance}}",
        )
    ],
    "percentunit",
    limits=thresholds((None, "blue")),
    maximum=1,
)
UPTIME = bargauge(
    "Up since",
    "Time since the start of each process: a short bar is a restart.",
    [target('time() - process_start_time_seconds{job=~"banyan-.*"}', "{{instance}}")],
    "s",
    limits=thresholds((None, "orange"), (300, "green")),
)
BUILD = table(
    "What runs",
    "Version and compiler of each process.",
    "banyan_build_info",
    {"instance": "process", "binary": "program", "version": "version", "compiler": "compiler"},
)
SHARDS = table(
    "Expert shards",
    "What each expert host serves.",
    "banyan_expert_shard_info",
    {
        "instance": "process",
        "shard": "shard",
        "num_shards": "of",
        "split": "split",
        "pool_format": "format",
        "memory": "memory",
        "tier": "kernels",
    },
)

# --- Errors ------------------------------------------------------------------------------------

OUTCOMES = timeseries(
    "Calls by outcome",
    "Ended per second.",
    [target(f"sum by (outcome) ({rate('banyan_trunk_calls_total' + of())})", "{{outcome}}")],
    "none",
    overrides=[color("ok", "green"), color("unavailable", "red"), color("error", "dark-red")],
)
EXPERT_ERRORS = timeseries(
    "Expert calls in trouble",
    "Per second, by shard. Lost: the stream broke. Sent again: to another replica. Unanswered: no "
    "replica took the call, and the step is computed anew.",
    [
        target(
            f"sum by (shard) ({rate('banyan_trunk_expert_stream_losses_total' + of())})",
            "shard {{shard}} lost",
        ),
        target(
            f"sum by (shard, reason) ({rate('banyan_trunk_expert_resends_total' + of())})",
            "shard {{shard}} sent again, {{reason}}",
        ),
        target(
            f"sum by (shard) ({rate('banyan_trunk_expert_call_failures_total' + of())})",
            "shard {{shard}} unanswered",
        ),
    ],
    "none",
)
REPLICA_STATE = timeseries(
    "Usable replicas by shard",
    "0: nothing is computed until one is back.",
    [target(f"sum by (shard) (banyan_trunk_expert_replica_ready{of()})", "shard {{shard}}")],
    "none",
    limits=thresholds((None, "red"), (1, "green")),
)
OUTAGE = timeseries(
    "Waiting for lost experts",
    "Share of the time in which some shard had no usable replica.",
    [target(f"sum({rate('banyan_trunk_expert_outage_seconds_total' + of())})", "outage")],
    "percentunit",
    maximum=1,
    overrides=[color("outage", "red")],
)
FAILED_STEPS = timeseries(
    "Failed steps and refused frames",
    "Per second. A failed step is computed again when a shard was lost, and fails its requests "
    "otherwise; a refused frame or call is a fault of ours.",
    [
        target(f"sum({rate('banyan_trunk_failed_steps_total' + of())})", "failed steps"),
        target(f"sum({rate('banyan_expert_frames_refused_total')})", "frames refused"),
        target(f"sum({rate('banyan_expert_call_errors_total')})", "calls refused"),
    ],
    "none",
)
FAULTS = timeseries(
    "Page faults that wait for a disk",
    "Per second. Above 0 under load, weights do not stay in memory: the host has too little for them.",
    [target(rate('process_major_page_faults_total{job=~"banyan-.*"}'), "{{instance}}")],
    "none",
    limits=thresholds((None, "green"), (10, "red")),
)


def line(*panels):
    """Panels side by side, equally wide."""
    return [(24 // len(panels), panel) for panel in panels]


ROWS = [
    (1, line(row("Is it well?"))),
    (
        4,
        [
            *[(3, p) for p in (SERVING, TARGETS_DOWN, REPLICAS, FAILING, ALERTS)],
            (4, QUEUE),
            (5, TOKENS_NOW),
        ],
    ),
    (7, line(TOKENS, TTFT, ITL)),
    (1, line(row("Why is it slow?"))),
    (9, line(STEP_SPLIT, REQUEST_SPLIT, LOOP)),
    (8, line(TRUNK_BANDWIDTH, EXPERT_BANDWIDTH, WEIGHT_BYTES)),
    (9, line(CALL_LATENCY, CALL_PHASES, BATCH)),
    (1, line(row("Capacity"))),
    (7, line(PAGES, REQUESTS, BATCH_USE)),
    (7, line(MEMORY, CPU, PREEMPTIONS)),
    (7, line(GPU_MEMORY, GPU_BUSY)),
    (1, line(row("Load"))),
    (6, line(LOADED, LOAD_TIME, PHASE)),
    (6, line(PHASE_PROGRESS, PHASE_SPEED, PLANNED)),
    (6, line(UPTIME, BUILD, SHARDS)),
    (6, line(PACKS, HUGE_PAGES, EXPERT_SHARE)),
    (1, line(row("Errors"))),
    (7, line(OUTCOMES, EXPERT_ERRORS, REPLICA_STATE)),
    (7, line(OUTAGE, FAILED_STEPS, FAULTS)),
]

DASHBOARD = {
    "uid": "banyan",
    "title": "Banyan",
    "description": "How well the service is, and why it is slow when it is.",
    "tags": ["banyan"],
    "schemaVersion": 38,
    "version": 1,
    "editable": False,
    "timezone": "browser",
    "refresh": "10s",
    "time": {"from": "now-30m", "to": "now"},
    "graphTooltip": 1,
    "templating": {
        "list": [
            {
                "name": "trunk",
                "label": "Trunk",
                "type": "query",
                "datasource": {"type": "prometheus", "uid": "banyan-prometheus"},
                "query": {
                    "query": 'label_values(banyan_build_info{binary="banyan-trunk"}, instance)',
                    "refId": "trunk",
                },
                "refresh": 2,
                "includeAll": True,
                "allValue": ".*",
                "multi": True,
                "current": {"text": ["All"], "value": ["$__all"]},
                "sort": 1,
            }
        ]
    },
    "annotations": {
        "list": [
            {
                "name": "Alerts",
                "datasource": {"type": "prometheus", "uid": "banyan-prometheus"},
                "enable": True,
                "iconColor": "red",
                "expr": 'ALERTS{alertname=~"Banyan.*",alertstate="firing"}',
                "titleFormat": "{{alertname}}",
                "textFormat": "{{instance}}",
                "step": "15s",
            }
        ]
    },
    "panels": grid(ROWS),
}

if __name__ == "__main__":
    print(json.dumps(DASHBOARD, indent=2))
