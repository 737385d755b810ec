"""The tasks that come with diastole, and those that installed packages add (entry points `diastole.tasks`)."""

import importlib
from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Any

from pydantic import ValidationError

from ...jobs.task import Options, Task
from ...lake.errors import ModelError, SpecError
from ...lake.models import Manifest, first_problem

BUILT_IN = {
    "classify": "diastole.workers.tasks.classify:Classify",
    "segment": "diastole.workers.tasks.segment:Segment",
    "events": "diastole.workers.tasks.events:Events",
    "sequence": "diastole.workers.tasks.sequence:SequenceClasses",
    "residues": "diastole.workers.tasks.residues:Residues",
}


def make_task(manifest: Manifest, name: str | None = None, options: Mapping[str, Any] | None = None) -> Task:
    """The task of a job: the package's options overlaid with the job's.

    Raises SpecError for a task that is not there, an unknown option, a value that cannot be meant, or one that only the
    package may set; ModelError where the package has not what the task needs.
    """
    name = name or manifest.task
    kind = _find(name)
    chosen = _options(kind, name, manifest, options or {})
    if tuple(manifest.inputs) != kind.roles:
        raise SpecError(
            f"{manifest.ref} has the roles {', '.join(manifest.inputs)}, task {name} needs {', '.join(kind.roles)}"
        )
    task = kind(manifest, chosen)
    missing = [one for one in dict.fromkeys([*task.steps, *task.tables]) if one not in manifest.files]
    if missing:
        raise ModelError(
            f"{manifest.ref}: its options name {', '.join(missing)}, its files are {', '.join(manifest.files)}; "
            "name what is in files of model.yaml"
        )
    return task


def _options(kind: type[Task], name: str, manifest: Manifest, said: Mapping[str, Any]) -> Options:
    """The package's options overlaid with what the job said. A job may repeat what only the package may set."""
    fixed = kind.options_type.of_the_model
    try:
        chosen = kind.options_type.model_validate({**manifest.options, **said})
        free = {key: value for key, value in said.items() if key not in fixed}
        own = kind.options_type.model_validate({**manifest.options, **free})
    except ValidationError as error:
        known = ", ".join(kind.options_type.model_fields)
        raise SpecError(f"options of task {name}: {first_problem(error)}; known options: {known}") from None
    replaced = sorted(key for key in fixed if getattr(chosen, key) != getattr(own, key))
    if replaced:
        raise SpecError(
            f"options of task {name}: {', '.join(replaced)} belong to the networks of {manifest.ref}, a job cannot change "
            f"them; it may set {', '.join(sorted(set(kind.options_type.model_fields) - fixed))}"
        )
    return chosen


def _find(name: str) -> type[Task]:
    if name in BUILT_IN:
        module, _, attribute = BUILT_IN[name].partition(":")
        return getattr(importlib.import_module(module), attribute)
    added = {entry.name: entry for entry in entry_points(group="diastole.tasks")}
    if name in added:
        return added[name].load()
    raise SpecError(f"there is no task {name!r}; there is: {', '.join([*BUILT_IN, *added])}")
