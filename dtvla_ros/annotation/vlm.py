"""A vision-language model of transformers from a folder: safetensors only, no code of its own."""

from __future__ import annotations

import io
import json
import threading
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image

from dtvla_ros.annotation.providers import Answer
from dtvla_ros.annotation.question import Question
from dtvla_ros.errors import UserError
from dtvla_ros.policy.released import read_json, refuse_pickles

Turns = list[tuple[str, tuple[str | bytes, ...]]]


def load_vlm(folder: Path) -> tuple[Any, Any]:
    """Return a folder's model, on a GPU where there is one, and its processor.

    Raises ``UserError`` when it is no such folder, or asks for code or pickles.
    """
    if not (folder / 'config.json').is_file():
        raise UserError(f'{folder}: no folder with a config.json; give the folder of a downloaded '
                        'vision-language model')
    refuse_pickles(folder)
    for path in sorted(folder.glob('*.json')):
        if path.name.endswith('config.json') and read_json(path).get('auto_map'):
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
        raise UserError(f'{folder}: its processor has no chat template; give an instruction-tuned '
                        'model')
    return cast(Any, model).to(device).eval(), processor


def encode(processor: Any, turns: Turns, device: Any) -> Any:
    """Return the tensors of a conversation whose next words are the assistant's."""
    messages = []
    for role, parts in turns:
        content: list[dict[str, Any]] = []
        for part in parts:
            if isinstance(part, bytes):
                content.append({'type': 'image', 'image': Image.open(io.BytesIO(part))})
            else:
                content.append({'type': 'text', 'text': part})
        messages.append({'role': role, 'content': content})
    return processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True,
        return_tensors='pt').to(device)


class LocalProvider:
    """Asks a model on this machine, one question at a time, with the likeliest words."""

    looks = True
    parallel = 1

    def __init__(self, folder: Path, max_tokens: int = 4096):
        self.model, self.processor = load_vlm(folder)
        self.name = f'local:{folder.resolve().name}'
        self._max_tokens = max_tokens
        self._lock = threading.Lock()

    def ask(self, question: Question) -> Answer:
        system = (f'{question.system}\nThe JSON schema of the answer:\n'
                  f'{json.dumps(question.schema)}')
        inputs = encode(self.processor, [('system', (system,)), *question.turns],
                        self.model.device)
        read = inputs['input_ids'].shape[1]
        with self._lock, torch.inference_mode():
            output = self.model.generate(
                **inputs, max_new_tokens=self._max_tokens, do_sample=False)[0, read:]
        return Answer(self.processor.decode(output, skip_special_tokens=True), read, len(output))
