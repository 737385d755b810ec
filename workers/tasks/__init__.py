"""The tasks that come with diastole, and those that installed packages add (entry points `diastole.tasks`)."""

import importlib
from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Any

from pydantic import ValidationError

from ...jobs.task import Task
from ...lake.errors import SpecError
from ...lake.models import Manifest, first_problem

BUILT_IN = {
    "segment": "diastole.workers.tasks.segment:Segment",
    "events": "diastole.workers.tasks.events:Events",
    "sequence": "diastole.workers.tasks.sequence:SequenceClasses",
    "residues": "diastole.workers.tasks.residues:Residues",
}


def make_task(manifest: Manifest, name: str | None = None, options: Mapping[str, Any] | None = None) -> Task:
    """The task of a job: the package's options overlaid with the job's.

    Raises SpecError for a task that is not there, an unknown option, or a value that cannot be meant.
    """
    name = name or manifest.task
    kind = _find(name)
    merged = {**manifest.options, **(options or {})}
    try:
        chosen = kind.options_type.model_validate(merged)
    except ValidationError as error:
        known = ", ".join(kind.options_type.model_fields)
        raise SpecError(f"options of task {name}: {first_problem(error)}; known options: {known}") from None
    if tuple(manifest.inputs) != kind.roles:
        raise SpecError(
            f"{manifest.ref} has the roles {', '.join(manifest.inputs)}, task {name} needs {', '.join(kind.roles)}"
        )
    return kind(manifest, chosen)


def _find(name: str) -> type[Task]:
    if name in BUILT_IN:
        module, _, attribute = BUILT_IN[name].partition(":")
        return getattr(importlib.import_module(module), attribute)
    added = {entry.name: entry for entry in entry_points(group="diastole.tasks")}
    if name in added:
        return added[name].load()
    raise SpecError(f"there is no task {name!r}; there is: {', '.join([*BUILT_IN, *added])}")
