import tomllib
from glob import glob
from importlib.metadata import PackageNotFoundError
from pathlib import Path

from vaopd.distributed.world import World
from vaopd.training.run_folder import environment

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "vaopd"
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]


def test_the_wheel_takes_every_file_of_the_package_that_is_not_python():
    patterns = SETTINGS["setuptools"]["package-data"]["vaopd"]
    taken = {
        Path(name)
        for pattern in patterns
        for name in glob(str(PACKAGE / pattern), recursive=True)
        if Path(name).is_file()
    }
    needed = {
        path for path in PACKAGE.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")
    }
    assert len(needed) > 40
    assert needed - taken == set()


def test_a_source_folder_on_the_path_without_an_installation_has_no_version(monkeypatch):
    def no_metadata(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("vaopd.versions.version", no_metadata)
    assert environment(World())["packages"]["vaopd"] is None
