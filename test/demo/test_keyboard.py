"""Keys of a real terminal, which is as before afterwards."""

from __future__ import annotations

import re
import signal
import subprocess
import sys

import pytest
from support.beside import fresh_domain, wait_for
from support.graph import Graph
from support.terminal import terminal

from dtvla_ros.ros import qos

LISTEN = """
import sys, time
from dtvla_ros.demo.keyboard import Keyboard
with Keyboard(lambda key: print('key', ascii(key), flush=True)) as keyboard:
    print('ready', keyboard.present, flush=True)
    {then}
"""
STOP = """
import os
from rclpy.node import Node
from dtvla_ros.demo.keyboard import STOP_KEYS, Keyboard
from dtvla_ros.ros.estop import EStop
from dtvla_ros.ros.run import joined
with joined(lambda: Node('person')) as (node, executor):
    estop = EStop(node)
    with Keyboard(lambda key: estop.press(STOP_KEYS[key]) if key in STOP_KEYS else None):
        print('ready', flush=True)
        while True:
            executor.spin_once(timeout_sec=0.1)
"""


def listening(then: str = 'time.sleep(60)'):
    return terminal('-c', LISTEN.format(then=then))


def test_keys_come_one_by_one_without_enter_or_echo():
    with listening() as shown:
        shown.wait('ready True')
        assert shown.modes != shown.before
        for typed, keys in (('a ', ["'a'", "' '"]), ('\x1b', ["'\\x1b'"]),
                            ('\x1b[A\x1bOP\x1b[1;5C', ["'\\x1b[A'", "'\\x1bOP'", "'\\x1b[1;5C'"]),
                            ('\u00e9', ["'\\xe9'"])):
            before = len(shown.shown)
            shown.press(typed)
            wait_for(lambda before=before, keys=keys: re.findall(
                r'^key (.*)$', shown.shown[before:], re.MULTILINE) == keys)


@pytest.mark.parametrize('then, keys, code', [
    ('pass', '', 0), ('raise RuntimeError', '', 1), ('time.sleep(60)', '\x03', -signal.SIGINT)],
    ids=['end', 'crash', 'ctrl-c'])
def test_the_terminal_is_as_before(then, keys, code):
    with listening(then) as shown:
        shown.wait('ready True') if keys else None
        shown.press(keys)
        assert shown.process.wait(20) == code
        assert shown.modes == shown.before


def test_no_terminal_no_keys():
    done = subprocess.run([sys.executable, '-c', LISTEN.format(then='pass')], input='a ',
                          capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ('ready False\n', '')


@pytest.mark.parametrize('key', [' ', '\x1b'])
def test_a_stop_key_presses_the_e_stop_and_no_other_does(tmp_path, monkeypatch, key):
    from std_msgs.msg import Bool
    monkeypatch.setenv('ROS_DOMAIN_ID', fresh_domain())
    graph = Graph(tmp_path)
    try:
        graph.listen()
        graph.hear('estop', Bool, '/estop', qos.LATCHED)
        with terminal('-c', STOP) as shown:
            shown.wait('ready')
            graph.spin(lambda: graph.node.count_publishers('/estop'), 20, 'the person')
            shown.press('c\x1b[A')
            graph.wait(0.2)
            assert not graph.of('estop')
            shown.press(key)
            graph.spin(lambda: graph.of('estop'), 10, 'the e-stop')
            assert graph.last('estop').data
    finally:
        graph.close()
