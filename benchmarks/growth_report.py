"""Growth as Markdown: what growth_plan.py and simulate.py have measured."""

import json
from pathlib import Path
from typing import Any

ABOUT = """## Growth

Plans of a cohort of volumes (`benchmarks/growth_plan.py`), each in a process of its own; then the real dispatcher, ledger,
receipts and commit under made work on a made clock (`benchmarks/simulate.py`), in a folder in memory, with stragglers,
deaths and returns by a seed. Both ran while the machine was busy with other work: CPU seconds say more than seconds.
"""
SIMULATED = """
At a million shards a hundred of them share a part, and marks of attempts that ended are removed, so that it fits memory:
its commit reads 10,000 parts, not a million. The plan itself takes its own megabytes beside the ledger's.

![Driver time, memory and commit against shards](growth.svg)
"""
ACTORS = """
On a real Ray, shards without work on two cores (`benchmarks/actors.py`); the rate goes from the first worker that is ready,
so that of many has the start of the others in it.

| actors | shards | first ready, s | shards a second | driver, CPU µs a shard |
|---|---|---|---|---|"""


def pages(docs: Path) -> list[str]:
    """The section, or nothing where nothing was measured."""
    plans, growth = (_read(docs / name) for name in ("growth_plan.json", "growth.json"))
    if not plans or not growth:
        return []
    parts = [ABOUT, *_plans(plans["plans"]), "", *_simulated(growth["memory"]), SIMULATED]
    return [*parts, *_actors(_read(docs / "growth_actors.json") or [])]


def _read(path: Path) -> Any:
    return json.loads(path.read_text()) if path.exists() else None


def _plans(points: list[dict[str, Any]]) -> list[str]:
    kinds = ("all new", "1 % changed", "nothing changed")
    lines = ["| units | " + " | ".join(f"{kind}: s, CPU s, MB" for kind in kinds) + " |", "|---|---|---|---|"]
    for point in points:
        cells = [f"{point[k]['seconds']:.1f}, {point[k]['cpu_seconds']:.1f}, {point[k]['peak_mb']:,}" for k in kinds]
        lines.append(f"| {point['units']:,} | {' | '.join(cells)} |")
    return lines


def _simulated(points: dict[str, Any]) -> list[str]:
    lines = [
        "| shards | units | workers | driver, µs a shard | ledger, MB | plan, MB | of the ideal makespan | without copies "
        "| resume, s | commit, s | table files |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for one in points.values():
        alone = one.get("without_copies")
        cells = [f"{one['shards']:,}", f"{one['units']:,}", f"{one['workers']:,}", f"{one['driver_us_per_shard']:.0f}"]
        cells += [f"{one['ledger_mb']:.1f}", f"{one['plan_mb']:,.0f}", f"{one['with_copies']['of_ideal']:.2f}"]
        cells += [f"{alone['of_ideal']:.2f}" if alone else "", f"{one['resume_s']:.1f}", f"{one['commit_s']:.0f}"]
        lines.append(f"| {' | '.join([*cells, str(one['table_files'])])} |")
    return lines


def _actors(points: list[dict[str, Any]]) -> list[str]:
    keys = ("actors", "shards", "first_ready_s", "shards_per_s", "driver_cpu_us_per_shard")
    lines = [f"| {' | '.join(f'{one[key]:,}' for key in keys)} |" for one in points]
    return [ACTORS, *lines, ""] if lines else []
