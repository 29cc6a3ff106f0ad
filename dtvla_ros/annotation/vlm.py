"""A vision-language model of transformers as provider, and with LoRA as labeller.

From a folder: safetensors only, no code of its own. As labeller the logits of the letters of a
multiple-choice question are the scores, so nothing has to be generated or parsed.
"""

from __future__ import annotations

import io
import string
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from dtvla_ros.annotation.fill import Classes, Targets
from dtvla_ros.annotation.providers import Answer, Provider
from dtvla_ros.annotation.question import Question, jpeg
from dtvla_ros.annotation.source import Source
from dtvla_ros.errors import UserError
from dtvla_ros.files import read_json
from dtvla_ros.policy.checkpoint import refuse_pickles

LETTERS = string.ascii_uppercase + string.ascii_lowercase + string.digits
PROJECTIONS = r'.*(language_model|text_model).*\.(q|k|v|o|gate|up|down)_proj'
Turns = list[tuple[str, tuple[str | bytes, ...]]]


def load_vlm(folder: Path) -> tuple[Any, Any]:
    """Return model and processor; ``UserError`` if there are none, or code or pickles."""
    if not (folder / 'config.json').is_file():
        raise UserError(f'{folder}: no config.json; give the folder of a vision-language model')
    refuse_pickles(folder)
    for path in sorted(folder.glob('*config.json')):
        if read_json(path).get('auto_map'):
            raise UserError(f'{path}: asks for remote code (auto_map), which is never run')
    from transformers import AutoModelForImageTextToText, AutoProcessor

    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    strict = {'local_files_only': True, 'trust_remote_code': False}
    try:
        processor = AutoProcessor.from_pretrained(folder, **strict)
        model = AutoModelForImageTextToText.from_pretrained(
            folder, use_safetensors=True,
            dtype=torch.bfloat16 if device == 'cuda' else torch.float32, **strict)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise UserError(f'{folder}: {str(error).splitlines()[0]}') from error
    if not getattr(processor, 'chat_template', None):
        raise UserError(f'{folder}: no chat template; give an instruction-tuned model')
    return cast(Any, model).to(device).eval(), processor


def encode(processor: Any, turns: Turns, device: Any) -> Any:
    """Return the tensors of a conversation whose next words are the assistant's."""
    messages = [{'role': role, 'content': [
        {'type': 'image', 'image': Image.open(io.BytesIO(part))} if isinstance(part, bytes)
        else {'type': 'text', 'text': part} for part in parts]} for role, parts in turns]
    return processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True,
        return_tensors='pt').to(device)


class LocalProvider(Provider):
    """Asks a model on this machine, one question at a time, with the likeliest words."""

    needs_images = True

    def __init__(self, folder: Path, max_tokens: int = 4096):
        self.model, self.processor = load_vlm(folder)
        self.name = f'local:{folder.resolve().name}'
        self._max_tokens = max_tokens

    def ask(self, question: Question) -> Answer:
        turns = [('system', (question.system_with_schema,)), *question.turns]
        inputs = encode(self.processor, turns, self.model.device)
        read = inputs['input_ids'].shape[1]
        with torch.inference_mode():
            output = self.model.generate(
                **inputs, max_new_tokens=self._max_tokens, do_sample=False)[0, read:]
        return Answer(self.processor.decode(output, skip_special_tokens=True), read, len(output))


class VlmLabeller:
    """Trains LoRA ``adapters`` of a folder's model; ``UserError`` if it or peft is not there."""

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
        tokenizer = self._processor.tokenizer
        ids = [tokenizer.encode(letter, add_special_tokens=False) for letter in LETTERS]
        self._letters = torch.tensor(
            [row[0] for row in ids if len(row) == 1 and row[0] != tokenizer.unk_token_id])

    def _prompt(self, source: Source, classes: Classes, episode: int, frame: int,
                images: Mapping[str, NDArray[np.uint8]]) -> Turns:
        motion, goal = source.motion(episode), source.goal(episode)
        moves = motion.phrase(frame, frame + max(1, round(motion.fps)))
        lines = [f'Instruction: {source.reader.task(episode)}',
                 f'Motion of the next second: {moves}',
                 'Which describes this frame? Answer with its letter.']
        for number in np.flatnonzero(classes.fits(goal)):
            label = classes.label(int(number), goal)
            letter = self._processor.tokenizer.decode([int(self._letters[number])]).strip()
            trouble = '' if label.trouble == 'none' else f', {label.trouble}'
            lines.append(f'{letter}: {label.phase} {label.object}, holding {label.holding}, '
                         f'done {label.done}{trouble}, next {label.next}')
        return [('user', (*(jpeg(image) for image in images.values()), '\n'.join(lines)))]

    def _logits(self, source: Source, episode: int, frame: int,
                images: Mapping[str, NDArray[np.uint8]]) -> Tensor:
        """Return the letters' logits [C] after the prompt."""
        turns = self._prompt(source, self._classes, episode, frame, images)
        inputs = encode(self._processor, turns, self._model.device)
        logits = self._model(**inputs, logits_to_keep=1).logits[0, -1]
        return logits[self._letters[:len(self._classes.keys)].to(logits.device)].float()

    def fit(self, source: Source, classes: Classes, targets: Targets) -> None:
        if len(classes.keys) > len(self._letters):
            raise UserError(f'{len(classes.keys)} different labels, but the tokenizer has '
                            f'{len(self._letters)} letters of one token; accept fewer kinds')
        self._classes = classes
        rows = [(k, *pair) for k, known in targets.items() for pair in known.items()]
        rng = np.random.default_rng(self._seed)
        weights = [p for p in self._model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(weights, self._rate, weight_decay=0.0)
        self._model.train()
        order = np.concatenate([rng.permutation(len(rows)) for _ in range(self._epochs)])
        with tqdm(order, desc=self.name, unit='frame', disable=None) as bar:
            for count, k in enumerate(bar, 1):
                episode, frame, number = rows[k]
                [images] = source.images(episode, [frame])
                logits = self._logits(source, episode, frame, images)
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
        views = source.images(episode, range(len(source.motion(episode))))
        with torch.inference_mode():
            rows = [self._logits(source, episode, frame, images).log_softmax(-1)
                    for frame, images in enumerate(views)]
        return torch.stack(rows).double().cpu().numpy()
