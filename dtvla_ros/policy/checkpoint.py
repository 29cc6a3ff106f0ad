"""Weights in and out: safetensors only, every Hugging Face layout of the released model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dtvla_ros.errors import UserError
from dtvla_ros.files import unreadable
from dtvla_ros.policy.config import DecoderConfig
from dtvla_ros.policy.manifest import INDEX, WEIGHTS, read_index
from dtvla_ros.policy.model import HybridDecoder

HEADS = ('lm_head.weight', 'language_model.lm_head.weight', 'model.lm_head.weight')
EMBEDDING = 'embed_tokens.weight'
# What training leaves behind beside the weights: never opened, and nothing to worry about.
BOOKKEEPING = ('training_args.bin', 'optimizer', 'scheduler', 'scaler', 'rng_state')
PICKLES = ('.pt', '.pth', '.bin', '.pkl', '.pickle', '.ckpt', '.joblib', '.npy', '.npz')
# Old layout: vision_tower.vision_model.*, language_model.model.*; transformers 4.52 and later
# put "model." in front and drop the inner names one by one.
_RENAMES = tuple((re.compile(r'^(?:model\.)?' + theirs), ours) for theirs, ours in (
    (r'vision_tower\.(?:vision_model\.)?', 'vision.tower.'),
    (r'multi_modal_projector\.linear\.', 'vision.projector.'),
    (r'language_model\.(?:model\.)?', '')))


def our_name(name: str) -> str:
    """Return this package's name of a Hugging Face parameter (ours stay as they are)."""
    return next((pattern.sub(ours, name) for pattern, ours in _RENAMES if pattern.match(name)),
                name)


def refuse_pickle(path: Path) -> None:
    """Raise unless ``path`` is a safetensors file by name; nothing of it is read."""
    if path.suffix.lower() != '.safetensors':
        what = ('pickle-like weights are refused unread; convert them to safetensors first'
                if path.suffix.lower() in PICKLES else 'weights must be a .safetensors file')
        raise UserError(f'{path}: {what}')


def refuse_pickles(folder: Path) -> None:
    """Raise if a folder holds pickled weights: none is read, so something may be missing."""
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in PICKLES and not path.name.startswith(BOOKKEEPING):
            raise UserError(
                f'{path}: pickle-like weights are refused unread; save its tensors as '
                f'{path.stem}.safetensors on a machine that may run its code, and move it away')


def weight_files(path: Path) -> list[Path]:
    """Return the safetensors files of one file or of a checkpoint folder; all exist."""
    files = [path / WEIGHTS if path.is_dir() else path]
    missing = 'no such weights file'
    if (path / INDEX).exists():
        files = [path / shard for shard in read_index(path / INDEX)]
        missing = f'missing, though {INDEX} lists it; download it again'
    for file in files:
        refuse_pickle(file)
        if not file.is_file():
            raise UserError(f'{file}: {missing}')
    return files


class Stored(NamedTuple):
    """A tensor as a safetensors header describes it: its file, name there, shape and type."""

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: str

    def read(self) -> Tensor:
        """Return the tensor; its memory is the file's own pages until it is copied."""
        with safe_open(self.file, 'pt') as file:
            return file.get_tensor(self.name)


def read_headers(path: Path) -> dict[str, Stored]:
    """Return every tensor's description by its stored name; no tensor is read."""
    stored = {}
    for file in weight_files(path):
        try:
            with safe_open(file, 'pt') as opened:
                for name in opened.keys():  # noqa: SIM118 - no mapping, it only has this method
                    part = opened.get_slice(name)
                    stored[name] = Stored(file, name, tuple(part.get_shape()), part.get_dtype())
        except (SafetensorError, OSError) as error:
            raise unreadable(file, error, what='not a whole safetensors file') from None
    return stored


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read one safetensors file, or all shards of a checkpoint folder."""
    return {name: stored.read() for name, stored in read_headers(path).items()}


class Fit(NamedTuple):
    """How stored weights fit a model.

    ``found`` maps our names to what is stored; ``head`` is the tied head where it is stored.
    ``wrong_shape`` gives (our name, stored shape, the config's shape).
    """

    found: Mapping[str, Stored]
    head: Stored | None
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    wrong_shape: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]

    def problems(self) -> list[str]:
        wrong = [f'{name}: {stored}, the config says {wanted}'
                 for name, stored, wanted in self.wrong_shape]
        return [f'{len(names)} weights {what}, first {names[0]}' for what, names in (
            ('missing', self.missing), ('unknown', self.unexpected), ('of a wrong shape', wrong))
            if names]

    def check(self, path: Path) -> None:
        """Raise unless every name and shape fits."""
        for problem in self.problems():
            raise UserError(f'{path}: {problem}; does config.json belong to these weights?')


def fit(stored: Mapping[str, Stored], model: HybridDecoder) -> Fit:
    """Compare stored weights of any layout with what ``model`` holds."""
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found: dict[str, Stored] = {}
    unexpected = []
    for name, tensor in stored.items():
        if (ours := our_name(name)) in wanted and ours not in found:
            found[ours] = tensor
        elif name not in HEADS:
            unexpected.append(ours)
    return Fit(
        found, next((stored[name] for name in HEADS if name in stored), None),
        tuple(sorted(wanted.keys() - found.keys())), tuple(sorted(unexpected)),
        tuple((name, tensor.shape, wanted[name]) for name, tensor in sorted(found.items())
              if tensor.shape != wanted[name]))


def load_weights(model: HybridDecoder, path: Path | str) -> None:
    """Copy weights of any layout into ``model``; every name and shape must fit.

    A stored language-model head is accepted only if it equals the embedding it is tied to.
    """
    state = model.state_dict()
    for name, stored in _fitting(model, Path(path)).items():
        state[name].copy_(stored.read())


def load_model(config: DecoderConfig, path: Path | str, device: str = 'cpu',
               dtype: torch.dtype | None = None) -> HybridDecoder:
    """Return a model with weights of any layout, never two copies of them in memory.

    ``dtype`` None: float32 on the CPU, elsewhere the type the embedding is stored in.
    """
    model = empty_model(config)
    found = _fitting(model, Path(path))
    dtype = dtype or (torch.float32 if device == 'cpu' else found[EMBEDDING].read().dtype)
    # A copy always: pages of a file would change when somebody writes to it.
    state = {name: stored.read().to(device, dtype, copy=True) for name, stored in found.items()}
    model.load_state_dict(state, assign=True)
    return model.to(device)  # the buffers, in their own types


def empty_model(config: DecoderConfig) -> HybridDecoder:
    """Return a model whose parameters lie on the meta device and whose buffers are real."""
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):
        return HybridDecoder(config)


def _fitting(model: HybridDecoder, path: Path) -> Mapping[str, Stored]:
    weights = fit(read_headers(path), model)
    weights.check(path)
    if weights.head and not torch.equal(weights.head.read(), weights.found[EMBEDDING].read()):
        raise UserError(f'{path}: the head differs from the embedding it should be tied to')
    return weights.found


def save_weights(model: HybridDecoder, path: Path | str) -> None:
    """Write ``model`` as safetensors under this package's names, in one step."""
    save_tensors(model.state_dict(), Path(path))


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write one safetensors file in one step."""
    refuse_pickle(path)
    part = path.with_name(path.name + '.part')
    save_file({name: t.contiguous() for name, t in tensors.items()}, part, {'format': 'pt'})
    part.chmod(0o644)  # the library makes it private
    part.replace(path)
