"""Sessions with permessage-deflate, by another hand: Python's `websockets` instead of our own code.

usage: compressed.py URL SESSIONS ACCOUNT

Opens so many sessions with the library's defaults, which offer compression and use it for every message, subscribes each,
half of them with a request id, says "subscribed" on stdout, and prints the next event of each as a line.
"""

import contextlib
import json
import sys

from websockets.sync.client import connect

PATIENCE = 60


def main(url, sessions, account):
    with contextlib.ExitStack() as stack:
        sockets = []
        for number in range(int(sessions)):
            socket = stack.enter_context(connect(url, open_timeout=PATIENCE, close_timeout=PATIENCE))
            assert [extension.name for extension in socket.protocol.extensions] == ["permessage-deflate"]
            command = {"action": "subscribe", "auth_token": "any", "data": {"account_id": account, "binding": "call.*.*"}}
            if number % 2:
                command["request_id"] = f"request {number}"
            socket.send(json.dumps(command))
            assert json.loads(socket.recv(timeout=PATIENCE))["status"] == "success"
            sockets.append(socket)
        print("subscribed", flush=True)
        for socket in sockets:
            print(socket.recv(timeout=PATIENCE), flush=True)
    assert {socket.close_code for socket in sockets} == {1000}


main(*sys.argv[1:])
