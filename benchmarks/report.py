"""Medians, ratios and tables: docs/performance.json, and the same for people in docs/performance.md."""

import json
import os
import platform
import statistics
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import growth_report
import ingest_report
from variants import CEILINGS, DAFT, DIASTOLE, HERE, LAYOUTS, NAMES, RAISED, TUNED_CEILINGS, Variant

DOCS = HERE.parent / "docs"
MEASURES = ("work_s", "besides_s", "wall_s", "peak_mb", "cpu_s")


def summarise(variants: Sequence[Variant], rounds: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Medians by variant over the rounds that went well, and all rounds."""
    found: dict[str, Any] = {}
    for variant in variants:
        measured = rounds[variant.name]
        well = [one for one in measured if "error" not in one]
        medians = {key: round(statistics.median(one[key] for one in well), 3) for key in MEASURES} if well else {}
        errors = sorted({one["error"] for one in measured if "error" in one})
        found[variant.name] = {
            "what": variant.what,
            "settings": variant.settings,
            **medians,
            **({"errors": errors} if errors else {}),
            "all": measured,
        }
    return found


def best_ceiling(variants: dict[str, Any], name: str) -> float | None:
    """Seconds of the fastest of the ceilings that a variant is held to: with the settings of `diastole tune`, or without."""
    own = TUNED_CEILINGS if name in TUNED_CEILINGS or (name in DIASTOLE and name.endswith("-tuned")) else CEILINGS
    return min((variants[one]["work_s"] for one in own if "work_s" in variants.get(one, {})), default=None)


def ratios(variants: dict[str, Any]) -> dict[str, dict[str, float | None]]:
    """By variant: share of the ceiling, and how many times as fast as Ray Data, as documented and as tuned."""

    def over(reference: float | None, name: str) -> float | None:
        own = variants[name].get("work_s")
        return reference / own if reference and own else None

    ray, tuned = (variants.get(name, {}).get("work_s") for name in ("raydata", "raydata-tuned"))
    return {
        name: {
            "of_ceiling": over(best_ceiling(variants, name), name),
            "x_ray": over(ray, name),
            "x_tuned": over(tuned, name),
        }
        for name in variants
    }


def table(result: dict[str, Any]) -> list[str]:
    """One workload as Markdown."""
    variants = result["variants"]
    found = ratios(variants)
    lines = [
        "| variant | work, s | per second | of the ceiling | × Ray Data | × Ray Data, tuned | besides, s | peak, MB | CPU, s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name in _shown(variants):
        one = variants[name]
        if "work_s" not in one:
            lines.append(f"| {one['what']} | failed: {'; '.join(one['errors'])} | | | | | | | |")
            continue
        rate = (
            f"{result['items'] / one['work_s']:,.0f}"
            if result["items"] > 10 * one["work_s"]
            else f"{result['items'] / one['work_s']:.1f}"
        )
        numbers = [f"{value:.2f}" if value else "" for value in found[name].values()]
        cells = [one["what"] + _raised(one), f"{one['work_s']:.2f}", rate, *numbers]
        cells += [f"{one['besides_s']:.1f}", f"{one['peak_mb']:.0f}", f"{one['cpu_s']:.0f}"]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", *_settings(variants)]
    if hand := [name for name in result.get("by_hand", []) if name in variants]:
        lines += [f"Set by hand, not tried out: {', '.join(hand)}.", ""]
    for name, one in variants.items():
        if "work_s" in one and "errors" in one:
            failed = sum("error" in each for each in one["all"])
            lines.append(f"{name}: {failed} of {len(one['all'])} rounds failed: {'; '.join(one['errors'])}.")
    lines += [f"{name} took no part: {reason}." for name, reason in result.get("absent", {}).items()]
    return lines


def _shown(variants: dict[str, Any]) -> list[str]:
    """Of the ceilings only the better allocator of each layout; then the others."""
    shown = []
    for layout in LAYOUTS:
        there = [f"ceiling-{layout}", f"ceiling-{layout}-raised"]
        there = [name for name in there if "work_s" in variants.get(name, {})]
        shown += sorted(there, key=lambda name: variants[name]["work_s"])[:1]
    return shown + [name for name in variants if name not in CEILINGS]


def _raised(one: dict[str, Any]) -> str:
    return ", allocator raised" if one["settings"].get("raised") else ""


def _settings(variants: dict[str, Any]) -> list[str]:
    """What the peers were told."""
    told = {name: one["settings"] for name, one in variants.items() if name in NAMES}
    lines = [
        f"{name}: {', '.join(f'{key} {_word(value)}' for key, value in settings.items() if key != 'raised')}"
        for name, settings in told.items()
    ]
    return [f"Settings: {'; '.join(lines)}.", ""] if lines else []


def _word(value: Any) -> str:
    return "as it is" if value is None else str(value)


def keep(results: dict[str, Any], *, write: bool) -> None:
    """Show results, and put them into docs/ beside those of other workloads."""
    for name, result in results.items():
        print("\n".join([f"## {name}", "", *(_answers(result) if name == "commands" else table(result))]))
    if not write:
        return
    DOCS.mkdir(exist_ok=True)
    path = DOCS / "performance.json"
    old = json.loads(path.read_text()) if path.exists() else {}
    known = {name: one for name, one in old.get("workloads", {}).items() if "items" in one or name == "commands"}
    workloads = {**known, **{name: {"machine": machine(), **one} for name, one in results.items()}}
    path.write_text(json.dumps({**old, "workloads": workloads}, indent=1) + "\n")
    (DOCS / "performance.md").write_text(page(workloads))


def page(workloads: dict[str, Any]) -> str:
    """docs/performance.md."""
    lines = ["# Performance", "", (HERE / "about.md").read_text().strip(), ""]
    for name, result in workloads.items():
        said = ", ".join(f"{key} {value}" for key, value in result.get("machine", {}).items())
        body = _answers(result) if name == "commands" else table(result)
        lines += [
            f"## {name}" + (f": {result['what']}" if "what" in result else ""),
            "",
            *body,
            "",
            *([f"On {said}.", ""] if said else []),
        ]
    return "\n".join([*lines, *ingest_report.pages(DOCS), *growth_report.pages(DOCS)])


def _answers(result: dict[str, Any]) -> list[str]:
    lines = ["| command | best, s | median, s | goal, s |", "|---|---|---|---|"]
    answers = {name: one for name, one in result.items() if name != "machine"}
    return [*lines, *(f"| {k} | {v['best']:.2f} | {v['median']:.2f} | {v['goal']:g} |" for k, v in answers.items()), ""]


def machine() -> dict[str, str]:
    """What it was measured on, and with."""
    said = {"cpu": f"{_processor()}, {os.cpu_count()} cores", "python": platform.python_version()}
    for name in ("torch", "ray", "dask", "zarr", "pyarrow", "deltalake"):
        try:
            said[name] = version(name)
        except PackageNotFoundError:
            continue
    said |= {
        path.name.split("-")[0]: path.name.split("-")[1].removesuffix(".dist") for path in DAFT.glob("daft-*.dist-info")
    }
    return {**said, "allocator raised": " ".join(f"{key}={value}" for key, value in RAISED.items())}


def _processor() -> str:
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return names[0].partition(": ")[2] if names else platform.machine()
