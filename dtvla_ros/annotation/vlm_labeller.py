"""A vision-language model as labeller: LoRA, and one forward pass per frame.

The classes are lettered options of a multiple-choice question; the logits of the letters after
the prompt are the scores, so nothing has to be generated or parsed.
"""

from __future__ import annotations

import string
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from dtvla_ros.annotation.classes import Classes
from dtvla_ros.annotation.labeller import Targets
from dtvla_ros.annotation.motion import phrase
from dtvla_ros.annotation.question import jpeg
from dtvla_ros.annotation.source import Source
from dtvla_ros.annotation.vlm import Turns, encode, load_vlm
from dtvla_ros.errors import UserError

LETTERS = string.ascii_uppercase + string.ascii_lowercase + string.digits
PROJECTIONS = r'.*(language_model|text_model).*\.(q|k|v|o|gate|up|down)_proj'


class VlmLabeller:
    """Fine-tunes adapters of the model in ``folder``; they are saved in ``adapters``.

    Raises ``UserError`` when it is no such model, or peft is not installed.
    """

    def __init__(self, folder: Path, adapters: Path, epochs: int = 2, rank: int = 16,
                 learning_rate: float = 1e-4, batch: int = 8, seed: int = 0):
        try:
            from peft import LoraConfig, get_peft_model
        except ModuleNotFoundError as error:
            raise UserError('--labeller vlm needs peft: pip install peft') from error
        model, self._processor = load_vlm(folder)
        self.name = f'vlm:{folder.resolve().name}'
        torch.manual_seed(seed)
        self._model: Any = get_peft_model(model, LoraConfig(
            r=rank, lora_alpha=2 * rank, target_modules=PROJECTIONS))
        self._adapters, self._epochs, self._rate = adapters, epochs, learning_rate
        self._batch, self._seed = batch, seed
        self._letters = torch.tensor(self._letter_ids())

    def _letter_ids(self) -> list[int]:
        tokenizer = self._processor.tokenizer
        found = []
        for letter in LETTERS:
            ids = tokenizer.encode(letter, add_special_tokens=False)
            if len(ids) == 1 and ids[0] != tokenizer.unk_token_id:
                found.append(ids[0])
        return found

    def _prompt(self, source: Source, classes: Classes, episode: int, frame: int,
                images: Mapping[str, NDArray[np.uint8]]) -> Turns:
        motion, goal = source.motion(episode), source.goal(episode)
        fits = classes.fits(goal)
        lines = [f'Instruction: {source.instruction(episode)}',
                 f'Motion of the next second: '
                 f'{phrase(motion, frame, frame + max(1, round(motion.fps)))}',
                 'Which describes this frame? Answer with its letter.']
        for number in np.flatnonzero(fits):
            label = classes.label(int(number), goal)
            trouble = '' if label.trouble == 'none' else f', {label.trouble}'
            lines.append(
                f'{self._processor.tokenizer.decode([int(self._letters[number])]).strip()}: '
                f'{label.phase} {label.object}, holding {label.holding}, done {label.done}'
                f'{trouble}, next {label.next}')
        return [('user', (*(jpeg(image) for image in images.values()), '\n'.join(lines)))]

    def _logits(self, turns: Turns, classes: int) -> Tensor:
        """Return the letters' logits [C] after the prompt."""
        inputs = encode(self._processor, turns, self._model.device)
        logits = self._model(**inputs, logits_to_keep=1).logits[0, -1]
        return logits[self._letters[:classes].to(logits.device)].float()

    def fit(self, source: Source, classes: Classes, targets: Targets) -> None:
        if len(classes) > len(self._letters):
            raise UserError(f'{len(classes)} different labels, but the tokenizer has '
                            f'{len(self._letters)} letters of one token; accept fewer kinds')
        self._classes = classes
        rows = [(k, frame, number) for k, known in targets.items()
                for frame, number in known.items()]
        rng = np.random.default_rng(self._seed)
        weights = [p for p in self._model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(weights, self._rate, weight_decay=0.0)
        self._model.train()
        order = np.concatenate([rng.permutation(len(rows)) for _ in range(self._epochs)])
        with tqdm(order, desc=self.name, unit='frame', disable=None) as bar:
            for count, k in enumerate(bar, 1):
                episode, frame, number = rows[k]
                logits = self._logits(
                    self._prompt(source, classes, episode, frame,
                                 source.pictures(episode, [frame])[0]), len(classes))
                loss = cross_entropy(logits[None], torch.tensor([number], device=logits.device))
                (loss / self._batch).backward()
                if count % self._batch == 0 or count == len(order):
                    torch.nn.utils.clip_grad_norm_(weights, 1.0)
                    optimizer.step()
                    optimizer.zero_grad()
                    bar.set_postfix(loss=f'{loss.item():.3f}', refresh=False)
        self._model.eval()
        self._model.save_pretrained(self._adapters)

    def scores(self, source: Source, episode: int) -> NDArray[np.float64]:
        seen = source.pictures(episode, range(len(source.motion(episode))))
        with torch.inference_mode():
            rows = [self._logits(self._prompt(source, self._classes, episode, frame, images),
                                 len(self._classes)).log_softmax(-1)
                    for frame, images in enumerate(seen)]
        return torch.stack(rows).double().cpu().numpy()
