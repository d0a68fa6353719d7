"""How MuJoCo draws on a machine without a screen."""

import importlib.util
import os
import subprocess
import sys

from utils import UserError


def choose_gl():
    """Set MUJOCO_GL, unless it is set, to the first way to draw without a screen that works."""
    if importlib.util.find_spec("mujoco") is None:
        raise UserError("mujoco is missing: pip install -r scripts/data/requirements-sim.txt")
    choices = ["egl", "osmesa"] if sys.platform.startswith("linux") else [""]
    choices = [os.environ["MUJOCO_GL"]] if "MUJOCO_GL" in os.environ else choices
    test = "import mujoco as m; m.Renderer(m.MjModel.from_xml_string('<mujoco/>')).render()"
    for choice in choices:
        os.environ["MUJOCO_GL"] = choice
        # A process of its own: once tried, a backend cannot be exchanged for another.
        if subprocess.run([sys.executable, "-c", test], capture_output=True).returncode == 0:
            return
    tried = ", ".join(choices) or "the default"
    raise UserError(f"no OpenGL without a screen (tried {tried}): apt-get install libegl1 or libosmesa6")
