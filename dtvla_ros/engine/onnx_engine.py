"""The decoder run by ONNX Runtime, from the three exported graphs; imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from dtvla_ros.errors import UserError
from dtvla_ros.policy.config import DecoderConfig
from dtvla_ros.policy.manifest import GRAPHS
from dtvla_ros.policy.visibility import new_rows_mask


@dataclass(frozen=True, slots=True)
class _Rows:
    """Keys and values [layers, 1, kv_heads, S, head_dim] kept by the runtime."""

    features: ort.OrtValue
    keys: ort.OrtValue
    values: ort.OrtValue
    prompt_end: int

    @property
    def count(self) -> int:
        return self.keys.shape()[3]


class OnnxEngine:
    """Runs vision, decoder and act graphs of one folder; keys and values stay in the runtime."""

    name = 'onnx'

    def __init__(self, folder: Path | str, config: DecoderConfig, threads: int = 1):
        self.config = config
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # Spinning threads would burn the cores that the simulator and the gate need.
        options.add_session_config_entry('session.intra_op.allow_spinning', '0')
        try:
            self._see, self._decode, self._act = (
                ort.InferenceSession(str(Path(folder) / name), options,
                                     providers=['CPUExecutionProvider']) for name in GRAPHS)
        except Exception as error:  # the runtime's exceptions share no narrower base
            raise UserError(f'{folder}: ONNX Runtime can not load the graphs '
                            f'({str(error).splitlines()[0]}); export the policy again') from None
        text = config.text
        self._empty = np.zeros((text.layers, 1, text.kv_heads, 0, text.head_dim), np.float32)

    def see(self, pixel_values: NDArray[np.float32]) -> ort.OrtValue:
        """[C, 3, H, W] in -1..1 -> features [1, image_tokens, width]."""
        feed = {'pixel_values': _value(pixel_values[None])}
        return self._see.run_with_ort_values(['features'], feed)[0]

    def prefill(self, prompt_ids: Sequence[int], features: ort.OrtValue,
                thought: Sequence[int] = ()) -> tuple[NDArray[np.float32], _Rows]:
        """Run prompt and thought; return logits [1 + len(thought), V] and the cache."""
        past = _value(self._empty)
        return self._rows(_Rows(features, past, past, len(prompt_ids)), [*prompt_ids, *thought],
                          len(prompt_ids) - 1)

    def think(self, cache: _Rows, tokens: Sequence[int]) -> tuple[NDArray[np.float32], _Rows]:
        """Append thought tokens; return logits [len(tokens), V] and the cache."""
        return self._rows(cache, tokens, 0)

    def act(self, cache: _Rows, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Run ``tokens`` (the last is ``<action>``), slots and tail; logits [T*D, bins]."""
        start = cache.count
        feed = self._feed(cache, tokens, len(tokens) + self.config.slots + 2,
                          start + len(tokens) - 1)
        return self._act.run_with_ort_values(['logits'], feed)[0].numpy()[0]

    def _rows(self, cache: _Rows, tokens: Sequence[int],
              first_read: int) -> tuple[NDArray[np.float32], _Rows]:
        feed = self._feed(cache, tokens, len(tokens), None)
        feed['features'] = cache.features
        feed['rows'] = _value(np.arange(first_read, len(tokens)))
        logits, keys, values = self._decode.run_with_ort_values(
            ['logits', 'keys', 'values'], feed)
        return logits.numpy()[0], _Rows(cache.features, keys, values, cache.prompt_end)

    @staticmethod
    def _feed(cache: _Rows, tokens: Sequence[int], count: int,
              action_start: int | None) -> dict[str, ort.OrtValue]:
        start = cache.count
        return {
            'input_ids': _value(np.asarray([tokens], np.int64)),
            'mask': _value(new_rows_mask(start, count, cache.prompt_end, action_start)),
            'position_ids': _value(np.arange(start + 1, start + count + 1)[None]),
            'past_keys': cache.keys, 'past_values': cache.values,
        }


def _value(array: NDArray) -> ort.OrtValue:
    return ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))
