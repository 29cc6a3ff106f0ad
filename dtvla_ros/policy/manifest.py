"""The manifest of a policy: config, contracts and SHA-256 of every other file, read first."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dtvla_ros.actions.contract import ActionContract
from dtvla_ros.actions.normalize import ActionStatistics
from dtvla_ros.errors import UserError
from dtvla_ros.field_types import require_types
from dtvla_ros.files import read_json, unreadable, writing
from dtvla_ros.interrupt import resumable
from dtvla_ros.policy.confidence import Calibration
from dtvla_ros.policy.config import DecoderConfig
from dtvla_ros.policy.shapes import Size, require_sizes

FORMATS = (1, 2)  # of end-effector offsets, which every version reads, and of other actions
MOST_TOKENS = 10_000  # of a thought
MANIFEST = 'manifest.json'
WEIGHTS = 'model.safetensors'
INDEX = 'model.safetensors.index.json'
TOKENIZER = 'tokenizer.json'
PROOF = 'proof.safetensors'  # recorded observations, thoughts and actions
GRAPHS = ('vision.onnx', 'decoder.onnx', 'act.onnx')
# The same with quantised weights multiplied as floats, for a CPU that multiplies no bytes.
FLOAT_GRAPHS = ('vision.float.onnx', 'decoder.float.onnx', 'act.float.onnx')
ALLOWED = ('.safetensors', '.onnx', '.json')


@dataclass(frozen=True, slots=True)
class ImageContract:
    """How the cameras' images must arrive; names and order are in the config.

    ``sizes``: how large each camera's were in the demonstrations, width and height [px]; of a
    camera without one nobody knows. A camera's images must have that shape, in any resolution:
    all are scaled to the config's one square size. ``mirrored``: the policy was trained on upright
    images with left and right exchanged, as LIBERO's renders (rows bottom up) are once turned by
    180 degrees. Cameras still deliver them as they see; the transform does the exchange.
    """

    encoding: str = 'rgb8'
    upright: bool = True
    mirrored: bool = False
    sizes: Mapping[str, Size] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require_types(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ImageContract:
        """Read what `to_dict` returns, of a file. Raises TypeError for an unknown field."""
        values = dict(data)
        if isinstance(sizes := values.get('sizes'), Mapping):
            values['sizes'] = {camera: tuple(size) if isinstance(size, list) else size
                               for camera, size in sizes.items()}
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields; no ``sizes`` where none are known, as earlier versions read it."""
        return {name: value for name, value in asdict(self).items() if name != 'sizes' or value}


@dataclass(frozen=True, slots=True)
class PolicyManifest:
    """Identity, contracts and hashes of one policy folder.

    ``files`` maps names in the folder to SHA-256; nothing else in the folder is ever opened.
    ``tasks``: the instructions it was trained on, as its data spells them; empty: not known.
    ``names``: what its thoughts call things there; empty: not known.
    ``says_done``: thoughts that say so are among what it was trained on. ``done_margin``: the word
    that says so is written only where its logit leads all others by more than that [nats].
    ``success`` holds the evaluation table, ``simulator`` the versions it was measured with.
    ``weights`` other than 'fp32' are quantised: only the ONNX graphs can read them. ``proof``:
    shares of recorded thought ``tokens`` and action ``bins`` that the exported engines reached.
    ``calibration``: what makes a confidence of its tokens' probabilities; None: nobody knows.
    """

    name: str
    license: str
    config: DecoderConfig
    statistics: ActionStatistics
    files: Mapping[str, str]
    state_in_prompt: bool = True
    preamble: str = ''
    max_thought_tokens: int = 32
    action: ActionContract = field(default_factory=ActionContract)
    images: ImageContract = field(default_factory=ImageContract)
    simulator: Mapping[str, str] = field(default_factory=dict)
    success: Mapping[str, Any] = field(default_factory=dict)
    weights: str = 'fp32'
    tasks: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    says_done: bool = False
    done_margin: float = 0.0
    proof: Mapping[str, float] = field(default_factory=dict)
    calibration: Calibration | None = None

    def __post_init__(self) -> None:
        require_types(self)
        if not 0 < self.max_thought_tokens <= MOST_TOKENS:
            raise UserError(f'manifest: max_thought_tokens {self.max_thought_tokens} is not from '
                            f'1 to {MOST_TOKENS}')
        if not 0.0 <= self.done_margin < math.inf:
            raise UserError(f'manifest: done_margin {self.done_margin} is no number of nats from '
                            '0 on')
        for what, share in self.proof.items():
            if not 0.0 <= share <= 1.0:
                raise UserError(f'manifest: proof, {what}: {share} is no share from 0 to 1')
        for name in self.files:
            if Path(name).name != name:
                raise UserError(f'manifest: file {name!r} lies outside the policy folder')
            if Path(name).suffix.lower() not in ALLOWED:
                raise UserError(f'manifest: {name!r} is refused unread; a policy holds only '
                                f'{", ".join(ALLOWED)} (pickle can run code)')
        if self.action.dim != self.config.action_dim:
            raise UserError(f'manifest: action has {self.action.dim} channels, the network '
                            f'{self.config.action_dim}')
        if self.action.replan_steps > self.config.chunk_steps:
            raise UserError(f'manifest: replan_steps {self.action.replan_steps} exceeds the chunk '
                            f'of {self.config.chunk_steps}')
        try:
            require_sizes(self.images.sizes, self.config.vision.cameras)
        except UserError as error:
            raise UserError(f'manifest: images: {error}') from None

    def to_json(self) -> str:
        data = asdict(self) | {'action': self.action.to_dict(), 'images': self.images.to_dict(),
                               'statistics': self.statistics.to_dict()}
        for key in ('calibration', 'done_margin'):  # so that versions without them read it
            if not data[key]:
                del data[key]
        number = FORMATS[not self.action.is_normalised]
        return json.dumps({'format': number, **data}, indent=1) + '\n'

    @classmethod
    def read(cls, folder: Path | str) -> PolicyManifest:
        """Read a policy folder's manifest; every defect is named."""
        path = Path(folder) / MANIFEST
        if not path.exists():
            raise UserError(f'{path}: no such file; a policy is a folder with a {MANIFEST}')
        data = read_json(path)
        if 'auto_map' in data:
            raise UserError(f'{path}: asks for remote code (auto_map), which is never run')
        if data.pop('format', None) not in FORMATS:
            raise UserError(f'{path}: manifest format is none of {", ".join(map(str, FORMATS))}; '
                            'export the policy again, or install the version it was made with')
        try:
            config = DecoderConfig.from_dict(data.pop('config'))
            action = ActionContract.from_dict(data.pop('action'))
            return cls(
                config=config, action=action,
                statistics=ActionStatistics.from_dict(
                    data.pop('statistics'), config.action_dim, action.gripper_index),
                images=ImageContract.from_dict(data.pop('images')),
                tasks=sentences(data.pop('tasks', []), 'tasks'),
                names=sentences(data.pop('names', []), 'names'),
                calibration=Calibration.from_dict(fitted) if (
                    fitted := data.pop('calibration', None)) else None, **data)
        except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
            raise UserError(f'{path}: {error!r}; export the policy again') from None
        except UserError as error:
            raise UserError(f'{path}: {error}') from None

    def verified_weights(self, folder: Path) -> Path:
        """Return the weights file, or the folder of shards, after checking every hash."""
        if INDEX not in self.files:
            return self.verified(folder, WEIGHTS)
        for shard in read_index(self.verified(folder, INDEX)):
            self.verified(folder, shard)
        return folder

    def verified(self, folder: Path, name: str) -> Path:
        """Return the path of ``name`` after checking its hash; nothing is parsed before."""
        return verified(folder, self.files, name)


def verified(folder: Path, files: Mapping[str, str], name: str) -> Path:
    """Return the path of ``name`` in a folder whose manifest lists ``files`` with their SHA-256.

    Raises UserError where it is not listed, not there, or another file.
    """
    path, remedy = folder / name, 'copy the policy again'
    if name not in files:
        raise UserError(f'{folder / MANIFEST}: lists no {name}; export the policy again')
    if not os.path.lexists(path):
        raise UserError(f'{path}: missing, though the manifest lists it; {remedy}')
    try:
        digest = sha256(path)
    except OSError as error:
        raise unreadable(path, error, remedy) from None
    if digest != files[name]:
        raise unreadable(path, f'it is {digest[:12]}…', remedy,
                         'SHA-256 differs from the manifest')
    return path


def sentences(value: object, what: str) -> tuple[str, ...]:
    """Return a list of sentences from JSON; raise UserError naming ``what`` it should be."""
    if not isinstance(value, list) or not all(isinstance(t, str) and t.strip() for t in value):
        raise UserError(f'{what}: expected a list of sentences, got {value!r:.60}')
    return tuple(value)


def require_free(folder: Path) -> None:
    """Raise if a folder holds something that is no policy."""
    if folder.exists() and any(folder.iterdir()) and not (folder / MANIFEST).exists():
        raise UserError(f'{folder}: holds files but no policy; choose another folder')


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Give a folder to write a policy in; ``target`` becomes it whole, or stays as it is."""
    require_free(target)
    part = target.with_name(target.name + '.part')
    with resumable(lambda: f'interrupted; {target} is as it was'), writing(target):
        shutil.rmtree(part, ignore_errors=True)
        try:
            part.mkdir(parents=True)
            yield part
            if target.exists():
                shutil.rmtree(target)
            part.rename(target)
        finally:
            shutil.rmtree(part, ignore_errors=True)


def read_index(path: Path) -> list[str]:
    """Return the shards' names that a ``model.safetensors.index.json`` lists, sorted."""
    try:
        shards = sorted(set(read_json(path)['weight_map'].values()))
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f'{path}: not an index of shards ({error!r}); copy it again') from None
    if not shards:
        raise UserError(f'{path}: lists no shard; copy it again')
    for shard in shards:
        if not isinstance(shard, str) or Path(shard).name != shard:
            raise UserError(f'{path}: shard {shard!r} lies outside the checkpoint folder')
    return shards


def sha256(path: Path, progress: Callable[[int], object] = lambda _: None) -> str:
    """Return a file's SHA-256 in hexadecimal; ``progress`` is told the bytes of every block."""
    digest = hashlib.sha256()
    with path.open('rb') as file:
        while block := file.read(1 << 20):
            digest.update(block)
            progress(len(block))
    return digest.hexdigest()
