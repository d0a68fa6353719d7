"""steer.py: a session equals `predict`, what it undoes and records, and the server before real WebSocket clients."""

import asyncio
import contextlib
import importlib.util
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT, run
from PIL import Image
from test_generate import grid_rows

import generate
import metrics
import session
import what_if
from dataset import open_split
from models import SVG
from scripts.data.pack_dataset import pack

aiohttp = pytest.importorskip("aiohttp")
server = pytest.importorskip("server")
steer = pytest.importorskip("steer")


def build(data, **options):
    """A tiny model that heeds its inputs: as it is made, it hardly does."""
    torch.manual_seed(0)
    sizes = dict(width=4, g_dim=8, z_dim=6, rnn_size=8) | options
    model = SVG(data.cond_dim, **sizes).eval()
    model.set_cond_stats(*data.cond_stats())
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.kaiming_normal_(parameter)
    return model


@pytest.fixture
def clips(tiny_data):
    return open_split(tiny_data, "test", 8)


def begun(data, model=None, **kwargs):
    """A session at its last given frame."""
    found = session.Session(model or build(data), data, data.cond, **kwargs)
    while found.moment.t < 0:
        found.step()
    return found


def steps(found, actions):
    """The frames (T, N, C, H, W) under some actions."""
    frames = []
    for action in actions:
        found.step(action)
        frames.append(found.moment.futures)
    return torch.stack(frames)


# The session.


@pytest.mark.parametrize("n_futures", [1, 3])
@pytest.mark.parametrize("cond", ["action+position", "action", "position", "none"])
def test_a_session_is_predict(tiny_data, cond, n_futures):
    """Bit for bit, with noise of an odd size, modulated convolutions and moving skips."""
    data = open_split(tiny_data, "test", 8, cond)
    extensions = {} if cond == "none" else {"cond_conv": "encoder", "align": True, "last_frame_skip": True}
    model = build(data, **extensions)
    with model.predicting():
        found = begun(data, model, n_futures=n_futures, seed=5, clip=2)
        if cond == "none":
            frames = steps(found, [()] * 6)
            past = session.to_float(data[2][0][None])[:, :2]
            expected = model.predict(past, torch.zeros(1, 8, 0), 6, n_futures, metrics.noise_generators(5, [2]))[:, 0]
        else:
            plan = torch.randn(6, 4)
            frames = steps(found, plan)
            videos = what_if.imagine(model, data, cond, [2], {"plan": plan}, 5, n_futures)
            names = ["plan"] if n_futures == 1 else [f"plan {k}" for k in range(1, n_futures + 1)]
            expected = torch.stack([videos[name][0, 2:] for name in names])
    assert torch.equal(frames.transpose(0, 1), expected)
    assert n_futures == 1 or (frames[:, 0] != frames[:, 1]).any()


def test_undone_steps_are_the_same_when_done_again(clips):
    """Over the end of the horizon too, after which noise and positions go on; as far back as is kept."""
    found = begun(clips, n_futures=3)
    actions = torch.randn(45, 4)
    with found.model.predicting():
        frames = steps(found, actions)
        found.undo()
        assert found.moment.t == 35 and len(found.log) == 35 and torch.equal(found.moment.futures, frames[34])
        assert torch.equal(steps(found, actions[35:]), frames[35:])
        for _ in range(4):
            found.undo()
        assert found.moment.t == 15 and not found.history
        assert torch.equal(steps(found, actions[15:]), frames[15:])
    assert not torch.equal(found.noise(3)[0], found.noise(10)[0]) and len(found.chart) <= session.CHART


def test_the_prior_mean_and_other_z(clips):
    found = begun(clips, n_futures=3)
    with found.model.predicting():
        same = steps(found, torch.zeros(4, 4))
        found.undo()
        found.redraw()
        assert not torch.equal(steps(found, torch.zeros(4, 4)), same) and found.seed == 2
        found.start(0)
        found.mean = True
        futures = steps(found, torch.zeros(5, 4))
    torch.testing.assert_close(futures, futures[:, :1].expand_as(futures), atol=1e-5, rtol=0)
    assert (same - same[:, :1]).abs().max() > 1e-3


@pytest.mark.parametrize("options", [{}, {"last_frame_skip": True}, {"prior": "fixed"}])
def test_futures_branch_off(clips, options):
    """Those that are there go on, others begin as copies; back to fewer keeps the first."""
    found = begun(clips, build(clips, **options), n_futures=3)
    found.mean = True
    with found.model.predicting():
        steps(found, torch.ones(2, 4))
        before = found.moment
        steps(found, torch.ones(1, 4))
        expected = found.moment.futures
        found.moment = before
        for n, rows in ((6, [0, 1, 2, 0, 1, 2]), (1, [0])):
            found.branch(n)
            assert torch.equal(found.moment.futures, before.futures[rows])
            steps(found, torch.ones(1, 4))
            torch.testing.assert_close(found.moment.futures, expected[rows], atol=1e-5, rtol=0)
            found.undo()
            found.moment, found.n_futures = before, 3


def replay(folder, monkeypatch):
    """Run the command of a recording in this process."""
    command = shlex.split(json.loads((folder / "steer.json").read_text())["command"])[1:]
    monkeypatch.setattr("sys.argv", [str(word) for word in command])
    generate.main()


@pytest.mark.slow
def test_a_recording_replays(tiny_data, clips, tmp_path, monkeypatch):
    """generate.py --actions gives the recorded pictures, pixel for pixel; what it cannot give is not promised."""
    model = build(clips)
    trained = {"data_root": str(tiny_data), "cond": clips.cond, "n_future": 4}
    torch.save({"model": model.config, "state_dict": model.state_dict(), "args": trained}, tmp_path / "a.pt")
    flags = ["--model_path", str(tmp_path / "a.pt"), "--log_dir", str(tmp_path), "--precision", "fp32"]
    args = steer.get_parser().parse_args(flags)
    data = steer.open_clips(args, model, trained)
    assert data.n_frames == 8
    found = begun(data, model, n_futures=3, seed=7, clip=1)
    with model.predicting():
        assert steer.record(args, found.recording()) == "nothing to record yet"
        steps(found, torch.randn(4, 4))
        assert "recording_0: 4 steps, of which generate.py replays 4" in steer.record(args, found.recording())
        replay(tmp_path / "recording_0", monkeypatch)
        rows = grid_rows(tmp_path / "recording_0/replay/what_if_1.png", 7, 8)[4:, 2:6]
        for t, step in enumerate(found.log):
            for k in range(3):
                assert (rows[k, t] * 255 == step.pictures[f"future {k + 1}"]).all(), (t, k)
        found.redraw()
        found.branch(1)
        steps(found, torch.randn(9, 4))
        assert "13 steps, of which generate.py replays 4" in steer.record(args, found.recording())
    names = {"steer.gif", "actions.csv", "steer.json"}
    assert {path.name for path in (tmp_path / "recording_1").iterdir()} == names
    assert len(np.loadtxt(tmp_path / "recording_1/actions.csv", delimiter=",")) == 13


@pytest.mark.slow
def test_beside_the_simulator(tmp_path):
    """The truth takes the same actions, and is undone too."""
    if importlib.util.find_spec("mujoco") is None:  # not imported here: choose_gl must come first
        pytest.skip("mujoco is not installed")
    from scripts.data import gl, simulator

    gl.choose_gl()
    data = open_split(ROOT / "data/pushing_sample", "test", 12)
    simulated = simulator.Simulator()
    found = begun(data, simulator=simulated, n_futures=1)
    fresh, start, push = found.scene.past[0, 0], simulated.hand.copy(), torch.tensor([0.02, 0.0, 0.0, 0.1])
    push = push * (1 if start[0] < 0 else -1)
    with found.model.predicting():
        steps(found, push.repeat(3, 1))
        truth, score = found.moment.truth, found.chart[-1][1]
        np.testing.assert_allclose(simulated.hand[0] - start[0], 3 * push[0], atol=1e-6)
        np.testing.assert_allclose(found.moment.position, simulated.hand[:3], atol=1e-4)
        assert (found.pictures()["simulator"] == truth).all() and len(score) == 2
        found.undo()
        np.testing.assert_array_equal(simulated.hand, start)
        steps(found, push.repeat(3, 1))
        assert (found.moment.truth == truth).all() and found.chart[-1][1] == score
        found.start(found.clip + 1)
        assert (found.scene.past[0, 0] != fresh).any()
        found.start(found.clip - 1)
        assert (found.scene.past[0, 0] == fresh).all() and found.recording().replayed == 0
    simulated.close()


@pytest.mark.slow
def test_memory_does_not_grow(clips):
    """Once the log is full: what is kept of the past is bounded."""
    resident = lambda: int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    if not os.path.exists("/proc/self/statm"):
        pytest.skip("counts pages as Linux does")
    found = begun(clips, n_futures=3)
    with found.model.predicting():
        for n_steps in (400, 1000):
            before = resident()
            for _ in range(n_steps):
                found.step(torch.randn(4))
                found.view()
    assert resident() - before < 5
    assert len(found.log) == session.LOGGED and len(found.history) == session.KEPT


# The server.


@contextlib.asynccontextmanager
async def served(data, rate=100, record=lambda recording: "saved"):
    """A running server over a tiny model, and a function that opens a WebSocket to it."""
    model = build(data)
    inside = contextlib.ExitStack()
    with ThreadPoolExecutor(1) as worker:
        worker.submit(inside.enter_context, model.predicting()).result()
        one = server.Server(worker.submit(begun, data, model, n_futures=3).result(), worker, rate, record)
        runner = server.web.AppRunner(one.app(), shutdown_timeout=1)
        await runner.setup()
        await server.web.TCPSite(runner, "127.0.0.1", 0).start()
        one.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        ticking = asyncio.create_task(one.tick())
        async with aiohttp.ClientSession() as client:

            async def connect(token=one.token, origin=one.url, **kwargs):
                return await client.ws_connect(f"{one.url}/socket?token={token}", origin=origin, **kwargs)

            one.client = client
            try:
                yield one, connect
            finally:
                ticking.cancel()
                await runner.cleanup()
                worker.submit(inside.close).result()


async def see(socket, drawn=True):
    """The next view: its header and pictures {label: (H, W, 3)}; None where the connection is closed."""
    message = await socket.receive(timeout=20)
    if message.type != aiohttp.WSMsgType.BINARY:
        return None
    if drawn:
        await socket.send_json({"type": "drawn"})
    length = int.from_bytes(message.data[:4], "little")
    header = json.loads(message.data[4 : 4 + length])
    pixels = np.frombuffer(message.data[4 + length :], np.uint8).reshape(len(header["labels"]), *header["size"], 3)
    return SimpleNamespace(**header, pictures=dict(zip(header["labels"], pixels)))


async def until(socket, holds):
    """The first view for which something holds."""
    for _ in range(500):
        if holds(view := await see(socket)):
            return view
    raise AssertionError("it never came")


def serving(scenario):
    """Run an async test in a loop of its own."""

    def test(clips):
        asyncio.run(asyncio.wait_for(scenario(clips), 60))

    test.__name__, test.__doc__ = scenario.__name__, scenario.__doc__
    return test


def push(*direction, key=1):
    return {"type": "steer", "direction": direction, "key": key}


@serving
async def test_one_steers_and_others_watch(clips):
    async with served(clips) as (one, connect):
        first, second = await connect(), await connect()
        view = await until(first, lambda view: view.viewers == 2)
        assert view.steers and view.t == 0 and not view.running and not (await see(second)).steers
        expected = metrics.to_uint8(one.session.scene.past[0, -1])
        assert (view.pictures["future 3"] == expected).all() and list(view.pictures)[-1] == "spread"
        await second.send_json(push(1, 0, 0, 0))
        await second.send_json({"type": "undo"})
        await first.send_json(push(0, -0.5, 0, 0, key=9))
        view = await until(second, lambda view: view.t >= 4)
        assert view.actions[-1] == [0, -0.5, 0, 0] and view.key == 9 and view.running and not view.steers
        await first.close()
        view = await until(second, lambda view: view.steers)
        later = await until(second, lambda later: later.t >= view.t + 3)
        assert later.actions[-1] == [0, 0, 0, 0], "nobody holds the key of who left"
        await second.send_json({"type": "speed", "factor": 2})
        await second.send_json(push(1, 0, 0, 0))
        await until(second, lambda view: view.actions[-1] == [2, 0, 0, 0])


@serving
async def test_what_one_does(clips):
    """Every message but those of the test above, and a tap that is shorter than a tick."""
    async with served(clips, rate=5) as (one, connect):
        socket = await connect()
        say = socket.send_json
        await say(push(1, 0, 0, 0))
        await say(push(0, 0, 0, 0, key=2))
        view = await until(socket, lambda view: view.t >= 3)
        assert [action[0] for action in view.actions][:3] == [1, 0, 0]
        await say({"type": "pause"})
        view = await until(socket, lambda view: not view.running)
        t = one.session.moment.t
        await say({"type": "step"})
        await until(socket, lambda view: view.t == t + 1)
        await say({"type": "futures", "number": 6})
        await until(socket, lambda view: view.futures == 6 and "future 6" in view.pictures)
        await say({"type": "redraw"})
        await until(socket, lambda view: view.seed == 2)
        await say({"type": "mean"})
        await until(socket, lambda view: view.mean)
        await say({"type": "record"})
        await until(socket, lambda view: view.note == "saved")
        await say({"type": "undo"})
        await until(socket, lambda view: view.t == 0)
        await say({"type": "next"})
        await until(socket, lambda view: view.clip.endswith("/1") and view.t == -1)
        await until(socket, lambda view: view.t == 0)
        await say({"type": "step"})
        await until(socket, lambda view: view.t == 1)
        await say({"type": "reset"})
        await until(socket, lambda view: view.t <= 0 and view.clip.endswith("/1"))


@serving
async def test_a_slow_page_drops_views(clips):
    """It has two on their way, and then the newest; who is faster sees them all."""
    async with served(clips) as (one, connect):
        fast, slow = await connect(), await connect()
        assert (await see(slow, drawn=False)).t == 0
        await fast.send_json(push(1, 0, 0, 0))
        late = await see(slow, drawn=False)
        seen = [view.t for view in [await see(fast) for _ in range(20)]]
        assert seen == sorted(seen) and seen[-1] > late.t + 5
        with pytest.raises(asyncio.TimeoutError):
            await slow.receive(timeout=0.3)
        await slow.send_json({"type": "drawn"})
        assert (await see(slow, drawn=False)).t >= seen[-1], "the newest, not the next"


@serving
async def test_who_is_refused(clips):
    async with served(clips) as (one, connect):
        for kwargs in ({"token": "x" * len(one.token)}, {"token": ""}, {"token": "%C3%A9"}, {"origin": "http://evil.example"}, {"origin": None}):
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                await connect(**kwargs)
            assert refused.value.status == 403, kwargs
        for path, status in (("/", 403), (f"/?token={one.token}", 200), ("/steer.py", 404), ("/../steer.py", 404)):
            async with one.client.get(one.url + path) as answer:
                assert answer.status == status and one.token not in await answer.text()
                assert status != 200 or "default-src 'none'" in answer.headers["Content-Security-Policy"]
        assert not one.viewers
        sockets = [await connect() for _ in range(server.MOST_VIEWERS)]
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await connect()
        assert refused.value.status == 503
        await sockets[0].close()
        await connect()


BAD = {
    "x": "not JSON",
    "[" * 1000: "not JSON",
    "[]": "unknown type",
    '{"type": ["steer"]}': "unknown type",
    '{"type": "shutdown"}': "unknown type",
    '{"type": "undo", "steps": 3}': "undo takes nothing",
    '{"type": "steer", "direction": [0, 0, 0, 0]}': "steer takes direction, key",
    '{"type": "steer", "direction": [0, 0, 0], "key": 1}': "steer: bad direction",
    '{"type": "steer", "direction": [0, 0, 0, 1.1], "key": 1}': "steer: bad direction",
    '{"type": "steer", "direction": [0, 0, 0, NaN], "key": 1}': "steer: bad direction",
    '{"type": "steer", "direction": [0, 0, 0, true], "key": 1}': "steer: bad direction",
    '{"type": "steer", "direction": "0000", "key": 1}': "steer: bad direction",
    '{"type": "steer", "direction": [0, 0, 0, 0], "key": -1}': "steer: bad key",
    '{"type": "speed", "factor": 1e999}': "speed: bad factor",
    '{"type": "futures", "number": 2}': "futures: bad number",
    '{"type": "futures", "number": true}': "futures: bad number",
}


@serving
async def test_what_is_not_understood_ends_the_connection(clips):
    """With a reason; the others go on."""
    async with served(clips) as (one, connect):
        watching = await connect()
        await see(watching)
        for text, reason in BAD.items():
            socket = await connect()
            await socket.send_str(text)
            code, said = await ending(socket)
            assert code == 1008 and reason in said, text
        for send, expected in ((lambda s: s.send_bytes(b"{}"), 1008), (lambda s: s.send_str(" " * 2000), 1009)):
            socket = await connect()
            await send(socket)
            assert (await ending(socket))[0] == expected
        assert (await until(watching, lambda view: view.viewers == 1)).steers


async def ending(socket):
    """The code and the reason with which the server closes, after the views that are on their way."""
    while (message := await socket.receive(timeout=20)).type == aiohttp.WSMsgType.BINARY:
        pass
    assert message.type == aiohttp.WSMsgType.CLOSE
    return message.data, message.extra


@pytest.mark.parametrize("silent", [False, True])
def test_a_page_that_dies(clips, monkeypatch, silent):
    """Its connection breaks, or it answers no more: the next one steers, and the key that it held is let go."""
    monkeypatch.setattr(server, "HEARTBEAT", 0.3)

    @serving
    async def scenario(clips):
        async with served(clips) as (one, connect):
            dying, other = await connect(autoping=False), await connect()
            await dying.send_json(push(1, 0, 0, 0))
            await until(other, lambda view: view.t > 0 and view.actions[-1][0] == 1)
            if not silent:
                dying._response.connection.transport.abort()
            await until(other, lambda view: view.steers and view.viewers == 1 and view.actions[-1][0] == 0)

    scenario(clips)


@serving
async def test_a_long_step_blocks_nobody(clips):
    """While the model computes, pages come and are shown where it stands."""
    async with served(clips) as (one, connect):
        first = await connect()
        one.session.step = lambda action: time.sleep(1)
        await first.send_json({"type": "step"})
        began = time.monotonic()
        await asyncio.sleep(0.1)
        assert (await see(await connect())).t == 0 and time.monotonic() - began < 0.8


@serving
async def test_a_clip_that_cannot_be_read(clips):
    """Says so on the page, and goes on where it was."""
    async with served(clips) as (one, connect):
        socket = await connect()

        def fail(clip):
            raise server.UserError("no such clip")

        one.session.start = fail
        await socket.send_json({"type": "next"})
        view = await until(socket, lambda view: view.note)
        assert view.note == "no such clip" and view.clip.endswith("/0")


# The command.


def test_the_horizon_is_that_of_the_shortest_clip(tiny_data, tmp_path):
    """Of its frames, where the tables go on after them too, and of a packed data set."""
    data = tmp_path / "data"
    shutil.copytree(tiny_data / "test", data / "test")
    model, trained = build(open_split(tiny_data, "test", 8)), {"data_root": str(data), "cond": "action+position", "n_future": 2}
    horizon = lambda: steer.open_clips(SimpleNamespace(split="test", data_root=None, n_future=None), model, trained).n_frames
    for path in data.rglob("*.csv"):
        path.write_text(2 * path.read_text())
    assert horizon() == 8
    clip = data / "test/traj_0_to_255/3"
    frames = [np.asarray(Image.open(clip / f"{t}.png")) for t in range(7)]
    for path in clip.glob("*.png"):
        path.unlink()
    Image.fromarray(np.concatenate(frames)).save(clip / "frames.webp", lossless=True)
    assert horizon() == 7
    pack(data, "test", tmp_path / "packed", 0)
    trained["data_root"] = str(tmp_path / "packed")
    assert horizon() == 7


def command(*flags):
    """steer.py as a process, and the address it prints."""
    words = [sys.executable, "steer.py", "--port", "0", "--precision", "fp32", *map(str, flags)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)
    line = process.stdout.readline()
    assert line.startswith("open http://127.0.0.1:"), process.communicate()
    return process, line.split()[1]


def end(process):
    """As Ctrl-C does."""
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=120)
    assert process.returncode == 130 and "Traceback" not in error, error


@pytest.mark.slow
def test_the_command(tmp_path):
    """The shipped weights, driven over a socket; a second server at the same port is refused."""

    async def drive(address):
        origin, query = address.split("/?")
        async with aiohttp.ClientSession() as client:
            socket = await client.ws_connect(f"{origin}/socket?{query}", origin=origin)
            await socket.send_json(push(1, 0, 0, 0))
            view = await until(socket, lambda view: view.t >= 3)
            assert view.horizon == 28 and view.axes == ["x", "y", "z", "turn"]

    process, address = command("--log_dir", tmp_path)
    try:
        asyncio.run(drive(address))
        port = address.split(":")[2].split("/")[0]
        result = run("steer.py", "--port", port, "--log_dir", tmp_path)
        assert result.returncode == 2 and f"--port {port}: cannot listen" in result.stderr and result.stderr.count("\n") == 1
    finally:
        end(process)


@pytest.mark.slow
def test_what_the_command_refuses(tmp_path):
    (tmp_path / "aiohttp").mkdir()
    (tmp_path / "aiohttp/__init__.py").write_text("raise ImportError")
    result = run("steer.py", env={"PYTHONPATH": str(tmp_path)})
    assert result.returncode == 2 and result.stderr.count("\n") == 1
    assert "aiohttp is missing: pip install -r requirements-steer.txt" in result.stderr
