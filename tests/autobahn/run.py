"""Runs the Autobahn test suite, as a client, against the echo server, and judges the results.

Starts the server given, runs the cases, prints a table by group and every case that is not well, ends the server.
Stricter than the suite's own runner: a verdict of NON-STRICT is a failure, for the message exchange and for the
closing handshake, and so are a case that was selected but has no result and a server that does not end well.

Exit code: 0 all well, 1 otherwise, 2 wrong use.
"""

import argparse
import asyncio
import collections
import fnmatch
import subprocess
import sys
import time

from kosoku import FailureError, run_fuzzingclient
from kosoku._report import write_reports
from kosoku.cases import CASES

DEFAULT_CASES = ["1.*", "2.*", "3.*", "4.*", "5.*", "6.*", "7.*", "9.*", "10.*", "12.*", "13.*"]
GOOD = {"OK", "INFORMATIONAL"}
# Seconds for the server to listen, and to end once told.
SERVER_PATIENCE = 10


def main():
    parser = argparse.ArgumentParser(
        prog="scripts/autobahn",
        description="Runs the Autobahn test suite against the server's loop and codec, with messages sent back.",
    )
    parser.add_argument(
        "cases",
        nargs="*",
        metavar="CASE",
        default=DEFAULT_CASES,
        help=f"cases to run, such as 7.1.5 or '9.*' (default: {' '.join(DEFAULT_CASES)})",
    )
    parser.add_argument("--exclude", action="append", default=[], metavar="CASE", help="leave these out (repeatable)")
    parser.add_argument("--parallel", type=int, default=4, metavar="N", help="cases at a time (default: %(default)s)")
    parser.add_argument("--timeout", type=float, default=1800, metavar="SECONDS", help="for all (default: %(default)g)")
    parser.add_argument("--report", metavar="DIR", help="write the suite's report, index.html, to this directory")
    parser.add_argument("--server", required=True, metavar="PROGRAM", help=argparse.SUPPRESS)
    args = parser.parse_args()

    for pattern in args.cases:
        if not any(fnmatch.fnmatchcase(case, pattern) for case in CASES):
            parser.error(f"no case is called {pattern}")
    selected = [case for case in CASES if matches(case, args.cases) and not matches(case, args.exclude)]
    if not selected:
        parser.error("all cases are excluded")

    mend(CASES)
    began = time.monotonic()
    server = subprocess.Popen([args.server], stdout=subprocess.PIPE, text=True)
    try:
        words = server.stdout.readline().split()
        if words[:2] != ["listening", "on"]:
            sys.exit(f"autobahn: {args.server} does not listen")
        results = asyncio.run(run(f"ws://{words[2]}", selected, args))
        is_alive = server.poll() is None
    finally:
        server.terminate()
        try:
            server.wait(SERVER_PATIENCE)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()

    if args.report:
        write_reports(results, args.report)
    troubles = judge(selected, results)
    if not is_alive or server.returncode != 0:
        troubles.append(f"the server ended with {server.returncode}")
    for trouble in troubles:
        print(f"autobahn: {trouble}", file=sys.stderr)
    verdict = f"{len(troubles)} failed" if troubles else "all well"
    print(f"autobahn: {len(results)} cases in {time.monotonic() - began:.0f} s: {verdict}")
    return 1 if troubles else 0


def mend(cases):
    """Of a session with compression the suite hands a message that came uncompressed, as any may (RFC 7692, section 6),
    to its case as text, and the case fails to hash it. Here it is bytes, as a compressed one is."""

    def taking_bytes(on_message):
        def wrapped(case, message, is_binary):
            if isinstance(message, str):
                message = message.encode("latin-1" if is_binary else "utf-8")
            return on_message(case, message, is_binary)

        return wrapped

    for name, case in cases.items():
        if name.startswith(("12.", "13.")):
            case.onMessage = taking_bytes(case.onMessage)


def matches(case, patterns):
    return any(fnmatch.fnmatchcase(case, pattern) for pattern in patterns)


async def run(url, selected, args):
    """The results of the cases selected."""
    try:
        suite = run_fuzzingclient(url, selected, None, concurrency=args.parallel)
        return await asyncio.wait_for(suite, args.timeout)
    except FailureError as failure:
        return failure.results
    except asyncio.TimeoutError:
        sys.exit(f"autobahn: not through after {args.timeout:g} s")


def judge(selected, results):
    """Prints the table; returns a line for each case that is not well."""
    troubles, groups = [], {}
    for result in results:
        behavior, close = result.behavior.value, result.behavior_close.value
        is_good = behavior in GOOD and close in GOOD
        groups.setdefault(result.case_id.split(".")[0], collections.Counter())[behavior if is_good else "bad"] += 1
        if not is_good:
            troubles.append(
                f"case {result.case_id}: {behavior} ({result.result}), closing {close} ({result.result_close})"
            )
    seen = {result.case_id for result in results}
    troubles += [f"case {case}: no result" for case in selected if case not in seen]
    print("group  cases     OK  informational  failed")
    for group, count in sorted(groups.items(), key=lambda item: int(item[0])):
        print(f"{group:>5} {count.total():6} {count['OK']:6} {count['INFORMATIONAL']:14} {count['bad']:7}")
    return troubles


if __name__ == "__main__":
    sys.exit(main())
