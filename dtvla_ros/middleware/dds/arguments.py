"""``--ros-args``: remapping, parameters, parameter files, the log level and the enclave."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from dtvla_ros.errors import UserError

from .names import Remap, parse_remap
from .parameter_file import Override, parse_override, read_parameter_file

_LEVELS = ('debug', 'info', 'warn', 'error', 'fatal')


@dataclass(slots=True)
class Arguments:
    """What the command line said; ``others`` are the arguments that are not ROS's."""

    remaps: list[Remap] = field(default_factory=list)
    overrides: list[Override] = field(default_factory=list)
    log_level: str = 'info'
    enclave: str = '/'
    others: list[str] = field(default_factory=list)


def parse_arguments(args: Sequence[str]) -> Arguments:
    """Read a command line; raise UserError naming the argument that is wrong."""
    result = Arguments()
    in_ros = False
    words = iter(args)
    for word in words:
        if word == '--ros-args':
            in_ros = True
        elif in_ros and word == '--':
            in_ros = False
        elif not in_ros:
            result.others.append(word)
        elif word in ('-r', '--remap'):
            result.remaps.append(parse_remap(_value(word, words)))
        elif word in ('-p', '--param'):
            result.overrides.append(parse_override(_value(word, words)))
        elif word == '--params-file':
            result.overrides.extend(read_parameter_file(_value(word, words)))
        elif word == '--log-level':
            result.log_level = _level(_value(word, words))
        elif word in ('-e', '--enclave'):
            result.enclave = _enclave(_value(word, words))
        elif word in ('--enable-rosout-logs', '--disable-rosout-logs',
                      '--enable-stdout-logs', '--disable-stdout-logs'):
            continue
        elif ':=' in word:
            result.remaps.append(parse_remap(word))
        else:
            raise UserError(f'{word!r} is no ROS argument: after --ros-args use -r from:=to, '
                            '-p name:=value, --params-file FILE or --log-level LEVEL')
    return result


def _value(option: str, words: object) -> str:
    try:
        return next(words)  # type: ignore[call-overload, no-any-return]
    except StopIteration:
        raise UserError(f'{option} needs a value after it') from None


def _level(text: str) -> str:
    level = text.rpartition(':=')[2].lower()
    level = {'warning': 'warn'}.get(level, level)
    if level not in _LEVELS:
        raise UserError(f'--log-level {text!r}: use one of {", ".join(_LEVELS)}')
    return level


def _enclave(text: str) -> str:
    if not re.fullmatch(r'/|(/[A-Za-z0-9_]+)+', text):
        raise UserError(f'--enclave {text!r}: write /letters_and_digits/...')
    return text
