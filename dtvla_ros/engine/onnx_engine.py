"""The decoder run by ONNX Runtime, from the three exported graphs; imports no torch.

Keys and values lie in buffers of the engine, on the device where the graphs run. A graph is
given the rows so far as views of them and writes its new rows right behind: nothing is copied
between passes, and a cache is only a number of rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from dtvla_ros.engine.engine import Choices, Engine, Prefix, memory_guard, penalty
from dtvla_ros.engine.providers import fallen_back, options, place
from dtvla_ros.errors import UserError
from dtvla_ros.policy.config import MASKED, DecoderConfig, visible
from dtvla_ros.policy.manifest import FLOAT_GRAPHS, GRAPHS, WEIGHTS

ROOM = 320  # rows beside the images and the action pass, at first; the buffers grow when needed
_FLOAT = 4  # bytes
_IN_MEMORY = 'add_external_initializers_from_files_in_memory'  # not in old versions
_NONE = np.zeros(0, np.int64)
_FIRST = np.zeros(1, np.int64)


class OnnxEngine(Engine):
    """Runs the vision, decoder and act graphs of one folder.

    ``provider`` 'cpu', 'cuda', 'tensorrt' or 'auto'; one that is not there is replaced by the
    CPU, with the reason logged. ``spin``: threads wait busily, which is faster and burns cores
    that others may need. ``floats``, for a CPU that multiplies no bytes: the second set of a
    quantised policy's graphs reads images, prompts and actions, and only thoughts, of which a
    word or a draft is read at a time, the first; without effect on a GPU.
    """

    name = 'onnx'

    def __init__(self, folder: Path | str, config: DecoderConfig, threads: int = 1,
                 provider: str = 'cpu', spin: bool = False, floats: bool = False):
        self.config = config
        text = config.text
        providers = place(provider)
        see, token, act = _open(Path(folder), GRAPHS, providers, threads, spin)
        if fallen_back(providers[0], token.get_providers()):
            providers = place('cpu')
            see, token, act = _open(Path(folder), GRAPHS, providers, threads, spin)
        # Where keys and values are, and it runs: that may not be what was asked for.
        self.device = 'cpu' if len(providers) == 1 else 'cuda'
        decode = token
        self.tells_log_probs = 'log_probs' in {output.name for output in token.get_outputs()}
        self._floats = floats and self.device == 'cpu'
        self.where = token.get_providers()[0]
        if self._floats:
            see, decode, act = _open(Path(folder), FLOAT_GRAPHS, providers, threads, spin)
        self._see = _Pass(see)
        # Bindings of their own, even of one session: what a token pass never changes stays bound.
        self._prefill, self._token, self._words = _Pass(decode), _Pass(token), _Pass(token)
        self._act = _Pass(act)
        self._shape = text.kv_heads * text.head_dim
        self._unseen = np.zeros((0, text.width), np.float32)
        self.suppress_tokens(np.zeros(text.vocabulary, bool))
        self._buffers: dict[str, ort.OrtValue] = {}
        self._make_room(config.image_tokens + ROOM + config.slots, 0)

    def suppress_tokens(self, banned: NDArray[np.bool_],
                        margins: Mapping[int, float] | None = None) -> None:
        self._penalty = penalty(self.config, banned, margins)

    def encode_images(self, pixel_values: NDArray[np.float32]) -> ort.OrtValue:
        """[C, 3, H, W] in -1..1 -> features [image_tokens, width]."""
        features = ort.OrtValue.ortvalue_from_shape_and_type(
            [self.config.image_tokens, self.config.text.width], np.float32, self.device, 0)
        self._see.put('pixel_values', np.ascontiguousarray(pixel_values, np.float32))
        self._see.binding.bind_ortvalue_output('features', features)
        self._see.run()
        return features

    def prefill(self, prompt_ids: Sequence[int], features: ort.OrtValue,
                thought: Sequence[int] = ()) -> tuple[Choices, Prefix]:
        if self._floats and thought:  # a draft is verified by what writes thoughts
            first, cache = self.prefill(prompt_ids, features)
            chosen, cache = self.verify(cache, thought)
            return Choices(np.concatenate([first.ids, chosen.ids]),
                           np.concatenate([first.log_probs, chosen.log_probs])), cache
        start = Prefix(0, len(prompt_ids))
        return self._choose(self._prefill, start, [*prompt_ids, *thought], features)

    def verify(self, cache: Prefix, tokens: Sequence[int]) -> tuple[Choices, Prefix]:
        return self._choose(self._token if len(tokens) == 1 else self._words, cache, tokens)

    def decode_actions(self, cache: Prefix, tokens: Sequence[int]) -> NDArray[np.float32]:
        slots = self.config.slots
        self._bind(self._act, cache, tokens, len(tokens) + slots + 2,
                   cache.count + len(tokens) - 1)
        logits = self._act.get('logits', (slots, self.config.ids.bins), np.float32)
        self._act.run()
        return logits

    def logits(self, prompt_ids: Sequence[int], features: ort.OrtValue,
               thought: Sequence[int]) -> NDArray[np.float32]:
        end = len(prompt_ids)
        if self._floats and thought:
            return np.concatenate([self.logits(prompt_ids, features, ()),
                                   self._scores(self._words, Prefix(end, end), thought)])
        return self._scores(self._prefill, Prefix(0, end), [*prompt_ids, *thought], features)

    def _choose(self, run: _Pass, cache: Prefix, tokens: Sequence[int],
                features: ort.OrtValue | None = None) -> tuple[Choices, Prefix]:
        """Run ``tokens`` behind ``cache``; return the choices and the longer prefix."""
        rows = self._read(run, cache, tokens, features)
        run.put('bin_rows', _NONE)
        chosen = run.get('choices', (rows,), np.int64)
        log_probs = (run.get('log_probs', (rows,), np.float32) if self.tells_log_probs
                     else np.full(rows, np.nan, np.float32))
        run.run()
        return Choices(chosen, log_probs), Prefix(cache.count + len(tokens), cache.prompt_end)

    def _scores(self, like: _Pass, cache: Prefix, tokens: Sequence[int],
                features: ort.OrtValue | None = None) -> NDArray[np.float32]:
        """Run ``tokens`` behind ``cache``; return the logits of all ids [rows, V]."""
        ids, run = self.config.ids, _Pass(like.session)
        rows = self._read(run, cache, tokens, features)
        run.put('bin_rows', np.arange(rows))
        above = self.config.text.vocabulary - ids.bins_last - 1
        parts = [run.get(name, (rows, width), np.float32) for name, width in (
            ('below', ids.bins_first), ('bins', ids.bins), ('above', above))]
        run.run()
        return np.concatenate(parts, 1)

    def _read(self, run: _Pass, cache: Prefix, tokens: Sequence[int],
              features: ort.OrtValue | None) -> int:
        """Bind a pass of the decoder graph; return how many rows are read.

        With ``features`` the tokens begin with a prompt, which is read from its last row on.
        """
        count = len(tokens)
        self._bind(run, cache, tokens, count)
        if features is None:
            run.put('features', self._unseen)
            run.put('image_rows', _NONE)
            run.put('rows', _FIRST if count == 1 else np.arange(count))
            return count
        image_rows = np.flatnonzero(np.asarray(tokens[:cache.prompt_end]) == self.config.ids.image)
        if len(image_rows) != features.shape()[0]:
            raise ValueError(f'{len(image_rows)} image ids in the prompt for '
                             f'{features.shape()[0]} image features')
        run.binding.bind_ortvalue_input('features', features)
        run.kept['features'] = features
        run.put('image_rows', image_rows)
        run.put('rows', np.arange(cache.prompt_end - 1, count))
        return count - cache.prompt_end + 1

    def _bind(self, run: _Pass, cache: Prefix, tokens: Sequence[int], count: int,
              action_start: int | None = None) -> None:
        """Bind ids, mask, positions, rows so far, and where new ones go (not in the act pass)."""
        start, end = cache.count, cache.count + count
        if end >= self._open_row.shape[1]:
            self._make_room(end + ROOM, start)
        mask = self._open_row[:, :end]
        if count > 1:
            seen = visible(np.arange(start, end)[:, None], np.arange(end)[None], cache.prompt_end,
                           end if action_start is None else action_start)
            mask = np.where(seen, np.float32(0), np.float32(MASKED))
        run.put('input_ids', np.asarray(tokens, np.int64))
        run.put('mask', mask)
        run.put('position_ids', np.arange(start + 1, end + 1))
        if action_start is None:
            run.put('penalty', self._penalty)
        width, bind, device = self._shape, run.binding, self.device
        for name, buffer in self._buffers.items():
            place = buffer.data_ptr()
            bind.bind_input(name, device, 0, np.float32, (start, width), place)
            if action_start is None:
                bind.bind_output(f'new_{name}', device, 0, np.float32, (count, width),
                                 place + start * width * _FLOAT)

    def _make_room(self, capacity: int, keep: int) -> None:
        """Make buffers of ``capacity`` rows; ``keep`` rows are moved there."""
        buffers = {}
        for name in past_names(self.config):
            with memory_guard():
                buffers[name] = ort.OrtValue.ortvalue_from_shape_and_type(
                    [capacity, self._shape], np.float32, self.device, 0)
            if keep:
                rows = np.zeros((capacity, self._shape), np.float32)
                rows[:keep] = self._buffers[name].numpy()[:keep]
                buffers[name].update_inplace(rows)
        self._buffers = buffers
        self._open_row = np.zeros((1, capacity + 1), np.float32)  # the mask of a row that sees all


class _Pass:
    """A session and one binding of its inputs and outputs."""

    def __init__(self, session: ort.InferenceSession):
        self.session = session
        self.binding = session.io_binding()
        self.kept: dict[str, object] = {}

    def put(self, name: str, array: NDArray) -> None:
        """Bind an input; an array bound before must not have changed since."""
        if self.kept.get(name) is not array:
            self.binding.bind_cpu_input(name, array)
            self.kept[name] = array

    def get(self, name: str, shape: tuple[int, ...], kind: type) -> NDArray:
        """Return the array that the output ``name`` is written to."""
        out: NDArray = np.empty(shape, kind)
        self.binding.bind_output(name, 'cpu', 0, kind, shape, out.__array_interface__['data'][0])
        self.kept[name] = out
        return out

    def run(self) -> None:
        with memory_guard():
            self.session.run_with_iobinding(self.binding)


def past_names(config: DecoderConfig) -> list[str]:
    """Return the graphs' names of the rows so far: keys and values [S, K], layer by layer."""
    return [f'{kind}.{i}' for i in range(config.text.layers) for kind in ('keys', 'values')]


def _open(folder: Path, graphs: Sequence[str], providers: Sequence[str], threads: int,
          spin: bool) -> list[ort.InferenceSession]:
    settings = ort.SessionOptions()
    settings.intra_op_num_threads, settings.inter_op_num_threads = threads, 1
    settings.log_severity_level = 4  # errors are raised
    settings.add_session_config_entry('session.intra_op.allow_spinning', str(int(spin)))
    weights = folder / WEIGHTS
    try:
        if hasattr(settings, _IN_MEMORY) and not all(
                _lets_read(folder / name, weights) for name in graphs):
            data = np.memmap(weights, np.uint8, 'r')  # until the sessions are made
            getattr(settings, _IN_MEMORY)([WEIGHTS], [data], [len(data)])
        # Falling back from the CPU to the CPU it would print what is raised in any case.
        return [ort.InferenceSession(str(folder / name), settings, providers=options(providers),
                                     enable_fallback=int(len(providers) > 1))
                for name in graphs]
    except Exception as error:  # the runtime's exceptions share no narrower base
        raise UserError(f'{folder}: ONNX Runtime can not load the graphs '
                        f'({str(error).splitlines()[0]}); export the policy again') from None


def _lets_read(graph: Path, weights: Path) -> bool:
    """Whether the runtime follows a graph to its weights: they are below its folder, links apart.

    A store that folders link into may have another folder for every file.
    """
    return any(weights.resolve().is_relative_to(folder)
               for folder in (graph.parent.resolve(), graph.resolve().parent))
