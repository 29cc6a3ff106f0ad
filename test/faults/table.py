"""The fault table: what is injected, what must happen, and within which time at the output.

R refuse; H hold, resumes by itself; S stop and end the task; F end it and latch. T is one control
tick of 50 ms.
"""

from __future__ import annotations

from dataclasses import dataclass

T = 0.05


@dataclass(frozen=True, slots=True)
class Row:
    """``bound`` [s], None where none is a time; ``words`` say it then."""

    fault: str
    reaction: str
    bound: float | None
    words: str = ''

    @property
    def limit(self) -> str:
        """Return the bound for reading."""
        return self.words or (f'{1e3 * self.bound:.0f} ms' if self.bound is not None else '')


ROWS: dict[int, Row] = {
    1: Row('one camera stops', 'H; S after 5 s', 0.25),
    2: Row('frozen pixels, fresh stamps, arm moving', 'H', 0.6),
    3: Row('stamps frozen or repeated', 'H', 0.25),
    4: Row('camera skew beyond the limit', 'no inference; H when the chunk ends', 0.5, '1 chunk'),
    5: Row('joint states stale', 'H', 0.15),
    6: Row('NaN in joints or pose', 'sample dropped, then as 5', 0.15),
    7: Row('NaN in a 32FC1 image, all-black image', 'frame rejected, then as 1', 0.25),
    8: Row('bad encoding, bad step, truncated JPEG', 'rejected, diagnostics, no crash', 0.25),
    9: Row('resolution changes in mid-run', 'resized; H if the shape changed', 0.25),
    10: Row('joint names missing; shuffled', 'R; correct result', None, 'activate'),
    11: Row('pose or TF missing; old', 'R at start; H', 0.15),
    12: Row('NaN or Inf in an action', 'chunk dropped; S after 2', T, 'T'),
    13: Row('wrong chunk shape or channel names', 'S', T, 'T'),
    14: Row('actions × 10', 'clamped; F after 5 in a row', T, 'T'),
    15: Row('target outside the box', 'rejected, H', T, 'T'),
    16: Row('inference overruns', 'H when the queue is empty; S at the deadline', T, 'T'),
    17: Row('reasoning never ends', 'cut at its cap, then S or act as configured', T,
            'deadline + T'),
    18: Row('out of memory in the policy', 'S, released, DEGRADED; gate alive', 0.1),
    19: Row('policy process SIGKILLed', 'S', 0.15),
    20: Row('gate SIGKILLed in motion', 'sink stays ≤ 0.05 m away; policy S', 0.2),
    21: Row('policy SIGSTOPped 10 s, then resumed', 'S; stale chunk discarded', 0.15),
    22: Row('wall clock jumps ±10 s', 'chunks void, H', T, 'T'),
    23: Row('use_sim_time differs between nodes', 'R with the reason', None, 'activate'),
    24: Row('/clock pauses', 'H, no drift', 0.2, '0.15 s + T'),
    25: Row('model file truncated, or its hash differs', 'R before deserialising', None,
            'configure'),
    26: Row('pickle weights, auto_map remote code', 'R; none of it ever runs', None,
            'configure'),
    27: Row('statistics missing, q01 = q99, wrong size', 'R', None, 'configure'),
    28: Row('empty, 10 kB or control-character instruction', 'rejected, reason published', 0.1),
    29: Row('instruction outside the allow-list', 'rejected', 0.1),
    30: Row('second start; stop before the first motion', 'rejected; honoured', 0.1),
    31: Row('a second publisher on the command topic', 'F, nothing published any more', 1.0),
    32: Row('controller halted', 'H, no wind-up; new base on resume', 0.1),
    33: Row('e-stop during inference', 'S, chunk in flight discarded, F', T, 'T'),
    34: Row('gripper stuck; nobody receives its commands', 'stall is a grasp; else S', 2.0),
    35: Row('parameter out of range; limit while running', 'set refused, old value kept', None,
            'call'),
    36: Row('1 kHz × 1 MB image flood', 'newest frame only; gate jitter < 10 ms; memory flat',
            0.01, '10 ms jitter'),
    37: Row('deactivate or Ctrl-C in motion', 'policy stops first, then stop commands', 0.5),
    38: Row('discovery lost and back', 'H; no resume with an old chunk', 0.25),
    39: Row('disk full while recording', 'recording stops, control unaffected', None, '–'),
}
