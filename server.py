"""A session in the browser: one process, one WebSocket a page. Several pages may watch, the one that came first steers.

A page sends short JSON messages (`MESSAGES`). It is sent views: the length of a header in 4 bytes, little-endian, the header as
JSON, and the pictures' raw RGB. Whatever is not understood closes the connection with a reason.
"""

import asyncio
import contextlib
import hmac
import json
import secrets
from pathlib import Path
from urllib.parse import urlsplit

from utils import UserError

try:
    from aiohttp import WSCloseCode, WSMsgType, web
except ImportError:
    web = None

FUTURES = (1, 3, 6)
MOST_BYTES, MOST_VIEWERS = 1024, 16  # of a message, and pages at a time
AHEAD = 2  # views on their way to a page that it has not drawn yet; what comes meanwhile is dropped
HEARTBEAT = 10  # seconds without a sign of life after which a page counts as gone
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer", "X-Content-Type-Options": "nosniff", "Cache-Control": "no-store",
}  # fmt: skip

# What a page may say: the type of a message, its other entries, and what each must be.
is_share = lambda x: type(x) in (int, float) and -1 <= x <= 1
MESSAGES = {
    "steer": {"direction": lambda x: type(x) is list and all(map(is_share, x)), "key": lambda x: type(x) is int and 0 <= x < 2**53},
    "speed": {"factor": lambda x: type(x) in (int, float) and 0.1 <= x <= 4},
    "futures": {"number": lambda x: type(x) is int and x in FUTURES},
    **{name: {} for name in ("drawn", "pause", "step", "undo", "reset", "next", "redraw", "mean", "record")},
}  # fmt: skip


class NotUnderstood(Exception):
    """Why a message ends its page's connection."""


def parse(text, n_axes):
    """A page's message: its type, and the values of its other entries."""
    try:
        message = json.loads(text)
    except (ValueError, RecursionError):
        raise NotUnderstood("not JSON") from None
    kind = message.pop("type", None) if isinstance(message, dict) else None
    if type(kind) is not str or kind not in MESSAGES:
        raise NotUnderstood(f"unknown type; known are {', '.join(MESSAGES)}")
    if message.keys() != MESSAGES[kind].keys():
        raise NotUnderstood(f"{kind} takes {', '.join(MESSAGES[kind]) or 'nothing'}")
    for name, good in MESSAGES[kind].items():
        if not good(message[name]) or (name == "direction" and len(message[name]) != n_axes):
            raise NotUnderstood(f"{kind}: bad {name}")
    return kind, *[message[name] for name in MESSAGES[kind]]


class Viewer:
    """A page: it is sent the newest view, and the next one when it has drawn what is on its way."""

    def __init__(self, socket):
        self.socket, self.wake, self.undrawn = socket, asyncio.Event(), 0

    async def send(self, server):
        """Send views as they come, for ever; those that come while the page is busy are dropped."""
        sent = None
        with contextlib.suppress(ConnectionError):
            while True:
                await self.wake.wait()
                self.wake.clear()
                if self.undrawn < AHEAD and sent != server.version:
                    sent, self.undrawn = server.version, self.undrawn + 1
                    header, pixels = server.view
                    header = header | server.about | {"steers": self is server.viewers[0], "viewers": len(server.viewers)}
                    header = json.dumps(header).encode()
                    await self.socket.send_bytes(len(header).to_bytes(4, "little") + header + pixels)


class Server:
    """A session, its clock and its pages. All that the model does runs in one thread of its own (`worker`)."""

    def __init__(self, steered, worker, rate, record):
        self.session, self.worker, self.rate, self.record = steered, worker, rate, record
        self.token, self.viewers, self.version = secrets.token_urlsafe(16), [], 0
        self.n_axes = len(steered.axes)
        self.running, self.speed, self.key, self.note, self.saving = False, 1.0, 0, "", False
        self.held = self.tapped = [0.0] * self.n_axes
        self.about, self.view = {"key": 0}, steered.view()

    def publish(self, **news):
        """There is something new to show."""
        self.about |= dict(running=self.running, speed=self.speed, rate=self.rate, note=self.note) | news
        self.version += 1
        for viewer in self.viewers:
            viewer.wake.set()

    async def work(self, do, *args, **news):
        """Let the session do something, in its thread, and show it."""

        def work():
            do(*args)
            return self.session.view()

        try:
            self.view = await asyncio.get_running_loop().run_in_executor(self.worker, work)
        except UserError as error:  # a clip that cannot be read
            self.note = str(error)
        self.publish(**news)

    async def tick(self):
        """Step at a steady rate, for ever, while it runs and somebody watches."""
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            due = max(due + 1 / self.rate, loop.time())  # after a late step the next ones do not hurry
            await asyncio.sleep(due - loop.time())
            if self.viewers and (self.running or self.session.moment.t < 0):
                await self.step()

    async def step(self):
        """One step under the keys that are held, or were tapped since the last step."""
        direction = [tap or hold for tap, hold in zip(self.tapped, self.held)]
        self.tapped = [0.0] * self.n_axes
        action = [self.speed * share * size for share, size in zip(direction, self.session.scale.tolist())]
        await self.work(self.session.step, action, key=self.key)

    # What pages say.

    async def do(self, viewer, kind, *values):
        """Do what a page asks for; from those that only watch nothing is taken but that they have drawn a view."""
        if kind == "drawn":
            viewer.undrawn = max(0, viewer.undrawn - 1)
            viewer.wake.set()
        elif viewer is self.viewers[0]:
            await getattr(self, f"do_{kind}")(*values)

    async def do_undo(self):
        await self.work(self.session.undo)

    async def do_redraw(self):
        await self.work(self.session.redraw)

    async def do_steer(self, direction, key):
        self.held, self.key = direction, key
        self.tapped = [new or old for new, old in zip(direction, self.tapped)]
        if any(direction) and self.session.moment.t <= 0 and not self.running:  # the first key starts the clock
            self.running = True
            self.publish()

    async def do_speed(self, factor):
        self.speed = factor
        self.publish()

    async def do_pause(self):
        self.running = not self.running
        self.publish()

    async def do_step(self):
        self.running = False
        await self.step()

    async def do_mean(self):
        self.session.mean = not self.session.mean
        await self.work(lambda: None)

    async def do_futures(self, number):
        await self.work(self.session.branch, number)

    async def do_reset(self, ahead=0):
        self.running, self.note = False, ""
        await self.work(self.session.start, self.session.clip + ahead)

    async def do_next(self):
        await self.do_reset(1)

    async def do_record(self):
        if not self.saving:
            self.saving, self.note = True, "saving"
            self.publish()
            self.task = asyncio.create_task(self.save())  # kept, as asyncio keeps none

    async def save(self):
        """Write the recording in a thread of its own, so that nothing waits for it, and say where it is."""
        try:
            recording = await asyncio.get_running_loop().run_in_executor(self.worker, self.session.recording)
            self.note = await asyncio.to_thread(self.record, recording)
        except (UserError, OSError) as error:
            self.note = str(error)
        self.saving = False
        self.publish()

    # What the network sees.

    def app(self):
        """The page and its socket."""
        app = web.Application()
        app.add_routes([web.get("/", self.page), web.get("/socket", self.socket)])
        app.on_shutdown.append(self.close)
        return app

    def check(self, request):
        """Refuse who has not the token of the printed address."""
        if not hmac.compare_digest(request.query.get("token", "").encode(), self.token.encode()):
            raise web.HTTPForbidden(text="open the address that steer.py printed, token included\n")

    async def page(self, request):
        self.check(request)
        return web.FileResponse(Path(__file__).with_name("steer.html"), headers=HEADERS)

    async def socket(self, request):
        """A page's connection, until it closes or says what is not understood."""
        self.check(request)
        if urlsplit(request.headers.get("Origin", "")).netloc != request.host:  # another site's page in the same browser
            raise web.HTTPForbidden(text="the page must come from this server\n")
        if len(self.viewers) >= MOST_VIEWERS:
            raise web.HTTPServiceUnavailable(text=f"{MOST_VIEWERS} pages are open; close one\n")
        socket = web.WebSocketResponse(max_msg_size=MOST_BYTES, heartbeat=HEARTBEAT, compress=False)
        await socket.prepare(request)
        viewer = Viewer(socket)
        self.viewers.append(viewer)
        sending = asyncio.create_task(viewer.send(self))
        self.publish()
        try:
            async for message in socket:
                if message.type == WSMsgType.ERROR:  # too long, or no UTF-8: already closed
                    break
                if message.type != WSMsgType.TEXT:
                    raise NotUnderstood("text, not bytes, is understood")
                await self.do(viewer, *parse(message.data, self.n_axes))
        except NotUnderstood as error:
            await socket.close(code=WSCloseCode.POLICY_VIOLATION, message=str(error).encode()[:120])
        finally:
            sending.cancel()
            if viewer is self.viewers[0]:
                self.held = [0.0] * self.n_axes  # nobody holds a key now
            self.viewers.remove(viewer)
            self.publish()
        return socket

    async def close(self, app):
        for viewer in list(self.viewers):
            await viewer.socket.close(code=WSCloseCode.GOING_AWAY, message=b"steer.py has ended")


async def serve(server, host, port):
    """Run until the process is told to end."""
    runner = web.AppRunner(server.app(), access_log=None, shutdown_timeout=1)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, host, port).start()
        except OSError as error:
            raise UserError(f"--host {host} --port {port}: cannot listen there ({error.strerror}); choose another") from None
        name = f"[{host}]" if ":" in host else host
        print(f"open http://{name}:{runner.addresses[0][1]}/?token={server.token}", flush=True)
        await server.tick()
    finally:
        await runner.cleanup()
