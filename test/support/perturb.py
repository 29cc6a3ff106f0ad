"""A disturbance of an expert's episode: its fingers are forced open for a while."""



class ForcedOpening:
    """Opens the gripper for ``steps`` steps, once ``ripe(step)`` has held ``after`` times."""

    def __init__(self, ripe, after=1, steps=8):
        self.ripe, self.wait, self.left = ripe, after, steps

    def __call__(self, step):
        action = step.action.copy()
        if self.wait > 0:
            self.wait -= bool(self.ripe(step))
        if self.wait == 0 and self.left:
            self.left -= 1
            action[6] = -1.0
        return action
