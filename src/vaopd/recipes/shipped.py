"""The recipes that ship, and the file that a name or a path means."""

from difflib import get_close_matches
from pathlib import Path

from vaopd.errors import ConfigError, did_you_mean

FOLDER = Path(__file__).parent


def shipped_recipes() -> dict[str, Path]:
    """Return the files of all shipped recipes by name, in alphabetical order."""
    return {path.stem: path for path in sorted(FOLDER.glob("*.yaml"))}


def summary(path: Path) -> str:
    """Return the first comment line of a recipe, which says what the recipe is for."""
    with path.open(encoding="utf-8") as lines:
        return lines.readline().removeprefix("#").strip()


def find_recipe(recipe: str | Path, beside: Path = Path()) -> Path:
    """Return the file of a shipped recipe's name, or of a path relative to ``beside``.

    A name is not a path: ``quickstart`` ships, ``./quickstart`` and ``quickstart.yaml`` are
    files of the user.

    Raises:
        ConfigError: There is neither; suggests the shipped recipe with the nearest name.
    """
    shipped = shipped_recipes().get(str(recipe))
    if shipped is not None:
        return shipped
    path = beside / recipe
    if not path.is_file():
        raise ConfigError(f"recipe {path} does not exist{_remedy(path)}")
    return path


def copy_recipe(name: str, destination: Path) -> Path:
    """Return the copy of a shipped recipe: the destination, or the file of that name in it.

    Raises:
        ConfigError: No such recipe ships, the file exists, or the destination is neither a folder
            that exists nor a YAML file.
    """
    source = shipped_recipes().get(name)
    if source is None:
        raise ConfigError(f"no recipe {name!r} ships{_remedy(Path(name))}")
    target = destination / source.name if destination.is_dir() else destination
    if target.suffix not in (".yaml", ".yml"):
        raise ConfigError(
            f"destination {destination} is neither a folder that exists nor a .yaml file; make the "
            "folder or add .yaml"
        )
    try:
        with target.open("xb") as copy:
            copy.write(source.read_bytes())
    except FileExistsError:
        raise ConfigError(f"{target} exists; choose another file or remove it") from None
    return target


def _remedy(path: Path) -> str:
    """Return the end of a sentence about a recipe that does not ship and is not a file."""
    nearest = get_close_matches(path.stem, shipped_recipes(), n=1)
    if nearest:
        return f"; did you mean the shipped recipe {nearest[0]}?"
    return did_you_mean(path) or "; `vaopd recipes` lists those that ship"
