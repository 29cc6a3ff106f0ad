"""Finds hf-libero, its assets and a MuJoCo that runs its tasks; imports it without a prompt."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import os
import tempfile
from importlib import metadata
from pathlib import Path
from types import ModuleType

import yaml

from dtvla_ros.errors import UserError

ENVIRONMENT = ('DTVLA_LIBERO_ASSETS', 'LIBERO_ASSETS_PATH')
PARTS = ('articulated_objects', 'scenes', 'stable_hope_objects', 'stable_scanned_objects',
         'textures', 'turbosquid_objects')
CACHE = Path('.cache', 'libero', 'assets')  # in the home folder, where hf-libero downloads to
MUJOCO = '3.3.7'
INSTALL = 'run "make libero" or see docs/libero.md'


def root() -> Path:
    """Return the folder of ``libero.libero`` without importing it.

    Raises UserError if hf-libero is not installed.
    """
    found = importlib.util.find_spec('libero')
    places = list(found.submodule_search_locations or []) if found is not None else []
    for place in places:
        if (folder := Path(place) / 'libero' / 'bddl_files').is_dir():
            return folder.parent
    raise UserError(f'hf-libero is not installed; {INSTALL}')


def check_mujoco(version: str | None = None) -> None:
    """Raise UserError for a MuJoCo on which the tasks are other tasks.

    Before 3.3 images break under NumPy 2; from 3.4 on objects jump while they settle.
    """
    version = version or metadata.version('mujoco')
    if version.split('.')[:2] != ['3', '3']:
        raise UserError(
            f'mujoco {version} breaks LIBERO tasks (before 3.3 the images, from 3.4 on the '
            f'contacts); run "pip install mujoco=={MUJOCO}"')


def find_assets(given: str | os.PathLike[str] | None = None, download: bool = False) -> Path:
    """Return the assets folder: ``given``, an environment variable, the package, the user's cache.

    ``download`` allows to fetch them from the Hugging Face Hub into the cache, which shows a
    progress bar; the environment variable ``DTVLA_LIBERO_DOWNLOAD=1`` does, too.

    Raises UserError if a place that was named holds no assets, or none do.
    """
    def missing(path: Path) -> str:
        return next((part for part in PARTS if not (path / part).is_dir()), '')

    for who, place in (('the argument', given), *((v, os.environ.get(v)) for v in ENVIRONMENT)):
        if place:
            path = Path(place).expanduser().resolve()
            if part := missing(path):
                raise UserError(f'{path} (named by {who}) holds no LIBERO assets: {part}/ is '
                                'missing; name the folder that has it')
            return path
    cache = Path.home() / CACHE
    for path in (root() / 'assets', cache):
        if not missing(path):
            return path
    if download or os.environ.get('DTVLA_LIBERO_DOWNLOAD') == '1':
        return _download(cache)
    raise UserError(
        f'no LIBERO assets in {root() / "assets"} or {cache}; set {ENVIRONMENT[0]} to the folder '
        'that has them, or DTVLA_LIBERO_DOWNLOAD=1 to fetch them from the Hugging Face Hub')


def _download(target: Path) -> Path:
    try:
        # hf-libero's own function passes an argument that huggingface_hub 1.0 dropped.
        from huggingface_hub import snapshot_download

        libero_modules()
        from libero.libero.utils.download_utils import HF_ASSETS_REPO_ID

        snapshot_download(HF_ASSETS_REPO_ID, repo_type='dataset', local_dir=target)
    except Exception as error:  # the hub's errors have no common base
        raise UserError(f'cannot fetch the assets from the Hugging Face Hub: {error}; '
                        f'set {ENVIRONMENT[0]} to a folder that has them') from error
    return find_assets(target)


def _write_config() -> None:
    """Write the configuration whose absence would make the import ask on standard input."""
    folder = Path(os.environ.get('LIBERO_CONFIG_PATH', Path.home() / '.libero'))
    if (folder / 'config.yaml').exists():
        return
    base = root()
    content = yaml.safe_dump({
        'benchmark_root': str(base), 'bddl_files': str(base / 'bddl_files'),
        'init_states': str(base / 'init_files'), 'datasets': str(base.parent / 'datasets'),
        'assets': str(base / 'assets')})
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile('w', dir=folder, delete=False) as file:
            file.write(content)
        os.replace(file.name, folder / 'config.yaml')  # whole, whoever starts beside us
    except OSError:  # a home that cannot be written to
        folder = Path(tempfile.mkdtemp(prefix='libero-'))
        (folder / 'config.yaml').write_text(content)
        os.environ['LIBERO_CONFIG_PATH'] = str(folder)


def libero_modules() -> ModuleType:
    """Import and return ``libero.libero`` in silence, whatever standard input is."""
    root()
    _write_config()
    with contextlib.redirect_stdout(io.StringIO()):
        return importlib.import_module('libero.libero')


def prepare(assets: str | os.PathLike[str] | None = None, download: bool = False) -> Path:
    """Make ``libero.libero.envs`` importable and point it at the assets; return their folder.

    Raises UserError if hf-libero, one of its own requirements or the assets are missing.
    """
    folder = find_assets(assets, download)
    libero_modules()._assets_path_cache = str(folder)  # type: ignore[attr-defined]
    try:
        importlib.import_module('libero.libero.envs')
    except ImportError as error:
        raise UserError(f'LIBERO does not load: {error}; {INSTALL}') from error
    return folder
