"""What the demo's terminal shows."""

from io import StringIO

from rich.console import Console

from dtvla_ros.demo.display import Screen
from dtvla_ros.ros.graph import Seen


def test_a_refusal_is_said_once_with_its_reason():
    out = StringIO()
    screen, seen = Screen(Console(file=out, width=200)), Seen()
    screen.update(seen)
    seen.refusals, seen.rejected = 2, ('stack red', 'it is no task; nearest: "stack"')
    screen.update(seen)
    screen.update(seen)
    seen.refusals = 0  # of a policy node that was started again
    screen.update(seen)
    seen.refusals, seen.rejected = 1, ('fly', 'no')
    screen.update(seen)
    assert out.getvalue().splitlines() == [
        'you said: stack red -> refused: it is no task; nearest: "stack"',
        'you said: fly -> refused: no']
