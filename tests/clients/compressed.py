"""Sessions with permessage-deflate, by another hand: Python's `websockets` instead of our own code.

usage: compressed.py URL SESSIONS ACCOUNT

Opens so many sessions with the library's defaults, which offer compression and use it for every message, subscribes each,
half of them with a request id, says "subscribed" on stdout, and prints the next event of each as a line.

The library's other client, with threads, is left out: Python's `ssl` is not safe for its two threads (process.rs says more).
"""

import asyncio
import contextlib
import json
import sys

from websockets.asyncio.client import connect

PATIENCE = 60


async def receive(socket):
    return await asyncio.wait_for(socket.recv(), PATIENCE)


async def main(url, sessions, account):
    async with contextlib.AsyncExitStack() as stack:
        sockets = []
        for number in range(int(sessions)):
            socket = await stack.enter_async_context(connect(url, open_timeout=PATIENCE, close_timeout=PATIENCE))
            assert [extension.name for extension in socket.protocol.extensions] == ["permessage-deflate"]
            command = {"action": "subscribe", "auth_token": "any", "data": {"account_id": account, "binding": "call.*.*"}}
            if number % 2:
                command["request_id"] = f"request {number}"
            await socket.send(json.dumps(command))
            assert json.loads(await receive(socket))["status"] == "success"
            sockets.append(socket)
        print("subscribed", flush=True)
        for socket in sockets:
            print(await receive(socket), flush=True)
    assert {socket.close_code for socket in sockets} == {1000}


asyncio.run(main(*sys.argv[1:]))
