"""Measure steer.py in a headless browser: frames a second, the way from key to picture, and memory.

    pip install playwright                                     # and Chromium: playwright's, or the system's
    python -m scripts.measure.steer                            # as one steers, 3 futures
    python -m scripts.measure.steer --rate 1000 --steps 36000  # as many steps as an hour has, fast forward
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from argparse import RawDescriptionHelpFormatter
from pathlib import Path

import cli
from utils import UserError, run_command

KEYS = ("ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown", "q", "e", "z", "x")


def resident(pid):
    """The memory that a process holds, MiB."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def launch(running):
    """A headless Chromium of a started playwright: the system's, or playwright's own."""
    system = shutil.which("chromium") or shutil.which("google-chrome")
    return running.chromium.launch(executable_path=system, args=["--no-sandbox"])


def wait(page, condition, seconds=120):
    """Until a condition holds; playwright's own wait_for_function needs `eval`, which the page forbids."""
    end = time.monotonic() + seconds
    while not page.evaluate(condition):
        if time.monotonic() > end:
            raise UserError(f"the page has not come to {condition} in {seconds} s; is steer.py still running?")
        time.sleep(0.05)


def drive(page, pid, steps, reset_every):
    """Press random keys for so many steps, from new clips now and then; yields a row (step, frames/s, latency, MiB) at times."""
    rng, done, shown, at = random.Random(0), 0, 0, 0
    while done + at < steps:
        key = rng.choice(KEYS)
        page.keyboard.down(key)
        time.sleep(rng.uniform(0.2, 0.6))
        page.keyboard.up(key)
        time.sleep(rng.uniform(0.05, 0.3))  # keys do not fall in step with the clock
        at = page.evaluate("Math.max(0, view.t)")
        if done + at >= shown:
            shown += max(1, steps // 10)
            yield done + at, page.inner_text("#fps"), page.inner_text("#ms"), page.inner_text("#latency"), resident(pid)
        if at > reset_every:
            page.keyboard.press("n")
            wait(page, "view.t <= 0")
            done, at = done + at, 0


def main():
    parser = cli.Parser(__doc__, RawDescriptionHelpFormatter)
    add = parser.group("measure")
    add("--steps", 600, "steps to take", cli.count)
    add("--reset_every", 200, "steps after which the next clip comes", cli.count)
    args, passed_on = parser.parse_known_args()
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        raise UserError("playwright is missing: pip install playwright") from None
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "steer.py", "--port", "0", "--log_dir", folder, *passed_on]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            line = process.stdout.readline()
            if not line.startswith("open "):
                raise UserError("steer.py did not start")
            with sync_playwright() as running:
                page = launch(running).new_page()
                page.goto(line.split()[1])
                wait(page, "view && view.t === 0")
                print(f"{'step':>6}  {'frames/s':>8}  {'a step':>9}  {'key to picture':>26}  {'MiB':>6}")
                for step, fps, step_ms, latency, mib in drive(page, process.pid, args.steps, args.reset_every):
                    print(f"{step:6}  {fps:>8}  {step_ms:>9}  {latency:>26}  {mib:6.0f}", flush=True)
        finally:
            process.send_signal(signal.SIGINT)
            process.wait()


if __name__ == "__main__":
    run_command(main)
