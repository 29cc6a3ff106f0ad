"""A policy thinks around what a person put into its thought; both engines."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.policies import observation

from dtvla_ros.correction import parse_correction
from dtvla_ros.engine.load import load_policy
from dtvla_ros.engine.policy import act_on, encode, suppressed_in_thought
from dtvla_ros.thought import EXAMPLE, Thought

NANO = Path(__file__).resolve().parents[2] / 'models/nano'


@pytest.fixture(scope='module', params=['onnx', 'torch'])
def policy(request):
    return load_policy(NANO, request.param, prove=False)[0]


@pytest.mark.parametrize(('said', 'given', 'forced'), [
    ('to the blue bin', {'blue', 'bin', 'at'}, {'object': 'blue bin'}),
    ('reach the green cube, move left', {'reach', 'green', 'cube', 'at', 'still', 'left', ''},
     {'phase': 'reach', 'object': 'green cube', 'move': ('still', 'left', 'still')}),
    ('then carry', {'carry', 'move'}, {'following': 'carry'})])
def test_the_rest_is_what_greedy_decoding_writes_behind_the_given_words(
        policy, said, given, forced):
    seen, correction = observation(3), parse_correction(said)
    policy.reset()
    decision = policy.infer(seen, None, correction)
    assert decision.forced == forced and decision.outcome == 'complete'
    thought = Thought.parse(decision.reasoning)
    assert {key: getattr(thought, key) for key in forced} == forced
    # By the decoder's scores of the whole thought at once.
    tokens = list(decision.thought_tokens)
    scores = policy.engine.logits(*encode(policy.engine, policy.transform, seen), tokens[:-1])
    scores[:, suppressed_in_thought(policy.transform)] = -np.inf
    differing = {policy.transform.decode_thought([token]) for token, chosen in zip(
        tokens[1:], scores[1:].argmax(-1), strict=True) if token != chosen}
    assert differing <= given and differing, 'only what was said is not its own'
    # A draft of any other thought changes nothing, nor does one of the same.
    policy.infer(seen)
    for _ in range(2):
        again = policy.infer(seen, None, correction)
        assert again.thought_tokens == decision.thought_tokens
        np.testing.assert_array_equal(again.action_tokens, decision.action_tokens)
    assert again.drafting.passes == 1
    own = policy.infer(seen)
    assert own.thought_tokens != decision.thought_tokens and not own.forced
    assert Thought.parse(own.reasoning).held not in (None, 'bread')
    waits = policy.infer(seen, None, parse_correction('the bread'))
    assert waits.thought_tokens == own.thought_tokens and not waits.forced


def test_the_prompt_asks_for_what_a_correction_names(policy):
    seen, told = observation(3), parse_correction('reach the green cube')
    other = 'push the green cube onto the yellow mark'
    policy.reset()
    decision = policy.infer(seen, None, replace(told, asks=other))
    policy.reset()
    asked = policy.infer(replace(seen, instruction=other), None, told)
    policy.reset()
    assert decision.thought_tokens == asked.thought_tokens
    np.testing.assert_array_equal(decision.action_tokens, asked.action_tokens)
    assert decision.certainty == asked.certainty != policy.infer(seen, None, told).certainty


def test_a_whole_sentence_is_acted_on_as_it_is_said(policy):
    seen = observation(3)
    decision = policy.infer(seen, None, parse_correction(EXAMPLE))
    given = act_on(policy.engine, policy.transform, seen, decision.thought_tokens)
    assert Thought.parse(decision.reasoning).sentence() == EXAMPLE
    np.testing.assert_array_equal(decision.action_tokens, given.action_tokens)
    assert decision.drafting.passes == 1 and len(decision.forced) == 9
