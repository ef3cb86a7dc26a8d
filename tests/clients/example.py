"""The documentation's example client, by another hand: Python's `websockets` instead of our own code.

usage: example.py URL TOKEN ACCOUNT FIXTURES

Subscribes to the three call events, says "subscribed" on stdout, and then expects the fixture events of a call,
published once each. Asserts on every frame it sees; exit code 0 means that all were as documented.

The library's other client, with threads, is left out: Python's `ssl` is not safe for its two threads (process.rs says more).
"""

import asyncio
import json
import pathlib
import re
import sys

from websockets.asyncio.client import connect

PATIENCE = 60
# Of an event, and of the reply to a ping: a position (0) or an event's id, a time, and the process.
CURSOR = re.compile("(0|[0-9a-f]{16})[.][0-9a-z]+[.][0-9a-z]{6}")
STAGES = {"CHANNEL_CREATE": "create", "CHANNEL_ANSWER": "answer", "CHANNEL_DESTROY": "destroy"}


async def expect(socket, expected):
    seen = json.loads(await asyncio.wait_for(socket.recv(), PATIENCE))
    place = seen if expected["action"] == "event" else seen["data"] if "response" in expected.get("data", {}) else None
    if place is not None:
        assert CURSOR.fullmatch(place.pop("cursor")), seen
    assert seen == expected, f"\nseen     {seen}\nexpected {expected}"


def lists(bindings, **more):
    return {"subscribed": bindings, "subscriptions": bindings, **more}


def reply(request_id, data):
    return {"action": "reply", "request_id": request_id, "status": "success", "data": data}


async def main(url, token, account, fixtures):
    async with connect(url, open_timeout=PATIENCE, close_timeout=PATIENCE) as socket:

        async def command(action, **more):
            await socket.send(json.dumps({"action": action, "auth_token": token, "request_id": action, **more}))

        bindings = []
        for name in STAGES:
            bindings.append(f"call.{name}.*")
            await command("subscribe", data={"account_id": account, "binding": bindings[-1], "name": "My new socket"})
            await expect(socket, reply("subscribe", lists(bindings)))
        print("subscribed", flush=True)

        for name, stage in STAGES.items():
            body = json.loads(pathlib.Path(fixtures, f"channel_{stage}.json").read_text())
            await expect(socket, {
                "action": "event",
                "name": name,
                "routing_key": f"call.{account}.{name}.{body['Call-ID']}",
                "args": body,
                "subscribed_key": f"call.{name}.*",
                "subscription_key": f"call.{account}.{name}.*",
                "request_id": "subscribe",
            })

        await command("unsubscribe", data={"binding": bindings[0]})
        await expect(socket, reply("unsubscribe", lists(bindings[1:], unsubscribed=bindings[:1])))
        await command("unsubscribe")
        await expect(socket, reply("unsubscribe", lists([], unsubscribed=bindings[1:])))
        await command("ping")
        await expect(socket, reply("ping", {"response": "pong"}))
        await asyncio.wait_for(await socket.ping(), PATIENCE)
    assert socket.close_code == 1000, socket.close_code
    print("done", flush=True)


asyncio.run(main(*sys.argv[1:]))
