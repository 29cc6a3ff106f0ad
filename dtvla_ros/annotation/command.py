"""``dtvla annotate label``: from options to a provider, a budget and a printed result."""

from __future__ import annotations

import os
import threading
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from dtvla_ros.annotation.budget import Ledger, Prices
from dtvla_ros.annotation.keyframes import read_keyframes
from dtvla_ros.annotation.label import LABELS, LabelOptions, estimate, label
from dtvla_ros.annotation.providers import Provider, ReplayProvider, RuleProvider
from dtvla_ros.annotation.source import Source
from dtvla_ros.errors import UserError

LEDGER = 'ledger.jsonl'
PROVIDERS = ('rules', 'http', 'local', 'replay')


@dataclass(frozen=True, slots=True)
class LabelCommand:
    """The options of ``dtvla annotate label``, named as there."""

    folder: Path
    labels: Path | None
    provider: str
    url: str
    model: str
    key_env: str
    answers: Path | None
    response_format: str
    concurrency: int
    timeout: float
    tries: int
    max_tokens: int
    window: int
    corrections: int
    estimate: bool
    price_in: float
    price_out: float
    picture_tokens: int
    max_requests: int | None
    max_cost: float | None
    episodes: int | None

    @property
    def path(self) -> Path:
        """Where the labels go."""
        path = self.labels or self.folder / LABELS
        if path.parent.resolve() != self.folder.resolve():
            raise UserError(f'--labels {path}: must lie in {self.folder}, beside the answers')
        return path

    @property
    def prices(self) -> Prices:
        """What tokens cost."""
        return Prices(self.price_in, self.price_out, self.picture_tokens)


def run_label(source: Source, command: LabelCommand) -> None:
    """Label, or tell what it would take; print the outcome.

    Raises ``UserError`` when an option does not fit, an answer could not be had or the budget is
    reached; what is labelled by then is kept.
    """
    keyframes = read_keyframes(command.folder, source)
    # Rules do not change their mind.
    corrections = 0 if command.provider == 'rules' else command.corrections
    options = LabelOptions(command.window, corrections)
    if command.estimate:
        guess = estimate(source, keyframes, command.path, options, command.prices,
                         command.episodes)
        print(f'{guess.episodes} episodes to label: {guess.requests} requests with '
              f'{guess.pictures} pictures, about {guess.tokens_read} tokens read and '
              f'{guess.tokens_written} written, cost about {guess.cost:.2f}; nothing was asked')
        print(f'with every answer sent back {corrections} times: about '
              f'{(1 + corrections) * guess.requests} requests')
        return
    with ExitStack() as stack:
        stop = threading.Event()
        ledger = None
        if command.provider == 'http':
            ledger = Ledger(command.folder / LEDGER, command.prices, command.max_requests,
                            command.max_cost)
            stack.callback(ledger.close)
        try:
            told = label(source, keyframes, command.path,
                         _provider(command, ledger, stop, stack), options, command.episodes, stop)
        finally:
            if ledger is not None:
                print(f'sent in all: {ledger.requests} requests, cost {ledger.cost:.4f}')
    findings = ', '.join(f'{count} {kind}' for kind, count in sorted(told.findings.items()))
    print(f'{command.path}: {told.keyframes} key frames of {told.episodes} episodes; '
          f'{told.answered} answers, {told.cached} from the cache; findings: '
          f'{findings or "none"}')
    if told.failed:
        first = min(told.failed)
        raise UserError(f'{len(told.failed)} episodes have no usable answer (episode {first}: '
                        f'{told.failed[first]}); repeat the command to ask anew')


def _provider(command: LabelCommand, ledger: Ledger | None, stop: threading.Event,
              stack: ExitStack) -> Provider:
    if command.provider == 'rules':
        return RuleProvider()
    if command.provider == 'replay':
        if command.answers is None:
            raise UserError('--provider replay needs --answers, the answers.jsonl of a run')
        return ReplayProvider(command.answers)
    if command.provider not in PROVIDERS:
        raise UserError(f'--provider {command.provider!r}; there is: {", ".join(PROVIDERS)}')
    if not command.model:
        raise UserError(f'--provider {command.provider} needs --model')
    if command.provider == 'local':
        from dtvla_ros.annotation.vlm import LocalProvider

        return LocalProvider(Path(command.model), command.max_tokens)
    from dtvla_ros.annotation.http_provider import HttpOptions, HttpProvider

    assert ledger is not None
    provider = HttpProvider(
        HttpOptions(
            url=command.url, model=command.model, timeout=command.timeout, tries=command.tries,
            max_tokens=command.max_tokens, response_format=command.response_format,
            parallel=command.concurrency),
        os.environ.get(command.key_env), ledger, stop)
    stack.callback(provider.close)
    return provider
