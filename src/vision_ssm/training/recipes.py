"""Recipes by name or by file. They travel inside the package, so an installed wheel has them."""

from __future__ import annotations

from pathlib import Path

from vision_ssm.errors import ConfigError, suggestion

__all__ = ["find_recipe", "list_recipes"]

FOLDER = Path(__file__).resolve().parent.parent / "recipes"


def list_recipes() -> dict[str, Path]:
    """Names of the recipes that come with the package, and their files."""
    return {path.stem: path for path in sorted(FOLDER.glob("*.yaml"))}


def find_recipe(recipe: str | Path) -> Path:
    """The file of a recipe, given its name or a path.

    Raises ConfigError when it is neither, naming the nearest recipe.
    """
    path = Path(recipe)
    if path.suffix in {".yaml", ".yml"} or path.is_file():
        if path.is_file():
            return path
        raise ConfigError(f"{path}: no such recipe file.")
    known = list_recipes()
    if str(recipe) in known:
        return known[str(recipe)]
    near = suggestion(str(recipe), known)
    raise ConfigError(f"no recipe is called {str(recipe)!r}.{near} Recipes: {', '.join(known)}.")
