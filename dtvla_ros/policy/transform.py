"""Observations to pixels and prompt ids, ids to text and actions: the same object everywhere.

Training, evaluation and the node share it, so that they cannot differ.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from scipy.spatial.transform import Rotation
from tokenizers import Tokenizer

from dtvla_ros.actions import osc
from dtvla_ros.actions.codec import ActionCodec
from dtvla_ros.actions.contract import ActionContract
from dtvla_ros.actions.grid import location_word, opening_word, tilt_word
from dtvla_ros.actions.normalize import ActionStatistics
from dtvla_ros.errors import UserError
from dtvla_ros.files import read_json, write_json, written_whole
from dtvla_ros.policy.config import DecoderConfig
from dtvla_ros.policy.manifest import TOKENIZER, ImageContract, PolicyManifest
from dtvla_ros.policy.shapes import Size, require_sizes
from dtvla_ros.policy.vocabulary import UNKNOWN, load_tokenizer

ACTION = 'action.json'  # of a training run: its action contract
IMAGES = 'images.json'  # the same of its images, as far as it is not in the prompt's file
MAX_INSTRUCTION = 512  # characters; longer is a mistake or an attack, never a task


@dataclass(frozen=True, slots=True)
class Observation:
    """What is known of the world at one instant: images, joints and pose of the same stamp.

    ``images``: named uint8 RGB [H, W, 3], upright as the camera sees ('primary', 'wrist').
    ``joint_positions``: by joint name [rad, m for fingers]. ``ee_position`` [3] m and
    ``ee_quaternion`` [4] xyzw: gripper site in the robot base frame (REP 103).
    ``gripper_opening``: distance between the finger pads [m]. ``stamp`` [s].
    """

    images: Mapping[str, NDArray[np.uint8]]
    joint_positions: Mapping[str, float]
    ee_position: NDArray[np.float64]
    ee_quaternion: NDArray[np.float64]
    gripper_opening: float
    instruction: str
    stamp: float


def state_words(observation: Observation) -> str:
    """Return the gripper's position, tilt away from `osc.HOME` and opening as location words."""
    pose = np.hstack([observation.ee_position, observation.ee_quaternion,
                      observation.gripper_opening])
    if pose.shape != (8,) or not np.isfinite(pose).all() or not pose[3:7].any():
        raise UserError(f'gripper state {pose.round(3).tolist()} is no position, quaternion and '
                        'opening')
    tilt = osc.tilt(Rotation.from_quat(observation.ee_quaternion))
    return ' '.join([*map(location_word, 'xyz', observation.ee_position),
                     *map(tilt_word, 'xyz', tilt), opening_word(observation.gripper_opening)])


@dataclass(frozen=True, slots=True)
class PolicyTransform:
    """Maps observations to the network's inputs and its outputs to text and actions.

    ``state_in_prompt`` adds the gripper's state words (the released model sees none);
    ``preamble`` is the released prompt's sentence before ``Task:``. ``mirrored`` exchanges left
    and right of every image, for policies trained on such. ``contract``: what actions are.
    ``sizes``: of the cameras' images in the demonstrations, as of ``ImageContract``.
    """

    config: DecoderConfig
    tokenizer: Tokenizer
    statistics: ActionStatistics
    state_in_prompt: bool = True
    preamble: str = ''
    mirrored: bool = False
    contract: ActionContract = ActionContract()
    sizes: Mapping[str, Size] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.statistics.q01) != self.config.action_dim:
            raise UserError(f'statistics of {len(self.statistics.q01)} channels for a policy of '
                            f'{self.config.action_dim}')
        if self.contract.dim != self.config.action_dim:
            raise UserError(f'action contract of {self.contract.dim} channels for a policy of '
                            f'{self.config.action_dim}')

    @property
    def codec(self) -> ActionCodec:
        return ActionCodec(self.config.ids.bins_first, self.config.ids.bins_last)

    @property
    def _chunk_shape(self) -> tuple[int, int]:
        return self.config.chunk_steps, self.config.action_dim

    def check_instruction(self, instruction: str) -> str:
        """Return the instruction as the prompt writes it, or say why it can not be one."""
        text = instruction.replace('_', ' ').lower().strip()
        if not 0 < len(text) <= MAX_INSTRUCTION:
            raise UserError(f'instruction of {len(text)} characters; give 1 to {MAX_INSTRUCTION}')
        if not text.isprintable():
            raise UserError(f'instruction {text[:40]!r} holds control characters')
        ids = self.config.ids
        banned = {*astuple(ids), self.tokenizer.token_to_id(UNKNOWN),
                  *range(ids.bins_first, ids.bins_last)} - {ids.semicolon}
        self._encode(text, banned, f'instruction {text[:40]!r}:', 'is no word of this policy')
        return text

    def _encode(self, text: str, banned: Container[int | None], which: str, why: str) -> list[int]:
        """Return the ids of a text; raise, naming the word, where one of them is banned."""
        encoded = self.tokenizer.encode(text, add_special_tokens=False)
        for token, (begin, end) in zip(encoded.ids, encoded.offsets, strict=True):
            if token in banned:
                raise UserError(f'{which} {text[begin:end]!r} {why}')
        return encoded.ids

    def prompt_ids(self, instruction: str, observation: Observation | None = None) -> list[int]:
        """Return ``[<image>*n] <bos> [preamble] Task: ...; [state] ; newline`` as ids.

        ``observation`` is needed when the state is part of the prompt.
        """
        ids = self.config.ids
        text = f'{self.preamble}Task: {self.check_instruction(instruction)};'
        if self.state_in_prompt:
            if observation is None:
                raise UserError('this policy reads the gripper state: no observation given')
            text = f'{text} state {state_words(observation)};'
        body = self.tokenizer.encode(text, add_special_tokens=False).ids
        if self.tokenizer.token_to_id(UNKNOWN) in body:
            raise UserError(f'this policy has not all words of {text[-200:]!r}; train it again '
                            'from its data')
        if body[-1] != ids.semicolon:
            raise UserError(f'tokenizer gives {body[-1]} for the closing ";", the config says '
                            f'{ids.semicolon}; they belong to different policies')
        return [ids.image] * self.config.image_tokens + [ids.bos, *body, ids.newline]

    def pixels(self, images: Mapping[str, NDArray[np.uint8]]) -> NDArray[np.float32]:
        """Return [C, 3, H, W] in -1..1 from named uint8 RGB [H, W, 3] images."""
        if missing := [name for name in self.config.vision.cameras if name not in images]:
            raise UserError(f'camera {missing[0]!r} is missing; got {sorted(images)}')
        return np.stack([self._camera(name, images[name]) for name in self.config.vision.cameras])

    def _camera(self, name: str, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        image = self.resize(name, image, self.mirrored)
        return (image.transpose(2, 0, 1).astype(np.float32) / 255.0 - 0.5) / 0.5

    def resize(self, name: str, image: NDArray[np.uint8],
               mirror: bool = False) -> NDArray[np.uint8]:
        """Return a camera's image [H, W, 3] as large as the policy takes it, [S, S, 3]."""
        image, size = np.asarray(image), self.config.vision.image_size
        if image.dtype != np.uint8:
            what = 'NaN in ' if image.dtype.kind == 'f' and not np.isfinite(image).all() else ''
            raise UserError(f'camera {name!r}: {what}{image.dtype} image, expected uint8 RGB')
        if image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
            raise UserError(f'camera {name!r}: shape {image.shape}, expected [H, W, 3]')
        if mirror:
            image = image[:, ::-1]
        if image.shape[:2] != (size, size):
            bilinear = Image.Resampling.BILINEAR
            image = np.asarray(Image.fromarray(image).resize((size, size), bilinear))
        return image

    def encode_thought(self, text: str) -> list[int]:
        """Return the ids of a thought, tags included; a word outside the vocabulary raises.

        Names lose their underscores, so that the thought names objects as the instruction does.
        """
        ids = self.config.ids
        body = self._encode(text.replace('_', ' '), (self.tokenizer.token_to_id(UNKNOWN),),
                            'thought word', 'is not in the vocabulary')
        return [ids.think, *body, ids.think_end]

    def decode_thought(self, tokens: Sequence[int]) -> str:
        """Return a thought's text without its tags."""
        ids = self.config.ids
        tags = ids.think, ids.think_end, ids.action, ids.action_end
        return self.tokenizer.decode([int(t) for t in tokens if t not in tags],
                                     skip_special_tokens=False).strip()

    def next_token(self, thought: str, more: str) -> int:
        """Return the id with which ``more`` begins behind a thought's text, both without tags."""
        encode = self.tokenizer.encode
        ids = encode(thought + more, add_special_tokens=False).ids
        return int(ids[len(encode(thought, add_special_tokens=False).ids)])

    def encode_actions(self, actions: ArrayLike) -> NDArray[np.int64]:
        """Return ids [..., T*D], time first, of chunks [..., T, D] in the robot's units."""
        x, shape = np.asarray(actions, np.float64), self._chunk_shape
        if x.shape[-2:] != shape:
            raise UserError(f'chunk of shape {x.shape}, the policy makes {shape}')
        x = self.statistics.normalize(x)
        if (gripper := self.contract.gripper_index) is not None:
            x[..., gripper] = self.contract.switch(x[..., gripper])
        return self.codec.encode(x).reshape(*x.shape[:-2], -1)

    def decode_actions(self, tokens: ArrayLike) -> NDArray[np.float32]:
        """Return the chunk [T, D] in the robot's units of ids [T*D]."""
        x = self.statistics.unnormalize(self.codec.decode(tokens).reshape(self._chunk_shape))
        if (gripper := self.contract.gripper_index) is not None:
            x[:, gripper] = self.contract.from_switch(x[:, gripper])
        return x.astype(np.float32)


def transform_of(folder: Path, manifest: PolicyManifest) -> PolicyTransform:
    """Return a policy folder's transform; the tokenizer is hashed before it is parsed."""
    return PolicyTransform(
        manifest.config, load_tokenizer(manifest.verified(folder, TOKENIZER)),
        manifest.statistics, manifest.state_in_prompt, manifest.preamble,
        manifest.images.mirrored,
        # How often it decides is the policy's, and no part of what its actions mean.
        replace(manifest.action, replan_steps=ActionContract().replan_steps),
        manifest.images.sizes)


def write_transform(folder: Path, transform: PolicyTransform) -> None:
    """Write ``config.json``, ``tokenizer.json``; statistics, prompt, action, images likewise."""
    folder.mkdir(parents=True, exist_ok=True)
    with written_whole(folder / 'tokenizer.json') as part:
        transform.tokenizer.save(str(part))
    write_json(folder / 'statistics.json', transform.statistics.to_dict())
    write_json(folder / 'prompt.json', {
        'state_in_prompt': transform.state_in_prompt, 'preamble': transform.preamble,
        'mirrored': transform.mirrored})
    write_json(folder / ACTION, transform.contract.to_dict())
    write_json(folder / IMAGES, {'sizes': transform.sizes})
    write_json(folder / 'config.json', asdict(transform.config))  # last: now there is one


def read_transform(folder: Path) -> PolicyTransform:
    """Read what ``write_transform`` wrote. Raises ``UserError`` for another folder."""
    config, statistics, prompt = (
        read_json(folder / name, 'is this the folder of a training run?')
        for name in ('config.json', 'statistics.json', 'prompt.json'))
    decoder = DecoderConfig.from_dict(config)
    told = folder / ACTION  # runs of earlier versions have none
    contract = ActionContract.from_dict(read_json(told)) if told.exists() else ActionContract()
    images = folder / IMAGES  # nor this
    found = read_json(images) if images.exists() else {}
    try:
        sizes = ImageContract.from_dict(found).sizes
        require_sizes(sizes, decoder.vision.cameras)
    except (TypeError, UserError) as error:
        raise UserError(f'{images}: {error}; copy the run again') from None
    return PolicyTransform(
        decoder, load_tokenizer(folder / 'tokenizer.json'), ActionStatistics.from_dict(
            statistics, decoder.action_dim, contract.gripper_index),
        **prompt, contract=contract, sizes=sizes)
