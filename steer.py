"""Steer the robot inside the model, live, in a browser.

It prints an address. Who opens it first steers, others watch. docs/steer.md has the keys.
"""

import asyncio
import contextlib
import shlex
import signal
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import cli
import options
import server
import session
import visualize
from dataset import PackedDataset, open_for, read_strip
from models import SVG
from training.checkpoint import load_model
from utils import UserError, autocast, choose_machine, count_frames, make_folder, run_command, write_json
from what_if import require_source


def get_parser():
    parser = cli.Parser(__doc__)
    add = parser.group("what")
    add("--model_path --ckpt", "pretrained/svg_lp.pt", "a checkpoint, RUN/best.pt")
    add("--data_root --DR", None, "data set (default: the one the model was trained on)")
    add("--split", "test", "train, validate or test")
    add("--clip", 0, "the clip to begin with", cli.natural)
    horizon = "steps in which generate.py gives the same frames (default: as many as the shortest clip has)"
    add("--n_future", None, horizon, cli.count)
    add("--n_samples", 3, "futures side by side", int, choices=server.FUTURES)
    add("--seed", 1, "of the noise, and of simulated scenes", cli.natural)
    add("--sim", False, "start from simulated scenes, with the simulator beside the model", action="store_true")
    add("--rate", 10, "steps a second", cli.number(float, 0.1, 1000))
    add("--video", "gif", "the form of recordings", choices=("gif", "mp4"))
    add("--log_dir --save_root", "results/steer", "folder of the recordings")
    add = parser.group("network")
    add("--host", "127.0.0.1", "address to listen at; 0.0.0.0 lets other computers in")
    add("--port", 8000, "port to listen at; 0: any free one", cli.number(int, 0, 65535))
    options.add_machine(parser.group("machine"), workers=False)
    return parser


def open_clips(args, model, trained):
    """The clips to start from, as windows that are as long as all of them allow, or as --n_future says."""
    opened = partial(open_for, model, trained, args.split, args.data_root)
    if args.n_future or trained["cond"] == "none":
        return opened(args.n_future)
    clips = opened(1)
    return opened(min(length(clips, k) for k in range(len(clips))) - model.n_past)


def length(clips, k):
    """The number of frames of clip k, after which its tables may go on."""
    if isinstance(clips, PackedDataset):
        return int(clips.lengths[k])
    strip = read_strip(clips.clips[k])
    return count_frames(clips.clips[k]) if strip is None else len(strip)


def record(args, recording):
    """Write a session.Recording into a new folder; returns a line for the page that says where."""
    log, out = recording.log, Path(args.log_dir)
    if not log:
        return "nothing to record yet"
    folder = next(f for f in (out / f"recording_{k}" for k in range(10**9)) if not f.exists())
    session.save(folder, recording, args.video)
    seed, n_samples, _ = log[0].noise
    # generate.py has neither simulated scenes nor plans without actions.
    command = ["python", "generate.py", "--actions", str(folder / "actions.csv"), "--model_path", args.model_path]
    command += ["--data_root", args.data_root] if args.data_root else []
    given = dict(split=args.split, n_future=recording.horizon, n_samples=n_samples, n_show=recording.clip + 1, seed=seed)
    given |= dict(device=args.device, precision=args.precision, log_dir=folder / "replay")
    command += [word for name, value in given.items() for word in (f"--{name}", str(value))]
    found = dict(clip=recording.scene.name, steps=len(log), replayed=recording.replayed)
    found |= {"command": shlex.join(command)} if recording.replayed else {}
    write_json(folder / "steer.json", found)
    return f"wrote {folder}: {len(log)} steps, of which generate.py replays {recording.replayed}"


def main():
    args = get_parser().parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    if server.web is None:
        raise UserError("aiohttp is missing: pip install -r requirements-steer.txt")
    if args.video == "mp4":
        visualize.require_mp4()
    device, precision = choose_machine(args)
    model, trained = load_model(args.model_path, device)
    if not isinstance(model, SVG):
        raise UserError(f"--model_path {args.model_path}: no SVG; give a checkpoint of train_learned_prior.py or train_fixed_prior.py")
    if trained["cond"] != "none":
        require_source(model)
    data = open_clips(args, model, trained)
    make_folder(args.log_dir)
    if args.sim:
        from scripts.data import gl, simulator

        gl.choose_gl()
    inside = contextlib.ExitStack()

    def begin():
        inside.enter_context(autocast(device, precision))
        inside.enter_context(model.predicting())
        scenes = inside.enter_context(contextlib.closing(simulator.Simulator())) if args.sim else None
        return session.Session(model, data, trained["cond"], args.n_samples, args.seed, args.clip, scenes)

    # One thread computes, from here to the end: autocast, no_grad and the simulator's renderer are a thread's own.
    with ThreadPoolExecutor(1) as worker:
        try:
            steered = worker.submit(begin).result()
            clock = server.Server(steered, worker, args.rate, partial(record, args))
            asyncio.run(server.serve(clock, args.host, args.port))
        finally:
            worker.submit(inside.close).result()


if __name__ == "__main__":
    run_command(main)
